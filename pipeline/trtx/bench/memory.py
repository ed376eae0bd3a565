"""Peak memory of this process. Imports nothing heavy."""

from __future__ import annotations

import contextlib
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Start a new peak at the present size, where the kernel allows it (proc(5): 5 written to clear_refs)."""
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text("5")


def peak_rss_bytes() -> int:
    """The most memory this process has held at once since it started or since `reset_peak` (VmHWM of proc(5))."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
