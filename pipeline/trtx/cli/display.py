"""How steps look: the table, one line per change without a terminal, a live table with one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from trtx.console import Console
from trtx.plan.survey import State, StepStatus

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

COLUMNS = ("step", "state", "time", "key", "reason")
# Where a step has a job on a cluster.
JOB_COLUMNS = ("step", "state", "job", "node", "time", "key", "reason")
STYLES: dict[State, str] = {
    State.CACHED: "dim",
    State.NOT_NEEDED: "dim",
    State.REMOTE: "blue",
    State.DONE: "green",
    State.RUNNING: "cyan",
    State.PULLING: "cyan",
    State.SENDING: "cyan",
    State.QUEUED: "magenta",
    State.FAILED: "bold red",
    State.BLOCKED: "yellow",
    State.CANCELLED: "yellow",
    State.INTERRUPTED: "yellow",
}
# Without a terminal a long step says at most this often how far it is.
PLAIN_PROGRESS_S = 15.0
# Keys are shown short and identified in full: -o json has them whole.
SHOWN_KEY = 12


def format_duration(seconds: float | None) -> str:
    """`0.4 s`, `12.3 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def make_row(status: StepStatus, columns: Sequence[str] = COLUMNS) -> tuple[str, ...]:
    """The cells of a status in these columns; `progress` is the reason of a step that may run."""
    cells = {
        "step": status.step.id,
        "state": status.state.value,
        "job": status.job.id if status.job else "",
        "node": status.job.node if status.job else "",
        "time": format_duration(status.duration_s),
        "key": status.step.key[:SHOWN_KEY],
        "reason": status.reason,
        "progress": status.reason,
    }
    return tuple(cells[name] for name in columns)


def choose_columns(statuses: Iterable[StepStatus]) -> tuple[str, ...]:
    """Columns of jobs only where there are some."""
    return JOB_COLUMNS if any(status.job for status in statuses) else COLUMNS


def print_table(console: Console, statuses: Iterable[StepStatus]) -> None:
    """The table of `plan`, `status` and the end of `apply`."""
    shown = list(statuses)
    columns = choose_columns(shown)
    rows = [make_row(status, columns) for status in shown]
    console.table(columns, rows, styles=[STYLES.get(status.state) for status in shown], right=("time",))


class PlainObserver:
    """One line for each start and end, and now and then one for progress; for logs and CI."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._last: dict[str, float] = {}

    def changed(self, status: StepStatus) -> None:
        self._last[status.step.id] = time.monotonic()
        took = f" in {format_duration(status.duration_s)}" if status.state is State.DONE and status.duration_s else ""
        is_plain = took or (status.state is State.RUNNING and status.job is None)
        why = "" if is_plain else f": {status.reason}"
        self._say(f"{status.step.id} {status.state.value}{took}{why}")

    def tick(self, statuses: list[StepStatus]) -> None:
        now = time.monotonic()
        for status in statuses:
            running = status.state in (State.RUNNING, State.PULLING, State.SENDING) and status.reason
            if running and now - self._last.get(status.step.id, now) >= PLAIN_PROGRESS_S:
                self._last[status.step.id] = now
                self._say(f"{status.step.id} {status.reason} after {format_duration(status.duration_s)}")

    def note(self, text: str) -> None:
        self._say(f"note: {text}")

    def _say(self, text: str) -> None:
        self._console.say(f"[{time.monotonic() - self._began:7.1f} s] {text}")


class LiveObserver:
    """The table, redrawn in place."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def changed(self, status: StepStatus) -> None:
        """The next tick draws it."""

    def tick(self, statuses: list[StepStatus]) -> None:
        self._live.update(make_live_table(statuses))

    def note(self, text: str) -> None:
        """Above the table, where it stays."""
        from rich.text import Text

        self._live.console.print(Text(f"note: {text}", style="dim"))


def make_live_table(statuses: list[StepStatus]) -> Table:
    """The table while steps run, without keys."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    names = ["progress" if name == "reason" else name for name in choose_columns(statuses) if name != "key"]
    for name in names:
        table.add_column(name, justify="right" if name == "time" else "left", no_wrap=name != "progress")
    for status in statuses:
        table.add_row(*(Text(cell) for cell in make_row(status, names)), style=STYLES.get(status.state))
    return table
