"""How an explanation looks: a few lines and one table for people, everything for tools."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trtx.cache.manifest import Manifest
from trtx.cli.display import STYLES, format_duration
from trtx.console import Console
from trtx.plan.factor_origins import FactorOrigin, Origins
from trtx.plan.keys import EXCLUDED, Change, flatten, shorten
from trtx.plan.steps import Plan
from trtx.plan.survey import State
from trtx.plan.why import Cause, Explanation, Nearest, run_that_made
from trtx.recipe.problems import Path as Place
from trtx.recipe.tree import dotted
from trtx.recipe.units import format_bytes

SCHEMA = "trtx.why/v1"
# More than this many factors of one parent and one origin are one line: a model's shape has seventeen.
MAX_SIBLINGS = 4


def explain_json(plan: Plan, explanations: Iterable[Explanation], origins: Origins, project: Path) -> dict[str, Any]:
    """Everything that is known about the steps, with whole keys and values."""
    return {
        "schema": SCHEMA,
        "recipe": plan.recipe,
        "steps": [_step_json(plan, explanation, origins, project) for explanation in explanations],
        "not_in_keys": dict(EXCLUDED),
    }


def _step_json(plan: Plan, explanation: Explanation, origins: Origins, project: Path) -> dict[str, Any]:
    step, status, nearest = explanation.step, explanation.status, explanation.nearest
    known = origins.of(step)
    return {
        "step": step.id,
        "stage": step.stage,
        "cell": step.cell,
        "state": status.state.value,
        "reason": status.reason,
        "corrupt": status.corrupt,
        "key": step.key,
        "factors": [
            {"factor": dotted(path), "value": value, "origin": _origin_json(known[path])}
            for path, value in flatten(step.factors).items()
        ],
        "made": _entry_json(status.manifest, project) if status.manifest else None,
        "nearest": _nearest_json(plan, nearest, origins, project) if nearest else None,
        "cost": {
            "known_s": explanation.known_cost_s,
            "unknown": list(explanation.unknown_cost),
            "steps": [
                {"step": estimate.step, "seconds": estimate.seconds, "as": estimate.basis}
                for estimate in explanation.cost
            ],
        },
    }


def _origin_json(origin: FactorOrigin | None) -> dict[str, str] | None:
    return {"kind": origin.kind, "setting": origin.setting, "where": origin.where} if origin else None


def _entry_json(manifest: Manifest, project: Path) -> dict[str, Any]:
    return {
        "key": manifest.key,
        "step": manifest.step,
        **{name: manifest.provenance.get(name) for name in ("recipe", "host", "trtx", "started", "duration_s")},
        "run": run_that_made(project, manifest),
        "num_files": len(manifest.files),
        "bytes": manifest.total_bytes,
    }


def _nearest_json(plan: Plan, nearest: Nearest, origins: Origins, project: Path) -> dict[str, Any]:
    return {
        **_entry_json(nearest.manifest, project),
        "changes": [{"factor": change.name, "old": change.old, "new": change.new} for change in nearest.changes],
        "causes": [
            {
                "step": cause.step,
                "trail": list(cause.trail),
                "changes": [
                    {
                        "factor": change.name,
                        "old": change.old,
                        "new": change.new,
                        "origin": _origin_json(origins.of(plan.step(cause.step)).get(change.path)),
                    }
                    for change in cause.changes
                ],
            }
            for cause in nearest.causes
        ],
    }


def print_explanation(console: Console, plan: Plan, explanation: Explanation, origins: Origins, project: Path) -> None:
    """State and reason, what made it so, what that costs or saves, and the factors with their origins."""
    status, nearest = explanation.status, explanation.nearest
    console.say(f"{explanation.step.id}: {status.state.value}; {status.reason}", style=STYLES.get(status.state))
    if status.manifest is not None:
        _print_made(console, status.manifest, project)
    elif status.state is State.REMOTE:
        console.say("  nothing runs for it: its entry is fetched, checked and kept")
    elif nearest is None:
        console.say(f"  the cache has no other entry of the stage {explanation.step.stage} to compare with")
    else:
        _print_nearest(console, plan, nearest, origins, project)
    if explanation.cost:
        _print_cost(console, explanation)
    _print_factors(console, explanation, origins.of(explanation.step))


def _print_made(console: Console, manifest: Manifest, project: Path) -> None:
    size = format_bytes(manifest.total_bytes)
    console.say(f"  made {_describe(manifest, project)}")
    console.say(f"  {len(manifest.files)} files, {size}, each with its recorded SHA-256")
    duration = manifest.provenance.get("duration_s")
    if duration is not None:
        console.say(f"  saves {format_duration(duration)}")


def _describe(manifest: Manifest, project: Path) -> str:
    """When, where and for what an entry was made."""
    made = manifest.provenance
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(made.get("started", 0)))
    run = run_that_made(project, manifest)
    parts = [f"on {started}", f"on {made['host']}" if "host" in made else "", f"as {manifest.step}"]
    parts += [f"of recipe {made['recipe']}" if "recipe" in made else "", f"in run {run}" if run else ""]
    took = format_duration(made.get("duration_s"))
    return " ".join(filter(None, parts)) + (f", in {took}" if took else "")


def _print_nearest(console: Console, plan: Plan, nearest: Nearest, origins: Origins, project: Path) -> None:
    console.say(f"  nearest entry: {nearest.manifest.key[:12]}, made {_describe(nearest.manifest, project)}")
    for cause in nearest.causes:
        _print_cause(console, cause, origins.of(plan.step(cause.step)))


def _print_cause(console: Console, cause: Cause, known: Mapping[Place, FactorOrigin]) -> None:
    if len(cause.trail) > 1:
        console.say(f"  its input differs: {' ← '.join(cause.trail)}")
    if not cause.changes:
        console.say("    what it was made from then is not in the cache any more")
    for change in cause.changes:
        origin = known.get(change.path)
        console.say(f"    {change}" + (f"  ({origin})" if origin else ""), style="bold")


def _print_cost(console: Console, explanation: Explanation) -> None:
    cost = explanation.cost
    known = [f"{one.step} {format_duration(one.seconds)}" for one in cost if one.seconds is not None]
    steps = "1 step" if len(cost) == 1 else f"{len(cost)} steps"
    amount = f"about {format_duration(explanation.known_cost_s)} for" if known else "unknown, of"
    console.say(f"  cost: {amount} {steps}{': ' if known else ''}{', '.join(known)}")
    if known and explanation.unknown_cost:
        console.say(f"    nothing recorded about {', '.join(explanation.unknown_cost)}")


def _print_factors(console: Console, explanation: Explanation, known: Mapping[Place, FactorOrigin]) -> None:
    """What the key is made of, less what was just said to differ; the form of keys and the stage are no news."""
    changes: dict[Place, Change] = {}
    if explanation.nearest is not None and explanation.status.manifest is None:
        changes = {change.path: change for change in explanation.nearest.changes}
    rows: list[tuple[str, str, str]] = []
    styles: list[str | None] = []
    for path, value in flatten(explanation.step.factors).items():
        change = changes.get(path)
        if path[0] in ("schema", "stage") or (change and not change.is_input):
            continue
        text = f"{shorten(change.old)} → {shorten(change.new)}" if change else shorten(value)
        rows.append((dotted(path), text, str(known[path])))
        styles.append("bold" if change else "dim")
    grouped = _group(rows, styles)
    columns = ("other factors" if len(rows) < len(known) - 2 else "factor", "value", "origin")
    console.table(columns, [row for row, _ in grouped], styles=[style for _, style in grouped])


def _group(rows: list[tuple[str, str, str]], styles: list[str | None]) -> list[tuple[tuple[str, str, str], str | None]]:
    """Many unchanged siblings of one origin as one line."""
    families: dict[tuple[str, str, str | None], list[int]] = {}
    for number, (name, _, origin) in enumerate(rows):
        families.setdefault((name.rpartition(".")[0], origin, styles[number]), []).append(number)
    grouped: list[tuple[tuple[str, str, str], str | None]] = []
    for (parent, origin, style), members in families.items():
        if len(members) > MAX_SIBLINGS and style == "dim":
            grouped.append(((f"{parent}.*", f"{len(members)} values", origin), style))
        else:
            grouped += [(rows[number], style) for number in members]
    return grouped
