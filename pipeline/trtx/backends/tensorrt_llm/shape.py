"""The shape of any model from its config.json, also of architectures that trtx does not compile itself.

Sizes have Hugging Face's names; parameters are counted by the layers that these names describe. What no name tells
(biases, norms of heads) is not counted: it is below a thousandth of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from trtx.backends.tensorrt_llm.spec import Shape
from trtx.errors import UsageProblem
from trtx.models.config import DType

# Architectures whose MLP has no gate: two matrices in place of three.
PLAIN_MLP = frozenset(
    {
        *("GPT2LMHeadModel", "GPTNeoXForCausalLM", "GPTJForCausalLM", "OPTForCausalLM", "BloomForCausalLM"),
        *("FalconForCausalLM", "PhiForCausalLM", "MptForCausalLM", "Starcoder2ForCausalLM", "NemotronForCausalLM"),
    }
)
# Kinds of RoPE scaling whose factor is in max_position_embeddings already: tensorrt_llm/builder.py:835-858.
WITHIN_POSITIONS = ("su", "longrope", "llama3", "yarn")
DTYPES = ("float32", "bfloat16", "float16")
# `quant_method` and `quant_algo` of checkpoints that are quantized already → the recipe's algorithm.
STORED_AS = {
    "mxfp4": "mxfp4",
    "awq": "int4_awq",
    "gptq": "int4_gptq",
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8_dynamic",
    "NVFP4": "nvfp4",
    "W4A16_AWQ": "int4_awq",
    "W4A8_AWQ": "w4a8_awq",
}
# Other spellings of sizes: GPT-2, Falcon, BLOOM, DBRX.
SPELLINGS = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
}
NUM_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k")


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The sizes in a config.json; of a model that sees and reads, those of its language model.

    Raises UsageProblem for a config.json that lacks one.
    """
    names = config.get("architectures") or []
    text = config if "hidden_size" in config or "text_config" not in config else {**config, **config["text_config"]}
    if not names:
        raise _incomplete("`architectures`")
    sizes = _Sizes(text)
    heads, hidden = sizes.need("num_attention_heads"), sizes.need("hidden_size")
    scaling = text.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    experts = sizes.first(NUM_EXPERTS)
    shape = Shape(
        architecture=str(names[0]),
        vocab_size=sizes.need("vocab_size"),
        hidden_size=hidden,
        intermediate_size=sizes.get("intermediate_size") or 4 * hidden,
        num_layers=sizes.need("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=sizes.get("num_key_value_heads") or heads,
        head_dim=sizes.get("qk_nope_head_dim") + sizes.get("qk_rope_head_dim")
        or sizes.get("head_dim")
        or hidden // heads,
        max_position_embeddings=sizes.get("max_position_embeddings") or 2048,
        rope_factor=1.0 if kind in (None, *WITHIN_POSITIONS) else float(scaling.get("factor", 1.0)),
        num_experts=experts,
        experts_per_token=sizes.first(PER_TOKEN) if experts else 0,
        expert_size=(sizes.get("moe_intermediate_size") or sizes.get("intermediate_size")) if experts else 0,
        latent_channels=_latent(sizes),
        draft_layers=sizes.get("num_nextn_predict_layers"),
        stored_as=_stored_as(config),
    )
    return shape.model_copy(update={"num_parameters": count_parameters(shape, text)})


def read_dtype(config: Mapping[str, Any]) -> DType:
    """The type of the checkpoint's unquantized numbers; bfloat16 where config.json does not say."""
    inner = config.get("text_config") or {}
    word = config.get("dtype") or config.get("torch_dtype") or inner.get("torch_dtype") or "bfloat16"
    return cast(DType, word) if word in DTYPES else "bfloat16"


def count_parameters(shape: Shape, config: Mapping[str, Any]) -> int:
    """Numbers of all weights: embeddings, attention, MLPs, experts with their router and norms."""
    hidden, layers = shape.hidden_size, shape.num_layers
    sizes = _Sizes(config)
    embeddings = shape.vocab_size * hidden * (1 if config.get("tie_word_embeddings") else 2)
    up_down = 2 if shape.architecture in PLAIN_MLP else 3
    dense = layers
    experts = 0
    if shape.num_experts:
        dense = sizes.get("first_k_dense_replace")
        shared = sizes.get("n_shared_experts") * shape.expert_size or sizes.get("shared_expert_intermediate_size")
        per_layer = hidden * (3 * (shape.num_experts * shape.expert_size + shared) + shape.num_experts)
        experts = (layers - dense) * per_layer
    mlps = dense * up_down * hidden * shape.intermediate_size
    norms = (2 * layers + 1) * hidden
    return embeddings + layers * _count_attention(shape, sizes) + mlps + experts + norms


def _count_attention(shape: Shape, sizes: _Sizes) -> int:
    """Numbers of one layer's attention; multi-head latent attention as in DeepSeek-V2 (arXiv:2405.04434, 2.1)."""
    hidden, heads = shape.hidden_size, shape.num_heads
    if not shape.latent_channels:
        return hidden * (heads + 2 * shape.num_kv_heads) * shape.head_dim + heads * shape.head_dim * hidden
    latent, plain, rotated = (sizes.get(name) for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"))
    value, query = sizes.get("v_head_dim"), sizes.get("q_lora_rank")
    queries = query * (hidden + heads * (plain + rotated)) if query else hidden * heads * (plain + rotated)
    return queries + hidden * (latent + rotated) + latent * heads * (plain + value) + heads * value * hidden


def _latent(sizes: _Sizes) -> int:
    latent = sizes.get("kv_lora_rank")
    return latent + sizes.get("qk_rope_head_dim") if latent else 0


def _stored_as(config: Mapping[str, Any]) -> str:
    stored = config.get("quantization_config") or {}
    if stored.get("quant_method") == "fp8" and stored.get("weight_block_size"):
        return "fp8_block_wo"
    return STORED_AS.get(str(stored.get("quant_algo"))) or STORED_AS.get(str(stored.get("quant_method"))) or "none"


class _Sizes:
    """Whole numbers of a config.json by Hugging Face's usual name."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def get(self, name: str) -> int:
        """A size, 0 where there is none. Raises UsageProblem for what is no whole number."""
        return self.first((name, *SPELLINGS.get(name, ())))

    def first(self, names: tuple[str, ...]) -> int:
        """The size by the first of several names that is there."""
        value = next((self._config[name] for name in names if self._config.get(name) is not None), 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _incomplete(f"a whole number for {names[0]}")
        return value

    def need(self, name: str) -> int:
        """A size that must be there. Raises UsageProblem."""
        if not (value := self.get(name)):
            raise _incomplete(name)
        return value


def _incomplete(what: str) -> UsageProblem:
    return UsageProblem(
        "config.json does not describe a model", why=f"it lacks {what}", fix="fetch or save the model again"
    )
