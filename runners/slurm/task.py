"""Runs one task of a job array on its node: `python -m trtx.runners.slurm.task tasks.json`.

Claims the attempt, waits for the one before it, checks the inputs and the GPUs, runs the step with a heartbeat beside
it, and records how it ended. Started twice for one task, by whatever mistake, the second start leaves at once.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from trtx.errors import TrtxError, UsageProblem
from trtx.processes import ask, start_process
from trtx.runners.slurm.attempts import (
    Attempt,
    Claim,
    End,
    History,
    attempt_folder,
    is_superseded,
    read_beat,
    read_claims,
    read_file,
    read_history,
    take_claim,
    valid_starts,
    write_end,
    write_heartbeat,
)
from trtx.runners.slurm.gpu import check_gpus
from trtx.runners.slurm.node import free_port, memory_kills
from trtx.runners.slurm.options import Gpu

# Exit codes of a job whose step did not run; sysexits(3) has none for these.
EXIT_BLOCKED = 75
EXIT_REFUSED = 76
EXIT_DUPLICATE = 78
# How long a step may take to leave after SIGTERM when it is this program that wants it to.
GRACE_S = 30.0
ASK_S = 30.0


@dataclass
class Stop:
    """Whether and by what the step was asked to leave: "limit", "signal", "superseded"; the first one counts."""

    forward_term: bool
    by: str = ""
    process: subprocess.Popen[bytes] | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            # Slurm sends it to every process of the job, a container's program only to the first in the container.
            self.begin("signal", send=self.forward_term)
        else:
            self.begin("limit", send=True)

    def begin(self, by: str, *, send: bool) -> None:
        if self.by:
            return
        self.by = by
        if send and self.process is not None:
            self._send(signal.SIGTERM)
            threading.Thread(target=self._insist, daemon=True).start()
        self.over.set()

    def _insist(self) -> None:
        time.sleep(GRACE_S)
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def main(arguments: list[str]) -> int:
    """Run the task that SLURM_ARRAY_TASK_ID names; returns the exit code of the job."""
    if len(arguments) != 1:
        print("usage: python -m trtx.runners.slurm.task tasks.json", file=sys.stderr)
        return UsageProblem.exit_code
    path = Path(arguments[0]).absolute()
    document = read_file(path)
    if document is None:
        print(f"error: cannot read {path}", file=sys.stderr)
        return UsageProblem.exit_code
    stop = Stop(forward_term=document["forward_term"])
    signal.signal(signal.SIGTERM, stop.on_signal)
    signal.signal(signal.SIGUSR1, stop.on_signal)
    try:
        return TaskRun(path.parent, document, os.environ, stop).run()
    except TrtxError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code


class TaskRun:
    """One start of one task. `round_folder` holds tasks.json; paths in it are relative to that folder."""

    def __init__(self, round_folder: Path, document: Mapping[str, Any], environ: Mapping[str, str], stop: Stop) -> None:
        self._document, self._environ, self._stop = document, environ, stop
        self._timing = document["timing"]
        number = environ.get("SLURM_ARRAY_TASK_ID")
        index = str(int(number) + document["offset"]) if number else next(iter(document["tasks"]))
        if index not in document["tasks"]:
            raise UsageProblem(f"there is no task {index} in {round_folder / 'tasks.json'}")
        self._task = document["tasks"][index]
        self._index = int(index)
        self._round_folder = round_folder
        self._folder = (round_folder / self._task["folder"]).resolve()
        self._news = (round_folder / document["news"]).resolve()
        self._node = environ.get("SLURMD_NODENAME") or socket.gethostname()
        self._ended = threading.Event()

    def run(self) -> int:
        environ = self._environ
        wish = Claim(
            "start",
            self._document["token"],
            job=environ.get("SLURM_ARRAY_JOB_ID") or environ.get("SLURM_JOB_ID", ""),
            index=self._index,
            restart=int(environ.get("SLURM_RESTART_COUNT", "0")),
            node=self._node,
            time=round(time.time(), 3),
        )
        claim, earlier = take_claim(self._folder, wish)
        starts = valid_starts([*earlier, claim])
        if claim.number not in {start.number for start in starts}:
            print(f"{self._task['step']}: this start is not wanted: {_why_unwanted(claim, earlier)}", flush=True)
            return EXIT_DUPLICATE
        folder = attempt_folder(self._folder, claim.attempt)
        folder.mkdir(parents=True, exist_ok=True)
        self._tell(claim, "started")
        beating = threading.Thread(target=self._beat, args=(claim, folder), daemon=True)
        beating.start()
        try:
            end = self._prepare(claim) or self._work(claim, folder)
        except TrtxError as error:  # Such as a program that is not there: the step cannot begin.
            end = self._end("failed", exit_code=error.exit_code, what=error.render().removeprefix("error: "))
        self._ended.set()
        beating.join()
        write_end(folder, end)
        self._tell(claim, "ended")
        if end.what:
            print(f"{self._task['step']}: {end.what}", file=sys.stderr, flush=True)
        return _exit_code(end)

    def _tell(self, claim: Claim, what: str) -> None:
        """Leave a name in the one folder that the driver looks at."""
        self._news.mkdir(parents=True, exist_ok=True)
        (self._news / f"{self._index}.{claim.number}.{what}").touch()

    def _end(self, state: Any, **known: Any) -> End:
        return End(state, node=self._node, time=round(time.time(), 3), **known)

    def _prepare(self, claim: Claim) -> End | None:
        """What has to be true before the step may run; an End when it may not."""
        if done := self._wait_for_earlier(claim):
            return self._end("done", exit_code=0, what=f"attempt {done.number} had made it")
        if self._stop.by:
            return self._end("stopped", by=self._stop.by)
        if missing := self._missing_needs():
            return self._end("blocked", what=f"{' and '.join(missing)} has not ended well")
        if self._document["gpu"] is not None:
            wrong = check_gpus(Gpu(**self._document["gpu"]), self._environ, lambda argv: ask(argv, timeout_s=ASK_S))
            if wrong:
                return self._end("refused", cause="wrong GPU", what=wrong)
        return None

    def _wait_for_earlier(self, claim: Claim) -> Attempt | None:
        """Wait until every earlier attempt has ended or fell silent; the one that ended well, if any."""
        quiet_since, last_beat = time.monotonic(), b""
        while True:
            earlier = [item for item in read_history(self._folder).attempts if item.number < claim.attempt]
            if done := next((item for item in earlier if item.ended_well), None):
                return done
            alive = [item for item in earlier if item.end is None]
            if not alive:
                return None
            beat = b"".join(read_beat(attempt_folder(self._folder, item.number)) for item in alive)
            if beat != last_beat:
                quiet_since, last_beat = time.monotonic(), beat
            if time.monotonic() - quiet_since >= self._timing["silence_s"]:
                return None
            if self._stop.over.wait(self._timing["files_s"]):
                return None

    def _missing_needs(self) -> list[str]:
        """Steps this one needs that have not ended well; files may take a while to appear on a shared file system."""
        needs, behind = self._folders("needs"), self._folders("behind")
        deadline = time.monotonic() + float(self._timing["late_s"])
        while True:
            histories = {step: read_history(folder) for step, folder in needs.items()}
            missing = [step for step, history in histories.items() if history.done is None]
            unclear = [step for step in missing if not _ended_badly(histories[step])]
            # What needs a step that failed may never have been started, and then leaves no word.
            if unclear and any(_ended_badly(read_history(folder)) for folder in behind.values()):
                unclear = [step for step in unclear if histories[step].attempts]
            if not missing or not unclear or time.monotonic() > deadline:
                return missing
            if self._stop.over.wait(self._timing["files_s"]):
                return missing

    def _folders(self, name: str) -> dict[str, Path]:
        """Folders of other steps, by the step."""
        return {step: (self._round_folder / folder).resolve() for step, folder in self._task[name].items()}

    def _beat(self, claim: Claim, folder: Path) -> None:
        """Show life until the attempt ends, and end it when another has taken its place."""
        beats, ended = 0, False
        while not ended:
            beats += 1
            try:
                write_heartbeat(folder, beats)
                if is_superseded(claim, read_claims(self._folder)):
                    self._stop.begin("superseded", send=True)
            except OSError as error:
                print(f"heartbeat: {error}", file=sys.stderr, flush=True)
            ended = self._ended.wait(self._timing["heartbeat_s"])

    def _work(self, claim: Claim, folder: Path) -> End:
        argv, environment = list(self._task["argv"]), self._environment(claim)
        if launch := self._document["launch"]:
            environment |= {"MASTER_ADDR": socket.gethostname(), "MASTER_PORT": str(free_port())}
            argv = [*launch, *argv]
        kills_before = memory_kills()
        process = start_process(argv, folder=self._folder, environment=environment, log=folder / "log.txt")
        self._stop.process = process
        if self._stop.by:  # The signal came before there was a process to tell.
            process.send_signal(signal.SIGTERM)
        code = process.wait()
        memory = memory_kills() > kills_before
        known: dict[str, Any] = {"exit_code": code} if code >= 0 else {"signal": -code}
        if code == 0:
            return self._end("done", exit_code=0)
        if self._stop.by:
            return self._end("stopped", by=self._stop.by, cause="out of memory" if memory else "", **known)
        if memory:
            return self._end("killed", cause="out of memory", **known)
        return self._end("killed" if code in (-signal.SIGKILL, 128 + signal.SIGKILL) else "failed", **known)

    def _environment(self, claim: Claim) -> dict[str, str]:
        """The job's environment, which modules and setup lines may have changed, under the step's own variables."""
        own = {**self._document["environment"], **self._task["environment"]}
        return {**self._environ, **own, "TRTX_ATTEMPT": str(claim.attempt), "TRTX_PARENT_PID": str(os.getpid())}


def _ended_badly(history: History) -> bool:
    """Whether a step's last attempt failed, or it was taken back and will not be made."""
    given_up = bool(history.claims) and history.claims[-1].kind == "revoke" and not history.claims[-1].retried
    last = history.attempts[-1] if history.attempts else None
    return given_up or (last is not None and last.end is not None and not last.ended_well)


def _why_unwanted(claim: Claim, earlier: tuple[Claim, ...]) -> str:
    if any(item.kind == "revoke" and item.token == claim.token for item in earlier):
        return "it was taken back"
    return "job " + next(item.job for item in earlier if item.token == claim.token) + " runs this task"


def _exit_code(end: End) -> int:
    if end.state == "done":
        return 0
    if end.state in ("blocked", "refused"):
        return EXIT_BLOCKED if end.state == "blocked" else EXIT_REFUSED
    return end.exit_code or (128 + end.signal if end.signal else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
