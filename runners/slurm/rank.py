"""Becomes one rank of a task over several nodes: `python -m trtx.runners.slurm.rank COMMAND…`, started by srun.

Sets what torch.distributed's `env://` reads, from what srun sets; MASTER_ADDR and MASTER_PORT come from the task.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping


def rank_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a rank. Raises KeyError when srun's are absent."""
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_NTASKS"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(int(environ["SLURM_NTASKS"]) // int(environ["SLURM_NNODES"])),
        "NODE_RANK": environ["SLURM_NODEID"],
    }


def main(argv: list[str]) -> None:
    """Replace this process by the command."""
    environment = {**os.environ, **rank_environment(os.environ)}
    environment.pop("TRTX_PARENT_PID", None)  # The parent of a rank is slurmstepd, not the task.
    os.execvpe(argv[0], argv, environment)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
