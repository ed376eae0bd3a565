"""What verbs do with the lock beside a recipe: use it, keep it up to date, refuse a recipe that it does not match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trtx.cli.prepare import Prepared
from trtx.console import Console
from trtx.errors import EnvironmentProblem, LockOutOfDate, TrtxError
from trtx.plan.lock import Lock, lock_path, read_lock, write_lock
from trtx.plan.lock_make import TELLING_STAGES, list_local_steps, make_lock, without
from trtx.plan.make import Options, make_plan
from trtx.plan.offline import check_locked_files, check_offline
from trtx.plan.steps import Plan, split_selection
from trtx.recipe.overrides import NO_OVERRIDES

if TYPE_CHECKING:
    from pathlib import Path

    from trtx.cli.prepare import Ready
    from trtx.plan.lock_changes import LockChange

# Sections that follow from a recipe's settings, and are not compared where --set or --unset changes those.
FOLLOWING = ("builds", "entries")


def check_lock(ready: Ready) -> None:
    """Before anything runs: what is in the cache is what the lock says, and nothing has to be fetched offline.

    With --locked, the lock must be up to date. Raises VerificationFailed, LockOutOfDate, EnvironmentProblem.
    """
    check_locked_files(ready.statuses)
    if isinstance(ready, Prepared) and ready.request.locked:
        refuse_out_of_date(ready)
    check_offline(ready.statuses, ready.environ)


def refuse_out_of_date(prepared: Prepared) -> None:
    """Raises LockOutOfDate, naming every difference between the lock and what it would say now.

    What differs from machine to machine (measurements, and what holds trtx's own files) is not compared.
    """
    path = lock_of(prepared)
    if prepared.lock is None:
        raise LockOutOfDate(
            f"there is no lock: {path}",
            why="--locked takes nothing that is not pinned",
            fix=f"trtx lock {prepared.request.argument}, and commit the file",
        )
    if changes := find_changes(prepared, make_current_lock(prepared)):
        raise out_of_date(path, changes, prepared.request.argument)


def find_changes(prepared: Prepared, new: Lock) -> list[LockChange]:
    """What another machine with the same recipe and tools would find changed, too."""
    from trtx.plan.lock_changes import compare_locks

    changes = compare_locks(prepared.lock, new, list_local_steps(plan_whole(prepared)))
    return [change for change in changes if not (is_overridden(prepared) and change.section in FOLLOWING)]


def out_of_date(path: Path, changes: Sequence[LockChange], argument: str) -> LockOutOfDate:
    """The error that names every difference."""
    count = f"{len(changes)} difference{'s' if len(changes) > 1 else ''}"
    return LockOutOfDate(
        f"{path} is out of date: {count}",
        why="\n       ".join(map(str, changes)),
        fix=f"trtx lock {argument}, and commit the file",
    )


def is_overridden(prepared: Prepared) -> bool:
    """Whether --set or --unset made it another recipe than the one that the lock is of."""
    return prepared.request.overrides != NO_OVERRIDES


def is_piped(prepared: Prepared) -> bool:
    """Whether the recipe is from a pipe, which has no place beside it."""
    return not prepared.loaded.path.is_file()


def lock_of(prepared: Prepared) -> Path:
    """The file of a recipe's lock."""
    return lock_path(split_selection(prepared.request.argument)[0])


def plan_whole(prepared: Prepared) -> Plan:
    """The plan with all stages: a lock does not depend on --until."""
    if prepared.request.until is None:
        return prepared.plan
    path = split_selection(prepared.request.argument)[0]
    options = Options(max_parallel=prepared.plan.max_parallel, files=prepared.plan.files)
    return make_plan(prepared.cells, path, prepared.sources, prepared.facts, options)


def make_current_lock(prepared: Prepared) -> Lock:
    """The lock with all that is known now. Raises VerificationFailed when a source gave other bytes than it has."""
    plan = plan_whole(prepared)
    surveyed = {status.step.key: status.manifest for status in prepared.statuses}
    telling = [step for step in plan.steps if step.stage in TELLING_STAGES]
    manifests = {step.id: surveyed.get(step.key) or prepared.store.find(step.key).manifest for step in telling}
    old = prepared.lock
    if old is not None:  # Other pins are compared with what they were, and these are simply measured anew.
        old = old.model_copy(update={"builds": without(old, prepared.request.upgrade).builds})
    return make_lock(
        old,
        prepared.cells,
        prepared.sources,
        prepared.facts,
        plan,
        {step_id: manifest for step_id, manifest in manifests.items() if manifest is not None},
        whole=split_selection(prepared.request.argument)[1] is None,
    )


@contextmanager
def kept_lock(console: Console, ready: Ready) -> Iterator[None]:
    """Bring the lock up to date when what is done here is over, also where it failed: with all that is known then.

    A plan that was kept in a file, --locked, --set and --unset leave the lock as it is; a recipe from a pipe has none.
    """
    if (
        not isinstance(ready, Prepared)
        or ready.request.locked
        or is_overridden(ready)
        or not ready.loaded.path.is_file()
    ):
        yield
        return
    try:
        yield
    except BaseException as error:
        try:
            renew_lock(console, ready)
        except TrtxError as second:
            error.add_note(second.render())
        raise
    renew_lock(console, ready)


def renew_lock(console: Console, prepared: Prepared) -> None:
    """Write the lock when it would change. One that cannot be written is a warning: what was made is as good."""
    path, new = lock_of(prepared), make_current_lock(prepared)
    if new == prepared.lock:
        return
    if read_lock(path) != prepared.lock:
        console.warn(f"{path} was changed by something else meanwhile, and is left as it is; `trtx lock` renews it")
        return
    try:
        write_lock(path, new)
    except EnvironmentProblem as error:
        console.warn(f"the lock was not written: {error.what}: {error.why}")
        return
    if prepared.lock is None:
        console.say(f"wrote {path}, which pins what the recipe leaves open: commit it")
        return
    from trtx.plan.lock_changes import compare_locks

    for change in compare_locks(prepared.lock, new):
        console.detail(f"{path}: {change}")
