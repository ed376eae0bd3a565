"""What `plan` and `apply` do first: recipe → checks → pinned sources → plan → state of every step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trtx.cache.store import Store
from trtx.cli.options import StageName
from trtx.console import Console
from trtx.errors import UsageProblem, did_you_mean
from trtx.files import sha256_file
from trtx.hardware import support
from trtx.hardware.gpus import find_gpu
from trtx.plan.environment import FETCHING_STAGES
from trtx.plan.facts import Facts, gather_facts
from trtx.plan.formats import check_formats
from trtx.plan.lock import Lock, lock_path, read_lock
from trtx.plan.lock_make import without
from trtx.plan.make import Options, make_plan
from trtx.plan.preflight import check_fit
from trtx.plan.record import latest_plan
from trtx.plan.releases import is_tensorrt, load_releases
from trtx.plan.remotes import Remotes, open_remotes
from trtx.plan.resolve import PinnedSources, resolve_sources
from trtx.plan.resources import Placement
from trtx.plan.saved import open_plan, refuse_moved
from trtx.plan.site import site_runners
from trtx.plan.steps import Plan, split_selection
from trtx.plan.survey import StepStatus, survey
from trtx.recipe.cells import Cell, select_cells
from trtx.recipe.check_model import find_misfits
from trtx.recipe.checks import read_recipe
from trtx.recipe.load import LoadedRecipe
from trtx.recipe.overrides import NO_OVERRIDES, Overrides
from trtx.recipe.problems import RecipeInvalid
from trtx.recipe.runners import ALWAYS, Runner


@dataclass(frozen=True)
class Request:
    """What a verb was asked for: a recipe with an optional selection, and how to look at it.

    `offline` consults nothing but the lock and the cache. `locked` refuses a lock that would change; `upgrade` names
    the pins of the lock that are looked up anew. `runner` is where all cells run in place of their own runners.
    """

    argument: str
    overrides: Overrides = NO_OVERRIDES
    until: StageName | None = None
    offline: bool = False
    max_parallel: int | None = None
    locked: bool = False
    upgrade: tuple[str, ...] = ()
    runner: str | None = None


@dataclass(frozen=True)
class Ready:
    """A plan and the state of its steps, before anything ran.

    `previous` is the plan of this folder's latest run; `remotes` were asked for what the cache does not have.
    """

    plan: Plan
    previous: Plan | None
    statuses: list[StepStatus]
    store: Store
    facts: Facts
    environ: Mapping[str, str]
    remotes: Remotes | None


@dataclass(frozen=True)
class Prepared(Ready):
    """A plan that was made just now, with what it was made from; `lock` is the one beside the recipe, as it was."""

    loaded: LoadedRecipe
    cells: tuple[Cell, ...]
    sources: PinnedSources
    request: Request
    lock: Lock | None


def prepare(console: Console, request: Request) -> Prepared:
    """Plan a recipe given as on the command line.

    Raises RecipeInvalid with all problems, UsageProblem for a wrong selection or a lock that cannot be used,
    EnvironmentProblem for a source that cannot be reached.
    """
    path, glob = split_selection(request.argument)
    environ = make_environ(offline=request.offline)
    site = site_runners(environ)
    loaded = read_recipe(path, support, request.overrides, environ, site)
    for warning in loaded.warnings:
        console.say(warning.render(), style="warning")
    check_runner(request.runner, loaded, site)
    cells = select_cells(loaded.cells(), glob)
    lock = read_lock(lock_path(path))
    pins = without(lock or Lock(), request.upgrade)
    releases = load_releases(loaded, cells)
    sources = replace(resolve_sources(cells, environ, pins if lock else None), releases=releases)
    for warning in check_formats(loaded, cells, sources, support):
        console.say(warning.render(), style="warning")
    check_models(loaded, cells, sources)
    facts = gather_facts(environ, sources.generators(), cuda=any(map(compiles_for_gpu, cells)))
    placement = Placement(site, request.runner)
    check_fit(loaded, cells, sources, facts, placement)
    check_tensorrt_llm(console, loaded, cells, sources, facts, placement)
    plan = make_plan(cells, path, sources, facts, _options(request, loaded, site))
    store = Store(facts.cache_dir)
    previous = latest_plan(Path.cwd())
    statuses, remotes = survey_everywhere(console, plan, store, previous, environ)
    made_from = (loaded, tuple(cells), sources, request, lock)
    return Prepared(plan, previous, statuses, store, facts, environ, remotes, *made_from)


def survey_everywhere(
    console: Console, plan: Plan, store: Store, previous: Plan | None, environ: Mapping[str, str]
) -> tuple[list[StepStatus], Remotes | None]:
    """The state of every step against the cache and the configured remotes; says which of those were skipped."""
    remotes = open_remotes(environ)
    statuses = survey(plan, store, previous, remotes)
    for note in remotes.notes() if remotes else ():
        console.warn(note)
    return statuses, remotes


def prepare_saved(console: Console, path: Path, *, offline: bool) -> Ready:
    """Read a plan made earlier. Raises UsageProblem when it is none, or when an input moved since."""
    plan = open_plan(path)
    environ = make_environ(offline=offline)
    fetched = [step for step in plan.steps if step.stage in FETCHING_STAGES]
    generators = {name for step in fetched for name in step.factors["toolchain"]}
    facts = gather_facts(environ, generators, cuda=any("nvcc" in step.factors["toolchain"] for step in plan.steps))
    refuse_moved(plan, facts, environ)
    store = Store(Path(plan.cache_dir))
    previous = latest_plan(Path.cwd())
    statuses, remotes = survey_everywhere(console, plan, store, previous, environ)
    return Ready(plan, previous, statuses, store, facts, environ, remotes)


def compiles_for_gpu(cell: Cell) -> bool:
    """Whether a cell's engine is compiled by the embedded backend for a GPU."""
    is_gpu = find_gpu(cell.recipe.targets[cell.target].gpu).kind == "gpu"
    return is_gpu and cell.recipe.engine_for(cell.target).backend == "inductor"


def make_environ(*, offline: bool) -> dict[str, str]:
    """This process's environment, which forbids the network with `offline`."""
    return dict(os.environ) | ({"HF_HUB_OFFLINE": "1", "TRTX_OFFLINE": "1"} if offline else {})


def check_models(loaded: LoadedRecipe, cells: Iterable[Cell], sources: PinnedSources) -> None:
    """Check the recipe at every point that a cell is from against the point's model.

    Raises RecipeInvalid with all problems.
    """
    points = {
        id(cell.recipe): (loaded.point_of(cell), sources.model_of(cell).shape)
        for cell in cells
        if not is_tensorrt(cell)
    }
    found = [problem for point, shape in points.values() for problem in find_misfits(point, shape)]
    if found:
        raise RecipeInvalid(list(dict.fromkeys(found)))


def check_tensorrt_llm(
    console: Console,
    loaded: LoadedRecipe,
    cells: Iterable[Cell],
    sources: PinnedSources,
    facts: Facts,
    placement: Placement,
) -> None:
    """Check the cells of TensorRT-LLM against their releases, and say its warnings.

    Raises RecipeInvalid with all problems.
    """
    if not sources.releases:
        return
    from trtx.plan.check_tensorrt_llm import find_problems

    found = find_problems(loaded, cells, sources.releases, sources.configs(), facts, placement)
    if any(problem.severity == "error" for problem in found):
        raise RecipeInvalid(found)
    for warning in found:
        console.say(warning.render(), style="warning")


def _options(request: Request, loaded: LoadedRecipe, site: Mapping[str, Runner]) -> Options:
    # A pipe cannot be read twice.
    files = {str(path): sha256_file(path) for path in loaded.files if path.is_file()}
    until = request.until.value if request.until else None
    return Options(until, request.max_parallel, files, site, request.runner)


def check_runner(name: str | None, loaded: LoadedRecipe, site: Mapping[str, Runner]) -> None:
    """Raises UsageProblem when nobody knows the runner of `--runner`."""
    known = {*ALWAYS, *loaded.recipe.runners, *site}
    if name is not None and name not in known:
        raise UsageProblem(f"there is no runner '{name}'", fix=did_you_mean(name, known))


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
            "runner": status.step.runner,
            "job": asdict(status.job) if status.job else None,
        }
        for status in statuses
    ]
