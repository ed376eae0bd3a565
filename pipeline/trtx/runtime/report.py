"""An engine's figures as plain data, for tools. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtx.runtime.engine import Engine


def describe_engine(engine: Engine) -> dict[str, Any]:
    """Totals since the engine started, how full it is now, and its last steps, one by one. From any thread."""
    stats, load = engine.stats, engine.load_now
    totals = {item.name: getattr(stats, item.name) for item in fields(stats) if item.name != "steps"}
    # A copy made at once, because the engine goes on.
    steps = [asdict(step) for step in list(stats.steps)]
    return {**totals, "finished": dict(stats.finished), **asdict(load), "steps": steps}
