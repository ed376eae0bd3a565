"""Why a tool of TensorRT-LLM ended, where its last lines say something that is known."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """What a message in a log means, and what to do about it."""

    pattern: str
    why: str
    fix: str


# The first that matches counts. Messages: TensorRT's, CUDA's and TensorRT-LLM's own, as in the issues named.
CAUSES: tuple[Cause, ...] = (
    Cause(
        r"CUDA out of memory|OutOfMemory|cudaErrorMemoryAllocation|CUDA error: out of memory|Requested size was \d+",
        "the GPU has too little free memory",
        "lower engine.limits or engine.kv_cache.memory_fraction, use more GPUs (parallelism), or quantize",
    ),
    # tensorrtllm_backend #531, TensorRT-LLM #1038
    Cause(
        r"serializationVersion|Version tag does not match|not compatible with this version of TensorRT|"
        r"deserialization.*version mismatch",
        "the engine was built by another version of TensorRT",
        "build and run it in the same container: write engine.release, and plan again",
    ),
    Cause(
        r"generated on an incompatible device|incompatible compute capability|target GPU SM",
        "the engine was built for another compute capability",
        "build it on the GPU type that it runs on",
    ),
    Cause(
        r"driver version is insufficient|forward compatibility was attempted|CUDA_ERROR_COMPAT_NOT_SUPPORTED",
        "the NVIDIA driver is too old for the container's CUDA",
        "update the driver, or choose an older engine.release",
    ),
    Cause(
        r"No CUDA GPUs are available|no CUDA-capable device|Found no NVIDIA driver",
        "the step sees no GPU",
        "start the container with GPUs, and look at CUDA_VISIBLE_DEVICES",
    ),
    Cause(
        r"unrecognized arguments|No such option|no such option|invalid choice|Got unexpected extra argument",
        "this installation reads another command line than the tables have for its release",
        "read it: trtx probe IMAGE --write FILE, and name the file in the recipe",
    ),
    # #2078, #1895, #1741
    Cause(
        r"No module named '?(modelopt|nvidia_modelopt|ammo)",
        "the container has no ModelOpt",
        "use the release's own image, or write engine.converter: trtx",
    ),
    # #8961, #9680, #2594
    Cause(
        r"MPI_ERR|PMIX ERROR|PMI2?_Init|There are not enough slots available|orte_init failed",
        "the ranks could not find one another",
        "start them by srun --mpi=pmix, or on one host by mpirun",
    ),
    # #753, #1047, #2021
    Cause(
        r"(?i)world.?size.*(not match|mismatch|!=|must equal)|MPI size.*(not match|!=)",
        "the number of ranks is not that of the checkpoint or engine",
        "convert and build again with the recipe's parallelism",
    ),
    Cause(r"No space left on device", "a disk is full", "free space, or set TMPDIR to a larger disk"),
)
KILLED = Cause("", "it was killed, most often because the machine ran out of memory", "ask for more memory")


def find_cause(lines: Sequence[str], status: int) -> Cause | None:
    """The known cause in the last lines of a log, or of the exit status; None when nothing is known."""
    text = "\n".join(lines)
    for cause in CAUSES:
        if re.search(cause.pattern, text):
            return cause
    return KILLED if status in (-signal.SIGKILL, 128 + signal.SIGKILL) else None
