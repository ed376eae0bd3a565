"""Slurm's commands of a simulated cluster, its time, and two ways to run its tasks.

`Processes` runs the real program of a task, as a node would; `Pretend` writes only what it would leave, in no time.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtx.processes import signal_group, start_process
from trtx.runners.slurm.attempts import (
    Claim,
    End,
    attempt_folder,
    read_file,
    read_history,
    take_claim,
    valid_starts,
    write_end,
)
from trtx.runners.slurm.commands import Answer
from trtx.runners.slurm.groups import parse_indices
from trtx.runners.slurm.script import TASK_MODULE, TASKS_NAME
from trtx.runners.slurm.simulation import SimTask, SimulatedCluster

GARBAGE = "\x00\x7fELF|9|9\nsegfault at 0 ip\n"


class SimShell:
    """Answers sbatch, squeue, scontrol, scancel and sinfo for a simulated cluster; accounting is off."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        self._calls: dict[str, int] = {}
        self._programs: dict[str, Callable[[list[str]], Answer]] = {
            "sbatch": self._sbatch,
            "squeue": self._squeue,
            "scontrol": self._scontrol,
            "scancel": self._scancel,
            "sinfo": self._sinfo,
        }

    def call(self, argv: Sequence[str], *, timeout_s: float, exported: Sequence[str] | None = None) -> Answer:
        program, words = argv[0], list(argv[1:])
        number = self._calls[program] = self._calls.get(program, 0) + 1
        fault = self._cluster.faults.commands.get((program, number))
        if fault == "error":
            return Answer(1, err=f"{program}: error: Unable to contact slurm controller (connect failure)")
        if program not in self._programs:
            return Answer(1, err="Slurm accounting storage is disabled")
        answer = self._programs[program](words)
        if fault == "lost":
            return Answer(1, err=f"{program}: error: Socket timed out on send/recv operation")
        if fault == "slow":
            self._cluster.advance(timeout_s)
            return Answer(None)
        return {"empty": Answer(0), "garbage": Answer(0, GARBAGE)}.get(fault or "", answer)

    def _sbatch(self, words: list[str]) -> Answer:
        if "--test-only" in words:
            return Answer(0)
        script = Path(words[-1])
        lines = [line[8:] for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
        options = _options([*(shlex.split(line)[0] for line in lines), *words[:-1]])
        array, _, throttle = options["array"].partition("%")
        gpu = re.search(r"(?:gres=gpu|gpus|gpus-per-node)[=:](?:([^:=\s]+):)?(\d+)$", "\n".join(lines), re.MULTILINE)
        job = self._cluster.add(
            indices=parse_indices(array),
            group=options["job-name"].rpartition("-")[0],
            name=options["job-name"],
            comment=options["comment"],
            folder=Path(options["chdir"]),
            throttle=int(throttle) if throttle else None,
            dependency=_dependencies(options.get("dependency", "")),
            gpu=(gpu[1] or "", int(gpu[2])) if gpu else ("", 0),
            limit_s=int(options["time"]) * 60.0 if "time" in options else None,
            requeue="requeue" in options,
            exclude=tuple(options.get("exclude", "").split(",")),
        )
        return Answer(0, f"{job}\n")

    def _squeue(self, _words: list[str]) -> Answer:
        now = self._cluster.time
        lines = [
            f"{t.job}|{t.index}|{t.state}|{t.node}|N/A|{_elapsed(t, now)}|{t.reason}|{t.name}|{t.comment}"
            for t in self._cluster.tasks
        ]
        return Answer(0, "\n".join(lines) + "\n")

    def _scontrol(self, words: list[str]) -> Answer:
        tasks = [task for task in self._cluster.tasks if words[-1] in (str(task.job), task.id)]
        if not tasks:
            return Answer(1, err="slurm_load_jobs error: Invalid job id specified")
        lines = [
            f"JobId={t.job} ArrayJobId={t.job} ArrayTaskId={t.index} JobName={t.name} JobState={t.state} "
            f"Reason={t.reason} NodeList={t.node}"
            for t in tasks
        ]
        return Answer(0, "\n".join(lines) + "\n")

    def _scancel(self, words: list[str]) -> Answer:
        wanted = {word for word in words if not word.startswith("-")}
        pending_only = "--state=PENDING" in words
        for task in self._cluster.tasks:
            if wanted & {str(task.job), task.id} and (task.state == "PENDING" or not pending_only):
                self._cluster.cancel(task)
        return Answer(0)

    def _sinfo(self, _words: list[str]) -> Answer:
        return Answer(
            0, "".join(f"gpu:{n.gpu}:{n.gpus}|sim*\n" if n.gpus else "(null)|sim*\n" for n in self._cluster.nodes)
        )


def _options(words: Sequence[str]) -> dict[str, str]:
    """Long options, later ones over earlier ones; those without a value have an empty one."""
    pairs = [word.removeprefix("--").partition("=") for word in words]
    return {name: value for name, _, value in pairs}


def _dependencies(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    parts = [word.split(":") for word in text.split(",") if word]
    return tuple((kind, tuple(targets)) for kind, *targets in parts)


def _elapsed(task: SimTask, now: float) -> str:
    seconds = int((task.ended if task.is_over else now) - task.began) if task.starts else 0
    return f"{seconds // 60}:{seconds % 60:02}"


class SimClock:
    """The time of a simulated cluster: it goes on when somebody waits, and then at once."""

    def __init__(self, cluster: SimulatedCluster, *, real: bool = False) -> None:
        self._cluster, self._real = cluster, real

    def now(self) -> float:
        return self._cluster.time

    def sleep(self, seconds: float) -> None:
        if self._real:
            time.sleep(seconds)
        self._cluster.advance(seconds)


@dataclass
class Processes:
    """Runs tasks as processes of this machine, by the program that runs them on nodes. For a clock with `real`."""

    environ: Mapping[str, str]

    def begin(self, folder: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", TASK_MODULE, TASKS_NAME]
        log = folder / f"slurm-{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}.out"
        return start_process(argv, folder=folder, environment={**self.environ, **environ}, log=log)

    def ended(self, running: subprocess.Popen[bytes], elapsed_s: float) -> int | None:
        return running.poll()

    def kill(self, running: subprocess.Popen[bytes]) -> None:
        """The step ends with the task's program, which it follows."""
        signal_group(running, signal.SIGKILL)
        running.wait()


@dataclass
class Pretend:
    """Pretends to run tasks: `durations` in seconds and `codes` by step, 1 s and 0 where not given."""

    durations: Mapping[str, float] = field(default_factory=dict)
    codes: Mapping[str, int] = field(default_factory=dict)
    # Steps in the order in which their executions ended well, for whoever counts.
    finished: list[str] = field(default_factory=list)

    def begin(self, folder: Path, environ: Mapping[str, str]) -> dict[str, Any]:
        document = read_file(folder / TASKS_NAME) or {}
        index = int(environ["SLURM_ARRAY_TASK_ID"]) + document["offset"]
        task = document["tasks"][str(index)]
        step_folder = (folder / task["folder"]).resolve()
        restart = int(environ.get("SLURM_RESTART_COUNT", "0"))
        wish = Claim("start", document["token"], environ["SLURM_ARRAY_JOB_ID"], index, restart)
        claim, earlier = take_claim(step_folder, dataclasses.replace(wish, node=environ["SLURMD_NODENAME"]))
        running = {
            "step": task["step"],
            "claim": claim,
            "step_folder": step_folder,
            "code": 78,
            "news": folder / "../../news",
        }
        if claim.number in {start.number for start in valid_starts([*earlier, claim])}:
            running["code"] = None
            needs = [read_history((folder / need).resolve()) for need in task["needs"].values()]
            running["blocked"] = any(history.done is None for history in needs)
            self._tell(running, "started")
        return running

    def ended(self, running: dict[str, Any], elapsed_s: float) -> int | None:
        if running["code"] is not None:
            return int(running["code"])
        step, code = running["step"], self.codes.get(running["step"], 0)
        if running["blocked"]:
            end, code = End("blocked", what="an input has not ended well"), 75
        elif elapsed_s < self.durations.get(step, 1.0):
            return None
        else:
            end = End("done" if code == 0 else "failed", exit_code=code)
            self.finished += [step] if code == 0 else []
        running["code"] = code
        write_end(attempt_folder(running["step_folder"], running["claim"].attempt), end)
        self._tell(running, "ended")
        return code

    def kill(self, running: dict[str, Any]) -> None:
        running["code"] = running["code"] or 137

    def _tell(self, running: dict[str, Any], what: str) -> None:
        claim = running["claim"]
        (running["news"] / f"{claim.index}.{claim.number}.{what}").touch()
