"""`trtx plan --scripts`: what would be given to sbatch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from trtx.console import Console

if TYPE_CHECKING:
    from trtx.cli.prepare import Ready
    from trtx.plan.cluster_scripts import Script


def print_scripts(console: Console, ready: Ready) -> None:
    """The scripts on stdout; on stderr, before each, which steps its array has."""
    scripts = _make(ready)
    if not scripts:
        console.say("no step that has to run is a job of a cluster: there are no scripts")
    for script in scripts:
        steps = ", ".join(f"{index}: {step}" for index, step in script.steps.items())
        console.say(f"{script.runner}/{script.group}/job.sh ({steps})", style="note")
        sys.stdout.write(script.text)
        sys.stdout.flush()


def describe_scripts(ready: Ready) -> list[dict[str, Any]]:
    """The scripts for tools."""
    return [
        {"runner": script.runner, "group": script.group, "steps": dict(script.steps), "text": script.text}
        for script in _make(ready)
    ]


def _make(ready: Ready) -> list[Script]:
    from trtx.plan.cluster_scripts import make_scripts

    return make_scripts(ready.plan, ready.statuses, ready.environ)
