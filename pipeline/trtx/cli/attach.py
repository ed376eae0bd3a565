"""`trtx attach`: follow the jobs of a run whose driver is gone, to the same end as `trtx apply`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trtx.cli.options import FolderOption, OutputFormat, OutputOption, RunOption, StageName
from trtx.console import Console
from trtx.errors import TrtxError

if TYPE_CHECKING:
    from trtx.cli.prepare import Ready
    from trtx.plan.record import RunRecord

SCHEMA = "trtx.attach/v1"


def command(
    context: typer.Context,
    run: RunOption = None,
    output: OutputOption = OutputFormat.TABLE,
    out_dir: FolderOption = Path("out"),
) -> None:
    """Follow the jobs of a run on a cluster, from any machine that sees this folder, and deliver what they make.

    The run is the latest with jobs that nobody followed to their end, unless --run names one. Jobs that were not
    submitted yet are; none is submitted twice.
    """
    from trtx.cli.driving import adopt_run, deliver_packages, make_error, print_outcome
    from trtx.plan.cluster_adopt import find_run_with_jobs, refuse_driven

    console: Console = context.obj
    record = find_run_with_jobs(Path.cwd(), run)
    refuse_driven(record)
    ready = make_ready(console, record)
    console.say(f"run {record.id} of {ready.plan.recipe} is followed")
    with _lock_of_run(console, record, ready):
        outcome = adopt_run(console, ready, record)
    if not outcome.errors:
        outcome = deliver_packages(outcome, out_dir)
    if output is OutputFormat.TABLE:
        print_outcome(console, outcome)
    elif not outcome.errors:
        console.json(outcome.to_json(SCHEMA))
    if outcome.errors:
        raise make_error(console, outcome, SCHEMA)


def make_ready(console: Console, record: RunRecord) -> Ready:
    """The plan of a run, as it was, and the state of its steps."""
    from trtx.cache.store import Store
    from trtx.cli.prepare import Ready, make_environ, survey_everywhere
    from trtx.plan.facts import gather_facts

    plan = record.load_plan()
    environ = make_environ(offline=False)
    store = Store(Path(plan.cache_dir))
    store.prepare()
    statuses, remotes = survey_everywhere(console, plan, store, None, environ)
    return Ready(plan, plan, statuses, store, gather_facts(environ, ()), environ, remotes)


def _lock_of_run(console: Console, record: RunRecord, ready: Ready) -> AbstractContextManager[None]:
    """Keep the recipe's lock as `apply` would have, where the recipe still says what the run does."""
    from trtx.cli.locking import kept_lock
    from trtx.cli.prepare import Request, prepare
    from trtx.recipe.overrides import Overrides

    asked = record.request()
    if asked is None:
        return nullcontext()
    try:
        prepared = prepare(console, _read_request(Request, Overrides, asked))
    except TrtxError as error:
        console.detail(f"the lock is left as it is: {error.what}")
        return nullcontext()
    if [step.key for step in prepared.plan.steps] != [step.key for step in ready.plan.steps]:
        console.warn(f"{ready.plan.recipe} says something else than run {record.id}: its lock is left as it is")
        return nullcontext()
    return kept_lock(console, prepared)


def _read_request(request: Any, overrides: Any, asked: dict[str, Any]) -> Any:
    return request(
        asked["argument"],
        overrides(tuple(asked["set"]), tuple(asked["unset"])),
        StageName(asked["until"]) if asked["until"] else None,
        max_parallel=asked["max_parallel"],
        locked=asked["locked"],
        runner=asked["runner"],
    )
