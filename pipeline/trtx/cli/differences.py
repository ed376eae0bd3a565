"""How differences look: tables for people, everything for tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from trtx.cli.display import format_duration
from trtx.console import Console
from trtx.plan.diff import PlanDiff, RecipeDiff, SettingChange, StepChange, changes_json
from trtx.plan.diff_commands import CommandChange
from trtx.plan.diff_runs import Figure, Outcome, RunDiff
from trtx.plan.keys import shorten
from trtx.plan.lock_changes import LockChange

# More names than this are counted.
MAX_NAMES = 4


def recipe_json(
    diff: RecipeDiff, steps: PlanDiff | None, unknown: str, commands: Sequence[CommandChange]
) -> dict[str, Any]:
    """`steps` is null when the recipes could not be planned without a network; `steps_unknown` says why."""
    return {
        "cells": {"both": list(diff.cells), "added": list(diff.added), "removed": list(diff.removed)},
        "changes": [
            {
                "setting": change.name,
                "old": change.old,
                "new": change.new,
                "old_origin": change.old_origin,
                "new_origin": change.new_origin,
                "cells": list(change.cells),
            }
            for change in diff.changes
        ],
        "steps": plan_json(steps) if steps else None,
        "steps_unknown": unknown,
        "commands": [asdict(change) for change in commands],
    }


def plan_json(diff: PlanDiff) -> dict[str, Any]:
    return {
        "added": list(diff.added),
        "removed": list(diff.removed),
        "same": list(diff.same),
        "changed": [
            {"step": change.step, "changes": changes_json(change.changes), "follows": list(change.inputs)}
            for change in diff.changed
        ],
    }


def run_json(diff: RunDiff) -> dict[str, Any]:
    return {
        "steps": plan_json(diff.steps),
        "outcomes": {name: [_outcome_json(side) for side in sides] for name, sides in diff.outcomes.items()},
        "figures": [
            {
                "step": figure.step,
                "figure": figure.name,
                "old": figure.old,
                "new": figure.new,
                "relative": figure.relative,
            }
            for figure in diff.figures
        ],
    }


def _outcome_json(outcome: Outcome | None) -> dict[str, Any] | None:
    return {"state": outcome.state, "duration_s": outcome.duration_s} if outcome else None


def print_recipes(console: Console, diff: RecipeDiff, steps: PlanDiff | None, unknown: str) -> None:
    """Cells that only one side has, settings that differ with both origins, steps whose keys move."""
    _say_names(console, "only in the first", diff.removed)
    _say_names(console, "only in the second", diff.added)
    if diff.changes:
        rows = [_setting_row(change, len(diff.cells)) for change in diff.changes]
        console.table(("setting", "old", "new", "cells", "old from", "new from"), rows)
    elif diff.equal:
        console.say("the recipes mean the same")
    if steps is None:
        console.say(f"which keys move is not known: {unknown}", style="note")
    elif not steps.equal:
        _print_steps(console, steps)
    else:
        console.say(f"no key moves: {_count(len(steps.same))} the same", style="note")


def print_releases(console: Console, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> None:
    """What two releases of TensorRT-LLM bring otherwise, where each side has one."""
    if len(old) != 1 or len(new) != 1 or old == new:
        return
    rows = [
        (name.replace("_", " "), str(old[0][name] or "not known"), str(new[0][name] or "not known"))
        for name in old[0]
        if old[0][name] != new[0][name]
    ]
    console.table(("TensorRT-LLM", "old", "new"), rows)


def print_commands(console: Console, commands: Sequence[CommandChange], num_cells: int) -> None:
    """One row for every option that one side says otherwise, or not at all."""
    if not commands:
        return
    rows = []
    for change in commands:
        cells = "all" if len(change.cells) == num_cells else _some(change.cells)
        for old, new in _pair(change.old, change.new):
            rows.append((change.stage, change.tool, old or "(none)", new or "(none)", cells))
    console.table(("stage", "tool", "old", "new", "cells"), rows)


def _pair(old: Sequence[str], new: Sequence[str]) -> list[tuple[str, str]]:
    """Options of both sides with one flag stand together."""
    names = {option.partition(" ")[0].rstrip(":"): option for option in new}
    pairs = [(option, names.pop(option.partition(" ")[0].rstrip(":"), "")) for option in old]
    return [*pairs, *(("", option) for option in names.values())]


def _setting_row(change: SettingChange, num_cells: int) -> tuple[str, ...]:
    cells = "all" if len(change.cells) == num_cells else _some(change.cells)
    return (change.name, shorten(change.old), shorten(change.new), cells, change.old_origin, change.new_origin)


def _print_steps(console: Console, diff: PlanDiff) -> None:
    _say_names(console, "steps only in the first", diff.removed)
    _say_names(console, "steps only in the second", diff.added)
    if diff.changed:
        rows = [(change.step, _reasons(change)) for change in diff.changed]
        console.table(("key moves", "because of"), rows)
    console.say(f"{_count(len(diff.changed))} changed, {len(diff.same)} the same", style="note")


def _reasons(change: StepChange) -> str:
    own = [str(one) for one in change.changes]
    return _some(own) if own else f"its input{'s' if len(change.inputs) > 1 else ''} {_some(change.inputs)}"


def print_locks(console: Console, changes: Sequence[LockChange]) -> None:
    """One row per fact, in the words of the lock's sections."""
    if not changes:
        console.say("the locks pin the same")
        return
    rows = [(change.subject, change.part, shorten(change.old), shorten(change.new)) for change in changes]
    console.table(("what", "part", "old", "new"), rows)


def print_runs(console: Console, diff: RunDiff) -> None:
    """Steps and factors, then how each step went, then results."""
    if diff.steps.equal:
        console.say(f"the same {_count(len(diff.steps.same))}")
    else:
        _print_steps(console, diff.steps)
    rows = [(name, *map(_describe_outcome, sides)) for name, sides in diff.outcomes.items()]
    console.table(("step", "first run", "second run"), rows)
    if diff.figures:
        console.table(
            ("step", "result", "old", "new", "change"),
            [_figure_row(figure) for figure in diff.figures],
            right=("old", "new", "change"),
        )


def _describe_outcome(outcome: Outcome | None) -> str:
    if outcome is None:
        return "(none)"
    return f"{outcome.state} {format_duration(outcome.duration_s)}".rstrip()


def _figure_row(figure: Figure) -> tuple[str, ...]:
    relative = "" if figure.relative is None else f"{figure.relative:+.2%}"
    return (figure.step, figure.name, f"{figure.old:.6g}", f"{figure.new:.6g}", relative)


def _say_names(console: Console, words: str, names: Sequence[str]) -> None:
    if names:
        console.say(f"{words}: {_some(names)}")


def _some(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _count(number: int) -> str:
    return "1 step" if number == 1 else f"{number} steps"
