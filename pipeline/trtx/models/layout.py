"""Which tensors each rank's weight file holds: a pure function of shapes and formats. Imports no torch.

Compiling takes every shape from here and never sees a weight file; converting checks what it wrote against it.

Sharding, for `tensor` × `pipeline` ranks (rank = pipeline index × tensor + tensor index):

| tensor | tensor parallel | pipeline parallel |
|---|---|---|
| embed, positions | whole on every rank | first stage; embed also on the last when it is tied to the head |
| attention.qkv | output rows by head: the rank's query, then key, then value heads | its own layers |
| attention.out | input columns by head | its own layers |
| mlp.up, mlp.gate_up | output rows: the rank's gate rows, then its up rows | its own layers |
| mlp.down | input columns | its own layers |
| norms | whole | its own layers; final_norm on the last stage |
| mlp.router, and mlp.gate_up and mlp.down of all experts | not cut: one rank only | its own layers |
| lm_head | output rows; absent when tied, then every rank of the last stage computes all logits | last stage |
| rope.inv_freq, local_rope.inv_freq | whole | stages with a layer that uses it |

Key and value heads are repeated when there are more tensor ranks than such heads. What runs along the input columns
of a linear (pre_quant_scale, groups of a group-wise format) is cut with them. Biases of `attention.out` and
`mlp.down` stand on tensor rank 0 and are zero on the others, because those outputs are summed over the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trtx.errors import UsageProblem
from trtx.files import canonical_json, sha256_bytes
from trtx.models.architecture import Architecture, ExpertNames
from trtx.models.config import DType, ModelConfig, load_architecture
from trtx.models.format_checks import check_cut, check_format
from trtx.models.formats import SAME_PROGRAM, QuantFormat, is_excluded
from trtx.models.linear_layout import (
    Cut,
    ExpertLinears,
    LinearSpec,
    TensorSpec,
    expert_tensors,
    linear_tensors,
)


@dataclass(frozen=True)
class Shard:
    """One rank's share of the model.

    `heads` and `kv_heads` are half-open ranges of global head numbers, `layers` of global layer numbers;
    `intermediate` and `vocab` of rows of gate/up and lm_head.
    """

    tensor: int
    pipeline: int
    rank: int
    layers: range
    heads: range
    kv_heads: range
    intermediate: range
    vocab: range

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    @property
    def is_first(self) -> bool:
        """Whether this rank embeds tokens."""
        return self.rank < self.tensor

    @property
    def is_last(self) -> bool:
        """Whether this rank computes logits."""
        return self.rank >= self.tensor * (self.pipeline - 1)


@dataclass(frozen=True)
class Plain:
    """A tensor in the engine's dtype that the checkpoint has, too."""

    name: str
    shape: tuple[int, ...]
    source: str


@dataclass(frozen=True)
class KvScales:
    """The two scales of a layer's quantized cache; `name` and `source` are of the attention."""

    name: str
    source: str


@dataclass(frozen=True)
class RopeTable:
    """The frequencies of a RoPE, one for each pair of channels; longrope has a row for short and one for long."""

    name: str
    channels: int
    theta: float
    scaling: dict[str, Any] | None

    @property
    def shape(self) -> tuple[int, ...]:
        pairs = self.channels // 2
        return (2, pairs) if self.scaling and self.scaling["rope_type"] == "longrope" else (pairs,)


RankPart = Plain | LinearSpec | ExpertLinears | KvScales | RopeTable


@dataclass(frozen=True)
class Layout:
    """All tensors of one rank file, in file order, and the digest that ties programs to weights.

    The digest covers everything a program has compiled in, so also the numbers of ModelConfig that leave no trace
    in shapes (norm epsilon, head count), but not the dtype that the checkpoint happened to be stored in, nor which of
    the tensor ranks this is: their shapes are alike, and one program serves all of them.
    """

    tensors: tuple[TensorSpec, ...]
    sha256: str


def make_layout(
    config: ModelConfig, quantization: QuantFormat, dtype: DType, tensor: int = 1, pipeline: int = 1, rank: int = 0
) -> Layout:
    """The tensors of one rank.

    Raises UsageProblem when the model cannot be cut or quantized this way.
    """
    shard = make_shard(config, tensor, pipeline, rank)
    check_format(config, quantization)
    check_cut(quantization, tensor)
    parts = rank_parts(config, quantization, shard)
    tensors = tuple(spec for part in parts for spec in _part_tensors(part, dtype))
    facts = {
        "model": config.model_dump(mode="json", exclude={"dtype"}),
        "algorithm": SAME_PROGRAM.get(quantization.algorithm, quantization.algorithm),
        "kv_cache": quantization.kv_cache,
        "dtype": dtype,
        "rank": [tensor, pipeline, rank // tensor],
        "tensors": [[spec.name, list(spec.shape), spec.dtype] for spec in tensors],
    }
    return Layout(tensors, sha256_bytes(canonical_json(facts)))


def make_shard(config: ModelConfig, tensor: int = 1, pipeline: int = 1, rank: int = 0) -> Shard:
    """One rank's share.

    Raises UsageProblem when heads, intermediate or vocabulary rows do not divide by `tensor`, or there are
    fewer layers than stages.
    """
    _check_divisible(config, tensor, pipeline)
    stage, index = divmod(rank, tensor)
    if not 0 <= stage < pipeline:
        raise UsageProblem(f"there is no rank {rank} among {tensor} × {pipeline}")
    kv_shards = min(tensor, config.num_kv_heads)
    return Shard(
        tensor=tensor,
        pipeline=pipeline,
        rank=rank,
        layers=_split(config.num_layers, pipeline, stage),
        heads=_split(config.num_heads, tensor, index),
        kv_heads=_split(config.num_kv_heads, kv_shards, index * kv_shards // tensor),
        intermediate=_split(config.intermediate_size, tensor, index),
        vocab=range(config.vocab_size) if config.tie_word_embeddings else _split(config.vocab_size, tensor, index),
    )


def rank_parts(config: ModelConfig, quantization: QuantFormat, shard: Shard) -> Iterator[RankPart]:
    """What one rank holds, in file order.

    Raises UsageProblem when the model cannot be quantized this way.
    """
    names, tied = load_architecture(config.architecture), config.tie_word_embeddings
    hidden = config.hidden_size
    if shard.is_first or (shard.is_last and tied):
        embed = names.base_source(names.embed)
        yield Plain("embed.weight", (config.vocab_size, hidden), f"{embed}.weight")
    if shard.is_first and names.positions:
        positions = names.base_source(names.positions)
        yield Plain("positions.weight", (config.max_position_embeddings, hidden), f"{positions}.weight")
    for layer in shard.layers:
        yield from _layer_parts(config, names, quantization, shard, layer)
    if shard.is_last:
        yield from _norm("final_norm", names.base_source(names.final_norm), hidden, names)
        if not tied:
            yield head_linear(config, shard)
    yield from rope_tables(config, shard)


def _layer_parts(
    config: ModelConfig, names: Architecture, quantization: QuantFormat, shard: Shard, layer: int
) -> Iterator[RankPart]:
    here = f"layers.{layer}"
    for name, source in names.layer_norms:
        yield from _norm(f"{here}.{name}", names.layer_source(layer, source), config.hidden_size, names)
    for which, source in zip("qk", names.head_norms or (), strict=False):
        yield from _norm(f"{here}.attention.{which}_norm", names.layer_source(layer, source), config.head_dim, names)
    yield from layer_linears(config, quantization, shard, layer)
    if config.has_experts(layer):
        router = names.layer_source(layer, _expert_names(names).router)
        yield Plain(f"{here}.mlp.router.weight", (config.num_experts, config.hidden_size), f"{router}.weight")
        yield from expert_linears(config, quantization, layer)
    if quantization.kv_cache != "auto":
        attention = names.layer_source(layer, names.qkv[0]).rpartition(".")[0]
        yield KvScales(f"{here}.attention", attention)


def layer_linears(config: ModelConfig, quantization: QuantFormat, shard: Shard, layer: int) -> tuple[LinearSpec, ...]:
    """The linears of one layer on one rank: qkv, out, gate_up or up, down; without the last two if it has experts."""
    names = load_architecture(config.architecture)
    hidden, middle = range(config.hidden_size), shard.intermediate

    fused = len(names.qkv) == 1

    def make(name: str, parts: list[tuple[str, range]], columns: range, cut: Cut, bias: bool) -> LinearSpec:
        sources = tuple(names.layer_source(layer, source) for source, _ in parts)
        rows = tuple(rows for _, rows in parts)
        own = _format(quantization, sources)
        return LinearSpec(f"layers.{layer}.{name}", sources, rows, columns, cut, bias, own, fused)

    heads = _scale(shard.heads, config.head_dim)
    out_bias = config.attention_bias and names.out_has_bias
    attention = (
        make("attention.qkv", _qkv_rows(config, names, shard), hidden, "rows", config.attention_bias),
        make("attention.out", [(names.out, hidden)], heads, "columns", out_bias),
    )
    if config.has_experts(layer):
        return attention
    up = _up_rows(config, names, shard)
    return (
        *attention,
        make("mlp.gate_up" if names.gated else "mlp.up", up, hidden, "rows", config.mlp_bias),
        make("mlp.down", [(names.down, hidden)], middle, "columns", config.mlp_bias),
    )


def _qkv_rows(config: ModelConfig, names: Architecture, shard: Shard) -> list[tuple[str, range]]:
    """Which rows of which source the rank's query, key and value heads are."""
    d, counts = config.head_dim, (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    each = (shard.heads, shard.kv_heads, shard.kv_heads)
    if len(names.qkv) > 1:
        return [(source, _scale(heads, d)) for source, heads in zip(names.qkv, each, strict=True)]
    (fused,) = names.qkv
    if names.qkv_fusion == "by_head":
        starts = [(3 * head + part) * d for part, heads in enumerate(each) for head in heads]
        return [(fused, range(start, start + d)) for start in starts]
    starts = [sum(counts[:part]) * d for part in range(3)]
    return [(fused, _shift(_scale(heads, d), start)) for heads, start in zip(each, starts, strict=True)]


def _up_rows(config: ModelConfig, names: Architecture, shard: Shard) -> list[tuple[str, range]]:
    """Which rows of which source the rank's gate and up rows are."""
    if names.gated and len(names.up) == 1:
        (fused,) = names.up
        return [(fused, shard.intermediate), (fused, _shift(shard.intermediate, config.intermediate_size))]
    return [(source, shard.intermediate) for source in names.up]


def head_linear(config: ModelConfig, shard: Shard) -> LinearSpec:
    """The output projection, never quantized; a tied one has no tensors of its own."""
    head = load_architecture(config.architecture).head
    return LinearSpec("lm_head", (head,), (shard.vocab,), range(config.hidden_size), "rows", False, QuantFormat())


def rope_tables(config: ModelConfig, shard: Shard) -> list[RopeTable]:
    """The RoPEs that the rank's layers use."""
    found, channels = [], config.rotated_channels
    local = [config.has_local_rope(layer) for layer in shard.layers]
    if channels and not all(local):
        found.append(RopeTable("rope", channels, config.rope_theta, config.rope_scaling))
    if config.local_rope_theta is not None and any(local):
        found.append(RopeTable("local_rope", channels, config.local_rope_theta, config.local_rope_scaling))
    return found


def _norm(name: str, source: str, size: int, names: Architecture) -> Iterator[Plain]:
    for part in ("weight", "bias") if names.norm == "layer" else ("weight",):
        yield Plain(f"{name}.{part}", (size,), f"{source}.{part}")


def expert_linears(config: ModelConfig, quantization: QuantFormat, layer: int) -> tuple[ExpertLinears, ...]:
    """The linears of the experts of one layer: gate_up, down.

    Raises UsageProblem when some experts are excluded from quantization and others are not.
    """
    names = load_architecture(config.architecture)
    of_expert, hidden, middle = _expert_names(names), range(config.hidden_size), range(config.expert_size)

    def make(name: str, sources: tuple[str, ...], rows: range, columns: range, cut: Cut) -> ExpertLinears:
        here = f"layers.{layer}.mlp.{name}"
        each = [
            tuple(names.layer_source(layer, source.format(number)) for source in sources)
            for number in range(config.num_experts)
        ]
        own = _format(quantization, tuple(source for expert in each for source in expert))
        specs = tuple(
            LinearSpec(here, expert, (rows,) * len(expert), columns, cut, False, own, is_expert=True) for expert in each
        )
        return ExpertLinears(here, specs)

    return (
        make("gate_up", (of_expert.gate, of_expert.up), middle, hidden, "rows"),
        make("down", (of_expert.down,), hidden, middle, "columns"),
    )


def _expert_names(names: Architecture) -> ExpertNames:
    assert names.experts is not None  # noqa: S101 - the architecture has them
    return names.experts


def _part_tensors(part: RankPart, dtype: DType) -> tuple[TensorSpec, ...]:
    match part:
        case Plain():
            return (TensorSpec(part.name, part.shape, dtype),)
        case LinearSpec():
            return linear_tensors(part, dtype)
        case ExpertLinears():
            return expert_tensors(part, dtype)
        case KvScales():
            return tuple(TensorSpec(f"{part.name}.{which}_scale", (), "float32") for which in "kv")
        case RopeTable():
            return (TensorSpec(f"{part.name}.inv_freq", part.shape, "float32"),)


def _format(quantization: QuantFormat, sources: tuple[str, ...]) -> QuantFormat:
    excluded = [source for source in sources if is_excluded(source, quantization.exclude)]
    if excluded and len(excluded) != len(sources):
        raise UsageProblem(
            f"{excluded[0]} cannot be excluded from quantization alone",
            why=f"the engine fuses it with {', '.join(s for s in sources if s not in excluded)}",
            fix="exclude all of them or none",
        )
    return QuantFormat() if excluded else quantization


def _check_divisible(config: ModelConfig, tensor: int, pipeline: int) -> None:
    kv = config.num_kv_heads
    if tensor > 1 and config.num_experts:
        raise UsageProblem(
            f"a mixture of experts cannot be cut into {tensor} tensor-parallel ranks yet",
            why="experts stand whole on one rank",
            fix="set tensor parallelism to 1",
        )
    uneven = [
        f"{count} {what}"
        for what, count, fits in (
            ("attention heads", config.num_heads, config.num_heads % tensor == 0),
            ("key-value heads", kv, kv % tensor == 0 or tensor % kv == 0),
            ("intermediate columns", config.intermediate_size, config.intermediate_size % tensor == 0),
            ("vocabulary rows", config.vocab_size, config.tie_word_embeddings or config.vocab_size % tensor == 0),
        )
        if not fits
    ]
    if uneven:
        raise UsageProblem(
            f"the model cannot be cut into {tensor} tensor-parallel ranks",
            why=f"{' and '.join(uneven)} do not divide by {tensor}",
            fix="choose a tensor parallelism that divides them",
        )
    if config.num_layers < pipeline:
        raise UsageProblem(
            f"the model cannot be cut into {pipeline} pipeline stages", why=f"it has only {config.num_layers} layers"
        )


def _split(count: int, parts: int, index: int) -> range:
    """Part `index` of `range(count)`; the first parts are one longer when it does not divide."""
    size, longer = divmod(count, parts)
    start = index * size + min(index, longer)
    return range(start, start + size + (index < longer))


def _scale(items: range, size: int) -> range:
    return range(items.start * size, items.stop * size)


def _shift(items: range, by: int) -> range:
    return range(items.start + by, items.stop + by)
