"""`trtx why`: what a step's key is made of, where that came from, and which part of it made the cache miss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from trtx.cli.options import OfflineOption, OutputFormat, OutputOption, SetOption, UnsetOption, make_overrides
from trtx.console import Console
from trtx.errors import UsageProblem

if TYPE_CHECKING:
    from trtx.cache.store import Store
    from trtx.cli.prepare import Prepared
    from trtx.plan.factor_origins import Origins
    from trtx.plan.steps import Plan
    from trtx.plan.survey import StepStatus
    from trtx.recipe.cells import Cell

    Explained = tuple[Plan, list[StepStatus], Store, Origins]

RecipeOrStep = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(metavar="[RECIPE]", help="Recipe file, as for `plan`; left out with --run."),
]
StepArgument = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(metavar="[STEP]", help="Id of a step, or a glob such as 'build/*'; lists the steps when left out."),
]
RunOption = Annotated[Optional[str], typer.Option("--run", help="Explain a step of a run, by the run's id.")]  # noqa: UP045


def command(
    context: typer.Context,
    recipe: RecipeOrStep = None,
    step: StepArgument = None,
    output: OutputOption = OutputFormat.TABLE,
    settings: SetOption = None,
    removals: UnsetOption = None,
    offline: OfflineOption = False,
    run: RunOption = None,
) -> None:
    """Explain why a step runs or does not.

    Its key factors with their origins, the nearest entry in the cache, the factors that differ and what the miss costs.
    """
    from trtx.cli.explain import explain_json, print_explanation
    from trtx.cli.prepare import Request, prepare
    from trtx.plan.why import Entries, choose_steps, explain

    console: Console = context.obj
    if run is not None:
        plan, statuses, store, origins = _load_run(run)
        step = step or recipe
    elif recipe is None:
        raise UsageProblem("there is nothing to explain", fix="give a recipe and a step: trtx why recipe.yaml STEP")
    else:
        overrides = make_overrides(settings, removals)
        plan, statuses, store, origins = _unpack(prepare(console, Request(recipe, overrides, offline=offline)))
    if step is None:
        _list_steps(console, plan, statuses, output)
        return
    chosen = choose_steps(plan, step)
    entries = Entries(store.manifests())
    explanations = [explain(plan, statuses, entries, one) for one in chosen]
    if output is OutputFormat.JSON:
        console.json(explain_json(plan, explanations, origins, Path.cwd()))
        return
    for number, explanation in enumerate(explanations):
        if number:
            console.say("")
        print_explanation(console, plan, explanation, origins, Path.cwd())


def _unpack(prepared: Prepared) -> Explained:
    """A plan that was made just now; its origins are places of the recipe."""
    from trtx.plan.factor_origins import RecipeOrigins
    from trtx.plan.make import Options, make_plan

    def plan_cell(cell: Cell) -> Plan:
        return make_plan([cell], Path(prepared.plan.recipe), prepared.sources, prepared.facts, Options())

    origins = RecipeOrigins(prepared.loaded, prepared.cells, plan_cell)
    return prepared.plan, prepared.statuses, prepared.store, origins


def _load_run(run: str) -> Explained:
    """The plan of a run as it was; its recipe may say something else by now, so origins are names of settings."""
    from trtx.cache.store import Store
    from trtx.plan.factor_origins import Origins
    from trtx.plan.record import find_run
    from trtx.plan.survey import overlay, survey

    record = find_run(Path.cwd(), run)
    plan = record.load_plan()
    store = Store(Path(plan.cache_dir))
    return plan, overlay(survey(plan, store), record), store, Origins()


def _list_steps(console: Console, plan: Plan, statuses: list[StepStatus], output: OutputFormat) -> None:
    from trtx.cli.display import print_table
    from trtx.cli.prepare import status_rows

    if output is OutputFormat.JSON:
        console.json({"schema": "trtx.why/v1", "recipe": plan.recipe, "status": status_rows(statuses)})
        return
    print_table(console, statuses)
    console.say("name a step, or several with a glob, to see what its key is made of")
