"""What `plan` and `apply` do first: recipe → checks → pinned sources → plan → state of every step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtx.cache.store import Store
from trtx.cli.options import StageName
from trtx.console import Console
from trtx.hardware import support
from trtx.hardware.gpus import Gpu, find_gpu
from trtx.plan.facts import Facts, gather_facts
from trtx.plan.make import Options, default_parallel, make_plan, select_cells
from trtx.plan.preflight import check_fit
from trtx.plan.record import latest_plan
from trtx.plan.resolve import resolve_sources
from trtx.plan.steps import Plan, split_selection
from trtx.plan.survey import StepStatus, survey
from trtx.recipe.check_model import check_model
from trtx.recipe.checks import read_recipe


@dataclass(frozen=True)
class Prepared:
    """A plan and the state of its steps, before anything ran.

    `previous` is the plan of this folder's latest run; `max_parallel` steps may run at once.
    """

    plan: Plan
    previous: Plan | None
    statuses: list[StepStatus]
    store: Store
    facts: Facts
    environ: Mapping[str, str]
    max_parallel: int
    gpus: tuple[Gpu, ...]


def prepare(
    console: Console, argument: str, *, until: StageName | None, offline: bool, max_parallel: int | None
) -> Prepared:
    """Plan a recipe given as on the command line.

    Raises RecipeInvalid with all problems, UsageProblem for a wrong selection, EnvironmentProblem for a source
    that cannot be reached.
    """
    path, glob = split_selection(argument)
    loaded = read_recipe(path, support)
    for warning in loaded.warnings:
        console.say(warning.render(), style="warning")
    recipe = loaded.recipe
    cells = select_cells(recipe.cells(), glob)
    environ = dict(os.environ) | ({"HF_HUB_OFFLINE": "1", "TRTX_OFFLINE": "1"} if offline else {})
    sources = resolve_sources(recipe, {cell.variant for cell in cells}, environ)
    check_model(loaded, sources.shape)
    generators = {name for source in (sources.model, *sources.datasets.values()) for name in source.toolchain}
    facts = gather_facts(environ, generators)
    check_fit(loaded, cells, sources.shape, facts)
    options = Options(select=glob, until=until.value if until else None, max_parallel=max_parallel)
    plan = make_plan(recipe, path, sources, facts, options)
    store = Store(facts.cache_dir)
    gpus = tuple(find_gpu(recipe.targets[name].gpu) for name in dict.fromkeys(cell.target for cell in cells))
    previous = latest_plan(Path.cwd())
    statuses = survey(plan, store, previous)
    return Prepared(plan, previous, statuses, store, facts, environ, max_parallel or default_parallel(facts), gpus)


def status_rows(statuses: list[StepStatus]) -> list[dict[str, Any]]:
    """The steps as JSON for tools: the same fields in `plan`, `apply` and `status`."""
    return [
        {
            "step": status.step.id,
            "stage": status.step.stage,
            "cell": status.step.cell,
            "state": status.state.value,
            "reason": status.reason,
            "duration_s": status.duration_s,
            "key": status.step.key,
        }
        for status in statuses
    ]
