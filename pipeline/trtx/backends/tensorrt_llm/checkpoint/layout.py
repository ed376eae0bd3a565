"""The tensors of a rank file as a pure function of sizes, format and ranks. Imports no torch.

Sources: docs/source/legacy/architecture/checkpoint.md, tensorrt_llm/models/llama/convert.py, quantization/layers.py and
layers/moe.py of 1.3.0rc3, and what ModelOpt's export_tensorrt_llm_checkpoint writes. Matrices are [out, in]:

| tensor, below `transformer.` but for lm_head | shape on a rank | of Hugging Face's |
|---|---|---|
| vocab_embedding.weight (first stage) | [vocab padded / tp, hidden], or whole | embed_tokens |
| layers.i.input_layernorm.weight, post_layernorm.weight | [hidden] | input_, post_attention_layernorm |
| layers.i.attention.qkv.weight, .bias | [(heads + 2 · kv) / tp · head_dim, hidden] | q_proj, k_proj, v_proj |
| layers.i.attention.dense.weight | [hidden, heads / tp · head_dim] | o_proj |
| layers.i.attention.kv_cache_scaling_factor | [1] float32, of a quantized KV cache | the larger of k_ and v_scale |
| layers.i.mlp.fc.weight | [intermediate / tp, hidden] | **gate_proj** |
| layers.i.mlp.gate.weight | [intermediate / tp, hidden] | **up_proj** |
| layers.i.mlp.proj.weight | [hidden, intermediate / tp] | down_proj |
| with experts: layers.i.mlp.router.weight | [experts, hidden] float32 | gate |
| layers.i.mlp.fc.weight | [experts / ep, 2 · intermediate / moe_tp, hidden] | w3 (up), below it w1 (gate) |
| layers.i.mlp.proj.weight | [experts / ep, hidden, intermediate / moe_tp] | w2 |
| ln_f.weight, lm_head.weight (last stage) | [hidden], [vocab padded / tp, hidden] | norm, lm_head |

Layers are counted from the first of the stage. Biases of dense and proj are whole on every rank: they are added
after the sum over the ranks.

| format | weight | besides |
|---|---|---|
| none, W8A16, W4A16 | [n, k] of the dtype | |
| W8A16, W4A16 packed | int8 [k, n], [k, n/2] | per_channel_scale [n] of the dtype |
| FP8 | e4m3 [n, k] | weights_, activation_scaling_factor [1]; experts: weights_scaling_factor [experts, 1] |
| FP8_PER_CHANNEL_PER_TOKEN | e4m3 [n, k] | per_channel_scale [n] |
| W8A8_SQ_PER_CHANNEL | int8 [n, k] | weights_scaling_factor [n], activation_ [1], prequant_ [k] of the dtype |
| W4A16_AWQ | int8 [n/2, k] | weights_scaling_factor [n, k/group], prequant_scaling_factor [k] of the dtype |
| W4A8_AWQ | int8 [n/2, k] | as W4A16_AWQ, weights_scaling_factor_2 [1], activation_scaling_factor [1] |
| NVFP4 | uint8 [n, k/2] | weights_scaling_factor e4m3 [n, k/16], weights_…_2 and activation_scaling_factor [] |

Scales are float32 where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Iterator

from trtx.backends.tensorrt_llm.checkpoint.formats import GROUPED, NVFP4_GROUP, ROWWISE, WEIGHT_ONLY, CheckpointFormat
from trtx.backends.tensorrt_llm.checkpoint.share import Share, make_share
from trtx.backends.tensorrt_llm.checkpoint.sizes import Sizes
from trtx.backends.tensorrt_llm.spec import Ranks
from trtx.models.config import DType
from trtx.models.linear_layout import TensorSpec

FP8, F32 = "float8_e4m3fn", "float32"
Parts = dict[str, tuple[tuple[int, ...], str]]


def rank_tensors(
    sizes: Sizes, form: CheckpointFormat, dtype: DType, ranks: Ranks, rank: int, *, parallel_embedding: bool = True
) -> tuple[TensorSpec, ...]:
    """The tensors of rank file `rank`.

    `parallel_embedding` says that the vocabulary's embedding is cut (use_parallel_embedding, sharding dimension 0).
    Raises UsageProblem for sizes that the ranks do not divide.
    """
    share, hidden = make_share(sizes, ranks, rank), sizes.hidden_size
    found: list[TensorSpec] = []
    if share.is_first:
        rows = len(share.vocab) if parallel_embedding else sizes.vocab_size
        found.append(TensorSpec("transformer.vocab_embedding.weight", (rows, hidden), dtype))
    for local in range(len(share.layers)):
        found.extend(_layer_tensors(sizes, form, dtype, share, f"transformer.layers.{local}"))
    if share.is_last:
        found.append(TensorSpec("transformer.ln_f.weight", (hidden,), dtype))
        found.append(TensorSpec("lm_head.weight", (len(share.vocab), hidden), dtype))
    return tuple(found)


def _layer_tensors(sizes: Sizes, form: CheckpointFormat, dtype: DType, share: Share, here: str) -> Iterator[TensorSpec]:
    hidden, heads = sizes.hidden_size, len(share.heads) * sizes.head_dim
    rows = heads + 2 * len(share.kv_heads) * sizes.head_dim
    for norm in ("input_layernorm", "post_layernorm"):
        yield TensorSpec(f"{here}.{norm}.weight", (hidden,), dtype)
    attention = f"{here}.attention"
    yield from _linear(f"{attention}.qkv", rows, hidden, form, dtype, sizes.qkv_bias)
    yield from _linear(f"{attention}.dense", hidden, heads, form, dtype, sizes.out_bias)
    if form.kv_cache is not None:
        yield TensorSpec(f"{attention}.kv_cache_scaling_factor", (1,), F32)
    mlp, middle = f"{here}.mlp", len(share.intermediate)
    if sizes.num_experts:
        count, own = len(share.experts), form.of(mlp)
        yield TensorSpec(f"{mlp}.router.weight", (sizes.num_experts, hidden), F32)
        yield from _named(f"{mlp}.fc", expert_parts(count, 2 * middle, hidden, own, dtype))
        yield from _named(f"{mlp}.proj", expert_parts(count, hidden, middle, own, dtype))
        return
    yield from _linear(f"{mlp}.fc", middle, hidden, form, dtype, sizes.mlp_bias)
    yield from _linear(f"{mlp}.gate", middle, hidden, form, dtype, sizes.mlp_bias)
    yield from _linear(f"{mlp}.proj", hidden, middle, form, dtype, sizes.mlp_bias)


def _linear(module: str, rows: int, columns: int, form: CheckpointFormat, dtype: DType, bias: bool) -> list[TensorSpec]:
    parts = linear_parts(rows, columns, form.of(module), dtype)
    return _named(module, parts | ({"bias": ((rows,), dtype)} if bias else {}))


def _named(module: str, parts: Parts) -> list[TensorSpec]:
    return [TensorSpec(f"{module}.{name}", shape, kind) for name, (shape, kind) in parts.items()]


def linear_parts(n: int, k: int, form: CheckpointFormat, dtype: DType) -> Parts:
    """Shape and dtype of what a matrix [n, k] is stored as, without its bias."""
    algo = form.quant_algo
    if algo in WEIGHT_ONLY and form.packed:
        return {"weight": ((k, n if algo == "W8A16" else n // 2), "int8"), "per_channel_scale": ((n,), dtype)}
    if algo in GROUPED:
        return _grouped_parts(n, k, form, dtype)
    by_algo: dict[str | None, Parts] = {
        "FP8": {"weight": ((n, k), FP8), **_scalars("weights_scaling_factor", "activation_scaling_factor")},
        ROWWISE: {"weight": ((n, k), FP8), "per_channel_scale": ((n,), F32)},
        "W8A8_SQ_PER_CHANNEL": {
            "weight": ((n, k), "int8"),
            "weights_scaling_factor": ((n,), F32),
            **_scalars("activation_scaling_factor"),
            "prequant_scaling_factor": ((k,), dtype),
        },
        "NVFP4": {
            "weight": ((n, k // 2), "uint8"),
            "weights_scaling_factor": ((n, k // NVFP4_GROUP), FP8),
            "weights_scaling_factor_2": ((), F32),
            "activation_scaling_factor": ((), F32),
        },
    }
    return by_algo.get(algo, {"weight": ((n, k), dtype)})


def _grouped_parts(n: int, k: int, form: CheckpointFormat, dtype: DType) -> Parts:
    parts: Parts = {"weight": ((n // 2, k), "int8"), "weights_scaling_factor": ((n, k // form.group_size), F32)}
    if form.pre_quant_scale:
        parts["prequant_scaling_factor"] = ((k,), dtype)
    if form.quant_algo == "W4A8_AWQ":
        parts |= _scalars("weights_scaling_factor_2", "activation_scaling_factor")
    return parts


def expert_parts(count: int, n: int, k: int, form: CheckpointFormat, dtype: DType) -> Parts:
    """Shape and dtype of what the matrices [n, k] of `count` experts are stored as, one below the other."""
    algo = form.quant_algo
    if algo in WEIGHT_ONLY and form.packed:
        columns = n if algo == "W8A16" else n // 2
        return {"weight": ((count, k, columns), "int8"), "per_channel_scale": ((count, n), dtype)}
    if algo == "FP8":
        scales: Parts = {"weights_scaling_factor": ((count, 1), F32)}
        return {"weight": ((count, n, k), FP8), **scales, **_scalars("activation_scaling_factor")}
    return {"weight": ((count, n, k), dtype)}


def _scalars(*names: str) -> Parts:
    return dict.fromkeys(names, ((1,), F32))
