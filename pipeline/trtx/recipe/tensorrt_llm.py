"""The part of the language that only the backend `tensorrt-llm` has, and the names that only that world uses."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from trtx.recipe.parts import Many, Part, Positive, Text, Url, broken_rule

Preset = Literal["throughput", "latency", "long-context"]
SpeculationMode = Literal["draft-target", "medusa", "eagle", "eagle3", "lookahead", "mtp", "ngram"]

# Names of ModelOpt's recipe library (modelopt_recipes/configs/ptq/presets/model of 0.47), of its hf_ptq.py
# (QUANT_CFG_CHOICES of 0.23 to 0.44), of what it exports (hf_quant_config.json) and of TensorRT-LLM's quantize.py
# (--qformat) → this language's.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "full_prec": "none",
        "fp8_per_channel_per_token": "fp8_dynamic",
        "fp8_pc_pt": "fp8_dynamic",
        "fp8_2d_blockwise_weight_only": "fp8_block_wo",
        "fp8_pb_wo": "fp8_block_wo",
        "int8_smoothquant": "int8_sq",
        "int8_weight_only": "int8_wo",
        "int4_blockwise_weight_only": "int4_wo",
        "w4a16_awq": "int4_awq",
        "w4a16_gptq": "int4_gptq",
        "w4a8_awq_beta": "w4a8_awq",
        "nvfp4_awq_lite": "nvfp4_awq",
    }
)
# Recipes of the same library (general/ptq) that name a KV cache as well → algorithm and KV cache.
COMPOSED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"fp8_default-kv_fp8": ("fp8", "fp8"), "nvfp4_default-kv_fp8": ("nvfp4", "fp8")}
)
OPTION_PATTERN = r"^[a-z][a-z0-9_]{0,63}$"
IMAGE_FILE = r"^/[^\s:,]+\.(sif|sqsh)$"


def _own_name(value: Any) -> Any:
    return ALIASES.get(value, value) if isinstance(value, str) else value


def with_aliases(kind: Any, names: tuple[str, ...]) -> Any:
    """An algorithm that may also be called as ModelOpt calls it."""
    schema = WithJsonSchema({"type": "string", "enum": [*names, *ALIASES, *COMPOSED]})
    return Annotated[kind, BeforeValidator(_own_name), schema]


def take_composed(data: Any) -> Any:
    """A variant whose algorithm is a recipe of ModelOpt's: its algorithm, and its KV cache."""
    name = data.get("algorithm") if isinstance(data, dict) else None
    if not isinstance(name, str) or name not in COMPOSED:
        return data
    algorithm, kv_cache = COMPOSED[name]
    stated = data.get("kv_cache", kv_cache)
    if stated != kv_cache:
        raise broken_rule(f"{name} has a KV cache in {kv_cache}, and kv_cache says {stated}", "remove kv_cache")
    return {**data, "algorithm": algorithm, "kv_cache": kv_cache}


def _check_plugin(value: Any) -> str | bool:
    if isinstance(value, str | bool):
        return value
    raise broken_rule("expected enable, disable, true, false, or a word such as auto or fp8", "write one of these")


def _check_flag(value: Any) -> str | int | float | bool:
    if isinstance(value, str | int | float):
        return value
    raise broken_rule("expected a text, a number, true or false", "a flag of trtllm-build takes one value")


OptionName = Annotated[str, Field(pattern=OPTION_PATTERN)]
PluginValue = Annotated[
    Any, AfterValidator(_check_plugin), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "boolean"}]})
]
FlagValue = Annotated[
    Any,
    AfterValidator(_check_flag),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]}),
]


class Speculative(Part):
    """Speculative decoding: tokens are guessed cheaply and checked together."""

    mode: SpeculationMode = Field(
        description="draft-target: a small model guesses; medusa, eagle, eagle3, mtp: heads that were trained for it; "
        "lookahead, ngram: no model."
    )
    max_draft_len: Positive = Field(default=4, description="Tokens that are guessed at once.")
    draft: Url | None = Field(
        default=None, description="Where the guessing model or its heads are: hf://owner/name or file:///folder."
    )


class Lora(Part):
    """Adapters that are served beside the base model."""

    max_rank: Positive = Field(default=64, description="Largest rank of an adapter.")
    target_modules: Many[Text] = Field(
        default=("attn_q", "attn_k", "attn_v"), description="Modules that adapters change, as TensorRT-LLM names them."
    )
    max_adapters: Positive = Field(default=8, description="Adapters in the GPU's memory at once.")
