"""Small questions a job asks its node: a free port, and how many processes were killed for memory."""

from __future__ import annotations

import re
import socket
from pathlib import Path


def free_port() -> int:
    """A port of this node that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


def memory_kills(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Processes of this job the kernel has killed for memory; 0 where it does not tell.

    Source: Linux Documentation/admin-guide: cgroup-v1/memory.rst (memory.oom_control), cgroup-v2.rst (memory.events).
    """
    try:
        lines = [line.split(":", 2) for line in proc.read_text().splitlines()]
        for _, controllers, path in lines:
            if "memory" in controllers.split(","):
                text = (root / "memory" / path.lstrip("/") / "memory.oom_control").read_text()
            elif controllers == "":
                text = (root / path.lstrip("/") / "memory.events").read_text()
            else:
                continue
            if match := re.search(r"^oom_kill (\d+)", text, re.MULTILINE):
                return int(match[1])
    except (OSError, ValueError):
        return 0
    return 0
