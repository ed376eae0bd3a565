"""Memory arithmetic: what one rank of an engine needs, before anything is computed.

For one rank, with L layers, H hidden and I intermediate size, A attention and G key-value heads of D columns, and u
matrices (1, or 2 with a gate) on the way up in each of M layers with an MLP:

- linear weights: 1/pipeline × (L·(H·(A+2G)·D + A·D·H) + M·(u+1)·H·I)/tensor numbers, in the algorithm's bits, and a
  4-byte scale for every output row or group of columns in a row, two where there are zero points; experts the same, in
  every rank, and their routers in the engine's dtype; embedding and head: V·H numbers each (one when tied), learned
  positions, norms (2L+1)·H, all in the engine's dtype and in every rank. Biases, norms of heads and what `exclude`
  keeps are not counted.
- KV cache: 2·G·D numbers per token and layer, divided like the weights; in whole blocks; block 0 is never given out.
  A layer with a window keeps as much as any other.
- activations: the widest moment of one step, T·(2H + max((A+2G)·D, u·I)/tensor + what its experts take) numbers for
  T = max_num_tokens, and logits of max_batch_size·V in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SCALE_BYTES = 4

# Weight bits and columns per scale (None: one scale per row); trtx.models.formats has the same facts. Formats that are
# not here are stored dequantized, in the engine's dtype.
WEIGHT_BITS: dict[str, tuple[int, int | None]] = {
    "fp8": (8, None),
    "fp8_dynamic": (8, None),
    "int8_sq": (8, None),
    "int8_wo": (8, None),
    "int4_wo": (4, 128),
    "int4_awq": (4, 128),
    "int4_gptq": (4, 128),
    "w4a8_awq": (4, 128),
}

GIB = float(1 << 30)


class ModelShape(Protocol):
    """The sizes of a decoder-only model; trtx.models.config.ModelConfig is one."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def tie_word_embeddings(self) -> bool: ...
    @property
    def num_mlps(self) -> int: ...
    @property
    def up_matrices(self) -> int: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def expert_size(self) -> int: ...
    @property
    def expert_activations(self) -> int: ...
    @property
    def learned_positions(self) -> int: ...


@dataclass(frozen=True)
class Setup:
    """What an engine is built with: the algorithm and KV format, the dtype, limits and ranks.

    `kv_size_bytes` is a fixed size of the KV cache, None for a share of what is free. `group_size` is columns per scale
    where it is not the algorithm's own, -1 for whole rows; with `zero_points` every scale has an offset beside it.
    """

    algorithm: str
    kv_cache: str
    dtype: str
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    tokens_per_block: int
    kv_size_bytes: int | None = None
    tensor: int = 1
    pipeline: int = 1
    group_size: int | None = None
    zero_points: bool = False


@dataclass(frozen=True)
class Need:
    """Bytes that one rank needs. `kv_least_bytes` holds one sequence of max_seq_len."""

    weights_bytes: int
    kv_bytes_per_token: int
    kv_least_bytes: int
    kv_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.activation_bytes


def compute_need(model: ModelShape, setup: Setup) -> Need:
    """Bytes of one rank, by the formulas above; the KV cache has its fixed size, else room for one whole sequence."""
    per_token = kv_bytes_per_token(model, setup)
    num_blocks = 1 + -(-setup.max_seq_len // setup.tokens_per_block)
    least = num_blocks * setup.tokens_per_block * per_token
    return Need(
        weights_bytes=weight_bytes(model, setup),
        kv_bytes_per_token=per_token,
        kv_least_bytes=least,
        kv_bytes=least if setup.kv_size_bytes is None else setup.kv_size_bytes,
        activation_bytes=activation_bytes(model, setup),
    )


def weight_bytes(model: ModelShape, setup: Setup) -> int:
    """Bytes of one rank's weights."""
    dtype_bytes = DTYPE_BYTES[setup.dtype]
    up_rows = model.up_matrices * model.intermediate_size
    mixtures = model.num_layers - model.num_mlps
    cut = (
        (model.num_layers, (model.num_heads + 2 * model.num_kv_heads) * model.head_dim, model.hidden_size),
        (model.num_layers, model.hidden_size, model.num_heads * model.head_dim),
        (model.num_mlps, up_rows, model.hidden_size),
        (model.num_mlps, model.hidden_size, model.intermediate_size),
    )
    experts = (
        (mixtures * model.num_experts, 2 * model.expert_size, model.hidden_size),
        (mixtures * model.num_experts, model.hidden_size, model.expert_size),
    )
    linears = sum(matrix_bytes(setup, *each) for each in cut) / setup.tensor
    linears += sum(matrix_bytes(setup, *each) for each in experts)
    linears += mixtures * model.num_experts * model.hidden_size * dtype_bytes
    share = -(-model.num_layers // setup.pipeline) / model.num_layers
    whole = (2 - model.tie_word_embeddings) * model.vocab_size + 2 * model.num_layers + 1 + model.learned_positions
    return round(share * linears) + whole * model.hidden_size * dtype_bytes


def matrix_bytes(setup: Setup, count: int, rows: int, columns: int) -> float:
    """Bytes of so many matrices and their scales in the algorithm's bits."""
    if setup.algorithm not in WEIGHT_BITS:
        return count * rows * columns * DTYPE_BYTES[setup.dtype]
    bits, own = WEIGHT_BITS[setup.algorithm]
    group = setup.group_size or own
    scales = rows * (columns // group if group and group > 0 else 1) * (1 + setup.zero_points)
    return count * (rows * columns * bits / 8 + scales * SCALE_BYTES)


def kv_bytes_per_token(model: ModelShape, setup: Setup) -> int:
    """Bytes that one token takes in one rank's KV cache."""
    number_bytes = 1 if setup.kv_cache in ("fp8", "int8") else DTYPE_BYTES[setup.dtype]
    heads = max(1, model.num_kv_heads // setup.tensor)
    return 2 * heads * model.head_dim * number_bytes * -(-model.num_layers // setup.pipeline)


def activation_bytes(model: ModelShape, setup: Setup) -> int:
    """Bytes of the widest moment of one step, and of the logits."""
    up_rows = model.up_matrices * model.intermediate_size
    widest = max((model.num_heads + 2 * model.num_kv_heads) * model.head_dim, up_rows)
    numbers = setup.max_num_tokens * (2 * model.hidden_size + widest // setup.tensor + model.expert_activations)
    return numbers * DTYPE_BYTES[setup.dtype] + setup.max_batch_size * model.vocab_size * DTYPE_BYTES["float32"]


@dataclass(frozen=True)
class Misfit:
    """Why an engine cannot run, in words. `setting` is the engine setting it is about, None for the device."""

    what: str
    why: str
    fix: str
    setting: tuple[str, ...] | None = None


def find_misfit(need: Need, setup: Setup, memory_bytes: int, device: str) -> Misfit | None:
    """Refuse what cannot fit into `memory_bytes` of `device`; None when it fits or the memory is unknown (0)."""
    if need.kv_bytes < need.kv_least_bytes:
        return Misfit(
            f"a KV cache of {_gib(need.kv_bytes)} cannot hold one sequence of {setup.max_seq_len} tokens",
            f"a token takes {need.kv_bytes_per_token} bytes, in blocks of {setup.tokens_per_block} tokens",
            f"give it at least {_gib(need.kv_least_bytes)}, or lower max_seq_len",
            ("kv_cache", "size"),
        )
    if memory_bytes and need.total_bytes > memory_bytes:
        return Misfit(
            f"the engine needs {_gib(need.total_bytes)}, and {device} has {_gib(memory_bytes)}",
            f"weights {_gib(need.weights_bytes)}, KV cache {_gib(need.kv_bytes)}"
            f"{'' if setup.kv_size_bytes else ' for one whole sequence'}, activations {_gib(need.activation_bytes)}",
            "use fewer bits, a larger device, more tensor parallelism, or lower max_seq_len and max_num_tokens",
        )
    return None


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"
