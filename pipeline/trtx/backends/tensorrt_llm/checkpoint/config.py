"""config.json of a TensorRT-LLM checkpoint: made of a model's, and read again. Imports no torch.

Keys are those of PretrainedConfig, LLaMAConfig and QWenConfig (tensorrt_llm/models) that every release knows: `mapping`
and `quantization` become keyword arguments there, so an unknown one would be an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from trtx import __version__
from trtx.backends.tensorrt_llm.checkpoint.formats import ALWAYS_EXCLUDED, GROUPED, CheckpointFormat, KvAlgo
from trtx.backends.tensorrt_llm.checkpoint.sizes import QWEN2, Sizes
from trtx.backends.tensorrt_llm.releases import is_before
from trtx.backends.tensorrt_llm.spec import Ranks
from trtx.errors import UsageProblem
from trtx.models.config import DType, ModelConfig

CONFIG_NAME = "config.json"
# PretrainedConfig takes these without a default; `architecture` also chooses the class.
MANDATORY = ("architecture", "dtype", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
# Rotary scalings that layers/attention.py computes for these architectures. longrope needs another position type.
SCALINGS = ("linear", "dynamic", "llama3", "yarn")
# The first release whose attention.py was seen to compute YaRN outside DeepSeek's own layers.
YARN_FROM = "1.0.0"


@dataclass(frozen=True)
class CheckpointConfig:
    """What config.json says about the tensors beside it."""

    sizes: Sizes
    form: CheckpointFormat
    dtype: DType
    ranks: Ranks
    parallel_embedding: bool


def make_config(model: ModelConfig, sizes: Sizes, form: CheckpointFormat, dtype: DType, ranks: Ranks) -> dict[str, Any]:
    """The content of config.json. The rotary scaling is checked by `rotary_scaling`."""
    is_mixture, is_qwen = sizes.num_experts > 0, sizes.architecture == QWEN2
    content: dict[str, Any] = {
        "producer": {"name": "trtx", "version": __version__},
        "architecture": sizes.architecture,
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_size": sizes.head_dim,
        "norm_epsilon": model.norm_epsilon,
        # Experts have the gate and what it multiplies in one matrix, and TensorRT-LLM calls only that swiglu.
        "hidden_act": "swiglu" if is_mixture else "silu",
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": model.max_position_embeddings,
        "rotary_base": model.rope_theta,
        "rotary_scaling": _rotary_scaling(model),
        "attn_bias": sizes.qkv_bias,
        "mlp_bias": sizes.mlp_bias,
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "mapping": _mapping(ranks, is_mixture),
        "quantization": _quantization(form),
    }
    if is_mixture:
        # 1: the weights of the chosen experts are normalized to a sum of one.
        moe = {"num_experts": sizes.num_experts, "top_k": model.experts_per_token, "normalization_mode": 1}
        content["moe"] = moe
    if is_qwen:
        content |= {"qwen_type": "qwen2", "moe_intermediate_size": 0, "moe_shared_expert_intermediate_size": 0}
    return content


def check_model(model: ModelConfig, release: str) -> list[str]:
    """What a user should know about a model in this flow.

    Raises UsageProblem for what a release's engines would compute otherwise than the model.
    """
    scaling = model.rope_scaling or {}
    kind = scaling.get("rope_type")
    if model.activation != "silu":
        raise UsageProblem(
            f"{model.architecture} with {model.activation} cannot be converted",
            why="TensorRT-LLM's names of activations are not transformers'",
            fix="convert with the release's own convert_checkpoint.py (converter: release)",
        )
    if kind is not None and (kind not in SCALINGS or (kind == "yarn" and is_before(release, YARN_FROM))):
        raise UsageProblem(
            f"TensorRT-LLM {release} computes no {kind} rotary scaling for {model.architecture}",
            why="its engines would ignore it, and be wrong on long texts",
            fix=f"use flow: pytorch{f', or release {YARN_FROM} or later' if kind == 'yarn' else ''}",
        )
    if kind == "yarn" and abs(scaling["attention_factor"] - _yarn_factor(scaling["factor"])) > 1e-3:
        raise UsageProblem(
            f"the model's YaRN has attention_factor {scaling['attention_factor']}",
            why=f"TensorRT-LLM always takes {_yarn_factor(scaling['factor']):.4f} for factor {scaling['factor']:g}",
            fix="use flow: pytorch",
        )
    if any(model.windows):
        window = max(model.windows)
        return [f"the model's attention sees {window} tokens: set max_attention_window_size to it where it is served"]
    return []


def _rotary_scaling(model: ModelConfig) -> dict[str, Any] | None:
    """Releases differ in whether they read `type` or `rope_type`; both are there."""
    if model.rope_scaling is None:
        return None
    kind = model.rope_scaling["rope_type"]
    fields = dict(model.rope_scaling)
    if "original_max_position_embeddings" in fields:
        fields["original_max_position_embeddings"] = int(fields["original_max_position_embeddings"])
    if kind == "yarn":
        fields = {key: value for key, value in fields.items() if key not in ("attention_factor", "truncate")}
        # How attention.py spells the usual attention factor, 0.1 · ln(factor) + 1.
        fields |= {"mscale": 1.0, "mscale_all_dim": 0.0}
    return {"type": kind, **fields}


def _yarn_factor(factor: float) -> float:
    from math import log

    return 0.1 * log(factor) + 1 if factor > 1 else 1.0


def _mapping(ranks: Ranks, is_mixture: bool) -> dict[str, int]:
    found = {"world_size": ranks.world_size, "tp_size": ranks.tensor, "pp_size": ranks.pipeline}
    if ranks.context > 1:
        found["cp_size"] = ranks.context
    if is_mixture:
        found |= {"moe_tp_size": ranks.expert_tensor, "moe_ep_size": ranks.expert}
    return found


def _quantization(form: CheckpointFormat) -> dict[str, Any]:
    found: dict[str, Any] = {"quant_algo": form.quant_algo, "kv_cache_quant_algo": form.kv_cache}
    if form.quant_algo in GROUPED:
        found |= {
            "group_size": form.group_size,
            "has_zero_point": False,
            "pre_quant_scale": form.pre_quant_scale,
        }
    if form.quant_algo == "NVFP4":
        found["group_size"] = form.group_size
    if form.quant_algo is not None:
        found["exclude_modules"] = list(form.exclude)
    return found


def read_config(content: Mapping[str, Any]) -> CheckpointConfig:
    """What a checkpoint's config.json says, with the defaults of TensorRT-LLM's classes.

    Raises KeyError for a missing entry, ValueError and TypeError for values that are none, UsageProblem for ranks.
    """
    architecture, heads = content["architecture"], int(content["num_attention_heads"])
    hidden = int(content["hidden_size"])
    quantization = content.get("quantization") or {}
    bias = bool(content.get("attn_bias", architecture == QWEN2))
    dtype = content["dtype"]
    if dtype not in get_args(DType):
        raise ValueError(f"dtype {dtype!r}")
    return CheckpointConfig(
        sizes=Sizes(
            architecture=architecture,
            vocab_size=int(content["vocab_size"]),
            hidden_size=hidden,
            intermediate_size=int(content.get("intermediate_size") or 4 * hidden),
            num_layers=int(content["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(content.get("num_key_value_heads") or heads),
            head_dim=int(content.get("head_size") or hidden // heads),
            num_experts=int((content.get("moe") or {}).get("num_experts") or content.get("moe_num_experts") or 0),
            qkv_bias=bias,
            out_bias=bias and architecture != QWEN2,
            mlp_bias=bool(content.get("mlp_bias", False)),
        ),
        form=_read_format(quantization),
        dtype=dtype,
        ranks=_read_ranks(content.get("mapping") or {}),
        parallel_embedding=bool(content.get("use_parallel_embedding", False)),
    )


def _read_format(quantization: Mapping[str, Any]) -> CheckpointFormat:
    kv_cache = quantization.get("kv_cache_quant_algo")
    if kv_cache is not None and kv_cache not in get_args(KvAlgo):
        raise ValueError(f"kv_cache_quant_algo {kv_cache!r}")
    excluded = quantization.get("exclude_modules")
    return CheckpointFormat(
        quant_algo=quantization.get("quant_algo"),
        kv_cache=kv_cache,
        group_size=int(quantization.get("group_size") or 128),
        pre_quant_scale=bool(quantization.get("pre_quant_scale", False)),
        exclude=ALWAYS_EXCLUDED if excluded is None else tuple(excluded),
    )


def _read_ranks(mapping: Mapping[str, Any]) -> Ranks:
    tensor, pipeline, context = (int(mapping.get(key, 1)) for key in ("tp_size", "pp_size", "cp_size"))
    if min(tensor, pipeline, context) < 1:
        raise ValueError(f"mapping {dict(mapping)}")
    expert, expert_tensor = int(mapping.get("moe_ep_size", -1)), int(mapping.get("moe_tp_size", -1))
    if expert < 1:
        expert = tensor // expert_tensor if expert_tensor > 0 else 1
    ranks = Ranks(tensor=tensor, pipeline=pipeline, context=context, expert=expert)
    if int(mapping.get("world_size", 1)) != ranks.world_size:
        raise ValueError(f"world_size {mapping.get('world_size', 1)} is not {tensor} · {pipeline} · {context}")
    if expert_tensor > 0 and expert_tensor * expert != tensor:
        raise ValueError(f"moe_tp_size {expert_tensor} · moe_ep_size {expert} is not tp_size {tensor}")
    return ranks
