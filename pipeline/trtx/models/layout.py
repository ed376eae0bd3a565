"""Which tensors each rank's weight file holds: a pure function of shapes and formats. Imports no torch.

Compiling takes every shape from here and never sees a weight file; converting checks what it wrote against it.

Sharding, for `tensor` × `pipeline` ranks (rank = pipeline index × tensor + tensor index):

| tensor | tensor parallel | pipeline parallel |
|---|---|---|
| embed.weight | whole on every rank | first stage; also the last when the embeddings are tied |
| attention.qkv | output rows by head: the rank's query, then key, then value heads | its own layers |
| attention.out | input columns by head | its own layers |
| mlp.gate_up | output rows: the rank's gate rows, then its up rows | its own layers |
| mlp.down | input columns | its own layers |
| norms | whole | its own layers; final_norm on the last stage |
| lm_head | output rows; absent when tied, then every rank of the last stage computes all logits | last stage |

Key and value heads are repeated when there are more tensor ranks than such heads. What runs along the input columns
of a linear (pre_quant_scale, groups of a group-wise format) is cut with them. Biases of `attention.out` and
`mlp.down` stand on tensor rank 0 and are zero on the others, because those outputs are summed over the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtx.errors import UsageProblem
from trtx.files import canonical_json, sha256_bytes
from trtx.models.config import DType, ModelConfig
from trtx.models.formats import SAME_PROGRAM, QuantFormat, is_excluded
from trtx.models.linear_layout import Cut, LinearSpec, TensorSpec, linear_tensors


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
class Layout:
    """All tensors of one rank file, in file order, and the digest that ties programs to weights.

    The digest covers everything a program has compiled in, so also the numbers of ModelConfig that leave no trace
    in shapes (norm epsilon, head count), but not the dtype that the checkpoint happened to be stored in.
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
    tensors = tuple(_tensors(config, quantization, dtype, shard))
    facts = {
        "model": config.model_dump(mode="json", exclude={"dtype"}),
        "algorithm": SAME_PROGRAM.get(quantization.algorithm, quantization.algorithm),
        "kv_cache": quantization.kv_cache,
        "dtype": dtype,
        "rank": [tensor, pipeline, rank],
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


def layer_linears(config: ModelConfig, quantization: QuantFormat, shard: Shard, layer: int) -> tuple[LinearSpec, ...]:
    """The four linears of one layer on one rank: qkv, out, gate_up, down."""
    d = config.head_dim
    heads, kv_heads = _scale(shard.heads, d), _scale(shard.kv_heads, d)
    hidden = range(config.hidden_size)
    here, there = f"layers.{layer}", f"model.layers.{layer}"

    def make(
        name: str, sources: tuple[str, ...], rows: tuple[range, ...], columns: range, cut: Cut, bias: bool
    ) -> LinearSpec:
        full = tuple(f"{there}.{source}" for source in sources)
        return LinearSpec(f"{here}.{name}", full, rows, columns, cut, bias, _format(quantization, full))

    q, k, v = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
    gate, up = "mlp.gate_proj", "mlp.up_proj"
    middle = shard.intermediate
    return (
        make("attention.qkv", (q, k, v), (heads, kv_heads, kv_heads), hidden, "rows", config.attention_bias),
        make("attention.out", ("self_attn.o_proj",), (hidden,), heads, "columns", config.attention_bias),
        make("mlp.gate_up", (gate, up), (middle, middle), hidden, "rows", config.mlp_bias),
        make("mlp.down", ("mlp.down_proj",), (hidden,), middle, "columns", config.mlp_bias),
    )


def head_linear(config: ModelConfig, shard: Shard) -> LinearSpec:
    """The output projection, never quantized; a tied one has no tensors of its own."""
    return LinearSpec("lm_head", ("lm_head",), (shard.vocab,), range(config.hidden_size), "rows", False, QuantFormat())


def _tensors(config: ModelConfig, quantization: QuantFormat, dtype: DType, shard: Shard) -> list[TensorSpec]:
    hidden = (config.hidden_size,)
    found = []
    if shard.is_first or (shard.is_last and config.tie_word_embeddings):
        found.append(TensorSpec("embed.weight", (config.vocab_size, config.hidden_size), dtype))
    for layer in shard.layers:
        prefix = f"layers.{layer}"
        found.append(TensorSpec(f"{prefix}.attention_norm.weight", hidden, dtype))
        found.append(TensorSpec(f"{prefix}.mlp_norm.weight", hidden, dtype))
        for spec in layer_linears(config, quantization, shard, layer):
            found.extend(linear_tensors(spec, dtype))
        if quantization.kv_cache != "auto":
            found.append(TensorSpec(f"{prefix}.attention.k_scale", (), "float32"))
            found.append(TensorSpec(f"{prefix}.attention.v_scale", (), "float32"))
    if shard.is_last:
        found.append(TensorSpec("final_norm.weight", hidden, dtype))
        if not config.tie_word_embeddings:
            found.extend(linear_tensors(head_linear(config, shard), dtype))
    found.append(TensorSpec("rope.inv_freq", (config.head_dim // 2,), "float32"))
    return found


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
