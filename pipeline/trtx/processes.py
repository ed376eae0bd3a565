"""The one place that starts processes, and that tells whether one that left a note is still there.

Processes are started from argument lists, never through a shell.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trtx.errors import EnvironmentProblem
from trtx.files import disk_errors

# prctl(2)
PR_SET_PDEATHSIG = 1
# How long a process has to end after SIGTERM.
LEAVE_S = 10.0


def ask(argv: Sequence[str], *, timeout_s: float, environment: Mapping[str, str] | None = None) -> str | None:
    """What a short command prints on stdout; None when it is missing, fails or does not answer in time."""
    return ask_or_why(argv, timeout_s=timeout_s, environment=environment)[0]


def ask_or_why(
    argv: Sequence[str], *, timeout_s: float, environment: Mapping[str, str] | None = None
) -> tuple[str | None, str]:
    """What a short command prints on stdout, or None and the reason, such as the first line it complained with."""
    try:
        answer = subprocess.run(
            list(argv), capture_output=True, text=True, timeout=timeout_s, env=environment, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return None, f"did not answer within {timeout_s:g} s"
    except OSError as error:
        return None, f"could not be started: {error.strerror}"
    if answer.returncode != 0:
        said = (answer.stderr + answer.stdout).strip().splitlines()
        return None, said[0] if said else f"exit status {answer.returncode}"
    return answer.stdout, ""


def start_process(
    argv: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    own_group: bool = True,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process with stdout and stderr appended to `log`, and with these open files under their numbers.

    In its own group it is ended with all it started by `signal_group`; else it shares its parent's group and fate.
    Raises EnvironmentProblem when the program is not there.
    """
    with disk_errors(log), log.open("ab") as stream:
        try:
            return subprocess.Popen(
                list(argv),
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=own_group,
                pass_fds=tuple(pass_fds),
            )
        except FileNotFoundError as error:
            raise EnvironmentProblem(f"cannot start {argv[0]}", why="there is no such program") from error


def stream_process(
    argv: Sequence[str], *, folder: Path, environment: Mapping[str, str], on_line: Callable[[str], None]
) -> int:
    """Run a process to its end and hand over each line of its stdout and stderr; returns the exit status.

    It shares this process's group, so that signals to a step reach it. Whatever ends this function ends it, too:
    SIGTERM first, SIGKILL after a while. Raises EnvironmentProblem when the program is not there.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except (FileNotFoundError, PermissionError) as error:
        raise EnvironmentProblem(f"cannot start {argv[0]}", why=error.strerror or "") from error
    try:
        with process.stdout or contextlib.nullcontext() as lines:
            for line in lines or ():
                on_line(line.rstrip("\n"))
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent ends, however that happens."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process and all it started; no error when they are gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def describe_this_process() -> dict[str, Any]:
    """A note that names this process among all that ever ran: host, boot, pid namespace, pid and start time."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "namespace": _pid_namespace(),
        "pid": pid,
        "start": _start_ticks(pid),
    }


def is_gone(note: dict[str, Any]) -> bool:
    """True when the noted process was one of this host and no longer runs.

    Those of other hosts are never judged, nor those of other containers on this one, whose pids mean something else.
    """
    if note["host"] != socket.gethostname():
        return False
    namespace = _pid_namespace()
    if note["boot"] == _boot_id() and note.get("namespace", namespace) != namespace:
        return False
    return bool(note["boot"] != _boot_id() or _start_ticks(note["pid"]) != note["start"])


def _start_ticks(pid: int) -> str | None:
    """When a process started, in clock ticks since boot, or None when there is none or it is a zombie.

    Source: field 22 of /proc/PID/stat, proc(5).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _pid_namespace() -> str:
    """Names the set of pids this process belongs to, pid_namespaces(7); empty where the kernel does not tell."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _boot_id() -> str:
    """Changes with every start of the machine; empty where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
