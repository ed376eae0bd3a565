"""Jobs run by the real worker in processes of their own, with a stage that does what a line of Python says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtx.files import write_text
from trtx.plan.steps import Plan
from trtx.stages.job import JOB_NAME, PARENT_VARIABLE, dump_file

# `context` and `os`, `sys`, `time`, `Path` are known to the line; the entry's file is written after it.
WORKER = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from trtx.stages import worker

def run(params, context):
    exec(os.environ["STAGE_BODY"])
    (context.output / "output.txt").write_text("made")
    return {}

worker.load_stage = lambda name: SimpleNamespace(run=run)
sys.exit(worker.main(sys.argv[1:]))
"""


def write_job(folder: Path, plan: Plan, step_id: str) -> Path:
    """job.json of a step, in a folder of its own; returns its path."""
    path = folder / step_id.replace("/", ".") / JOB_NAME
    write_text(path, dump_file(plan.step(step_id).job(plan)))
    return path


class WorkerProcess(subprocess.Popen[str]):
    """A worker that is killed when the block that waits for it fails."""

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, *details)


def start_worker(job: Path, body: str, environ: Mapping[str, str] | None = None) -> WorkerProcess:
    """Start the worker on a job; its output is in `stdout`. It ends with this process."""
    own = {"STAGE_BODY": body, PARENT_VARIABLE: str(os.getpid())}
    return WorkerProcess(
        [sys.executable, "-c", WORKER, str(job)],
        env={**(os.environ if environ is None else environ), **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
