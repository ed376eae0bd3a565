"""Memory: what one rank of an engine needs on its GPU, and what quantizing needs of GPUs or of the host.

One rank holds 1/(tp·pp) of all linear weights (experts included: moe_tp · moe_ep is tp), a copy of the embeddings, and
one sequence of its KV cache at least. Activations are not counted, so that what is refused here does not fit for sure.
"""

from __future__ import annotations

from collections.abc import Iterator

from trtx.backends.tensorrt_llm.convertible import choose_converter, is_converted
from trtx.backends.tensorrt_llm.refusals.base import Refusal, Subject
from trtx.backends.tensorrt_llm.spec import Shape

GIB = float(1 << 30)
# Bits of a weight with its scales: groups of 128 columns, blocks of 16 or 32, or one scale a row.
WEIGHT_BITS = {
    "fp8": 8.0,
    "fp8_dynamic": 8.0,
    "fp8_block_wo": 8.0,
    "int8_sq": 8.0,
    "int8_wo": 8.0,
    "int4_wo": 4.125,
    "int4_awq": 4.125,
    "int4_gptq": 4.125,
    "w4a8_awq": 4.125,
    "nvfp4": 4.5,
    "nvfp4_awq": 4.5,
    "mxfp4": 4.25,
    "mxfp8": 8.25,
}
PLAIN_BITS = 16.0
# docs/source/legacy/architecture/workflow.md:149 of 1.3.0rc3: FP8 of a 70B model needs 210 GB of GPU memory.
QUANTIZING_BYTES = 3
WORKFLOW = "docs/source/legacy/architecture/workflow.md:149 of 1.3.0rc3"


def weight_bytes(shape: Shape, algorithm: str, tensor: int, pipeline: int) -> int:
    """Bytes of one rank's weights; embedding and head stay in 16 bits, the embedding in every rank."""
    outside = shape.vocab_size * shape.hidden_size
    inside = max(0, shape.num_parameters - 2 * outside)
    bits = WEIGHT_BITS.get(algorithm, PLAIN_BITS)
    return round(inside * bits / 8 / (tensor * pipeline) + outside * PLAIN_BITS / 8)


def kv_bytes_per_token(shape: Shape, kv_cache: str, tensor: int, pipeline: int) -> int:
    """Bytes of one token in one rank's KV cache; a latent one is in every tensor rank whole."""
    heads = max(1, shape.num_kv_heads // tensor)
    numbers = shape.latent_channels or 2 * heads * shape.head_dim
    return numbers * -(-shape.num_layers // pipeline) * (1 if kv_cache in ("fp8", "int8") else 2)


def check_gpu(subject: Subject) -> Iterator[Refusal]:
    shape, memory = subject.shape, subject.gpu.memory_bytes
    if shape is None or not memory:
        return
    ways, limits = subject.parallelism, subject.engine.limits
    weights = weight_bytes(shape, subject.algorithm, ways.tensor, ways.pipeline)
    tokens = -(-limits.max_seq_len // ways.context)
    cache = tokens * kv_bytes_per_token(shape, subject.variant.kv_cache, ways.tensor, ways.pipeline)
    if weights + cache <= memory:
        return
    least = next(
        (n for n in (1, 2, 4, 8, 16, 32, 64) if weight_bytes(shape, subject.algorithm, n, 1) + cache <= memory), None
    )
    fix = "use fewer bits, or a larger GPU"
    if least is not None and least > ways.tensor:
        fix += f", or parallelism.tensor: {least}"
    yield Refusal(
        "gpu-memory",
        ("gpu",),
        f"a rank needs {_gib(weights + cache)}, and {subject.gpu.name} has {_gib(memory)}",
        f"weights {_gib(weights)} of {shape.num_parameters / 1e9:.1f}B parameters, KV cache {_gib(cache)} for one "
        f"sequence of {limits.max_seq_len} tokens",
        fix,
        "sizes of config.json",
    )


def check_quantizing(subject: Subject) -> Iterator[Refusal]:
    """quantize.py keeps the model and what it quantizes to in the memory of its GPUs."""
    shape, memory = subject.shape, subject.gpu.memory_bytes
    if shape is None or not memory or subject.flow != "engine" or subject.variant.algorithm == "none":
        return
    if choose_converter(subject) != "release" or is_converted(subject):
        return
    needed = QUANTIZING_BYTES * shape.num_parameters
    gpus = min(subject.world_size, subject.parallelism.gpus_per_node)
    if subject.job.gpus is not None:
        gpus = int(subject.job.gpus.rpartition(":")[2])
    if gpus * memory < needed:
        yield Refusal(
            "quantizing-gpu-memory",
            ("quantization", "algorithm"),
            f"quantize.py needs {_gib(needed)} of GPU memory, and {gpus} × {subject.gpu.name} have "
            f"{_gib(gpus * memory)}",
            f"it takes about {QUANTIZING_BYTES} bytes a parameter: 210 GB for 70B",
            f"ask for {-(-needed // memory)} GPUs in the target's job, or write engine.converter: trtx",
            WORKFLOW,
        )


def check_host(subject: Subject) -> Iterator[Refusal]:
    """trtx quantizes in the memory of the host, where all weights stand in 16 bits at least."""
    shape = subject.shape
    if shape is None or subject.variant.algorithm == "none" or not subject.host_bytes:
        return
    if subject.flow == "engine" and choose_converter(subject) == "release":
        return
    needed = 2 * shape.num_parameters
    if subject.host_bytes < needed:
        yield Refusal(
            "quantizing-host-memory",
            ("quantization", "algorithm"),
            f"quantizing needs {_gib(needed)} of memory, and {subject.host} has {_gib(subject.host_bytes)}",
            f"{shape.num_parameters / 1e9:.1f}B parameters stand in 16 bits while they are calibrated",
            "ask for more: runners.NAME.stages.calibrate.memory, or run it on a larger machine",
            "trtx",
        )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"


CHECKS = (check_gpu, check_quantizing, check_host)
