"""Runs one rank of a task over several nodes: `python -m trtx.runners.slurm.rank COMMAND…`, started by srun.

Sets what torch.distributed's `env://` reads, from what srun sets; MASTER_ADDR and MASTER_PORT come from the task. Stays
beside the rank, and leaves word for the others when it died without any.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from trtx.runners.slurm.attempts import attempt_folder, create_once


def rank_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a rank. Raises KeyError when srun's are absent."""
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_NTASKS"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(int(environ["SLURM_NTASKS"]) // int(environ["SLURM_NNODES"])),
        "NODE_RANK": environ["SLURM_NODEID"],
        # For the worker: RANK may stand in anybody's environment.
        "TRTX_RANK": environ["SLURM_PROCID"],
        "TRTX_RANKS": environ["SLURM_NTASKS"],
    }


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code, 128 + the signal it died of as shells do."""
    environment = {**os.environ, **rank_environment(os.environ)}
    environment.pop("TRTX_PARENT_PID", None)  # The parent of a rank is not the task.
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if process is not None:
            process.send_signal(number)

    # srun signals every process of the step: the rank has it too, or gets it here.
    signal.signal(signal.SIGTERM, pass_on)
    process = subprocess.Popen(argv, env=environment)
    code = process.wait()
    if code < 0 and environment["RANK"] != "0":
        _tell_death(environment, signal.Signals(-code).name)
    return code if code >= 0 else 128 - code


def _tell_death(environ: Mapping[str, str], name: str) -> None:
    """Write what `trtx.stages.ranks` reads of a rank that failed."""
    what = f"it was killed by {name}"
    failure = {"kind": "StepFailed", "what": what, "why": "it crashed, or needed more memory than there was", "fix": ""}
    body = {"failure": failure, "died": True, "host": environ.get("SLURMD_NODENAME", ""), "time": time.time()}
    folder = attempt_folder(Path.cwd(), int(environ.get("TRTX_ATTEMPT", "1")))
    create_once(folder / "ranks" / f"{environ['RANK']}.json", json.dumps(body).encode())
    # Rank 0 may tell of it before srun ends all.
    deadline = time.monotonic() + 20.0
    while not (folder / "result.json").exists() and (folder / "ranks/staged.json").exists():
        if time.monotonic() > deadline:
            return
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
