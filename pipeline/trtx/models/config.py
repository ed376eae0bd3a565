"""The shape of a decoder-only model, read from a Hugging Face config.json. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trtx.errors import UsageProblem, did_you_mean
from trtx.models.architecture import Architecture
from trtx.models.read_config import Activation

DType = Literal["float32", "bfloat16", "float16"]

# The `architectures` field of config.json → the module that declares it.
ARCHITECTURES = {
    "LlamaForCausalLM": "trtx.models.architectures.llama",
    "MistralForCausalLM": "trtx.models.architectures.mistral",
    "Qwen2ForCausalLM": "trtx.models.architectures.qwen2",
    "Qwen3ForCausalLM": "trtx.models.architectures.qwen3",
    "Qwen3MoeForCausalLM": "trtx.models.architectures.qwen3_moe",
    "Gemma2ForCausalLM": "trtx.models.architectures.gemma2",
    "Gemma3ForCausalLM": "trtx.models.architectures.gemma3",
    "Phi3ForCausalLM": "trtx.models.architectures.phi3",
    "MixtralForCausalLM": "trtx.models.architectures.mixtral",
    "GPT2LMHeadModel": "trtx.models.architectures.gpt2",
    "GPTNeoXForCausalLM": "trtx.models.architectures.gpt_neox",
}


class ModelConfig(BaseModel):
    """Everything a compiled program depends on besides number formats; no weight values, no token ids.

    `rotary_dim` is how many channels of a head are rotated, None for all, 0 for none; `local_rope_*` is another RoPE
    for layers with a window. `windows` has the window of each layer, 0 for the whole context, and is empty when no
    layer has one. Scores are multiplied by `attention_scale`, None for head_dim^-0.5; softcaps of 0 are none.
    `attention_bias` is about q, k, v and, where the architecture has it, the output projection. The sizes after
    `num_experts` are of layers with a mixture of experts, which are all but `dense_layers` unless there are 0 experts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_epsilon: float
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    dtype: DType
    activation: Activation = "silu"
    rotary_dim: int | None = None
    local_rope_theta: float | None = None
    local_rope_scaling: dict[str, Any] | None = None
    windows: tuple[int, ...] = ()
    attention_scale: float | None = None
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    embedding_scale: float = 1.0
    parallel_residual: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    normalize_experts: bool = False
    dense_layers: tuple[int, ...] = ()

    @property
    def rotated_channels(self) -> int:
        """Channels of a head that RoPE rotates; 0 for a model with learned positions."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def num_mlps(self) -> int:
        """Layers with one MLP in place of a mixture of experts."""
        return len(self.dense_layers) if self.num_experts else self.num_layers

    @property
    def up_matrices(self) -> int:
        """Matrices from the hidden to the intermediate size: two with a gate."""
        return 2 if load_architecture(self.architecture).gated else 1

    @property
    def expert_activations(self) -> int:
        """Numbers that a token takes on its way through its experts."""
        return self.experts_per_token * (2 * self.hidden_size + 3 * self.expert_size)

    @property
    def learned_positions(self) -> int:
        """Rows of the table of positions."""
        return self.max_position_embeddings if load_architecture(self.architecture).positions else 0

    def window(self, layer: int) -> int:
        """How many tokens a token of this layer sees, itself counted; 0 for all."""
        return self.windows[layer] if self.windows else 0

    def has_local_rope(self, layer: int) -> bool:
        """Whether this layer has the other RoPE."""
        return self.local_rope_theta is not None and self.window(layer) > 0

    def has_experts(self, layer: int) -> bool:
        """Whether this layer has a mixture of experts in place of one MLP."""
        return self.num_experts > 0 and layer not in self.dense_layers


def uses_long_factors(scaling: Mapping[str, Any] | None, max_seq_len: int) -> bool:
    """Whether an engine for sequences of `max_seq_len` tokens takes the long factors of a longrope.

    transformers changes to them when a sequence outgrows the length that the model was trained for, and then computes
    its whole cache again. An engine has one set for all sequences, so that keys in the cache never need to change.
    """
    if scaling is None or scaling["rope_type"] != "longrope":
        return False
    return max_seq_len > int(scaling["original_max_position_embeddings"])


def load_architecture(name: str) -> Architecture:
    """The declaration of an architecture of ARCHITECTURES."""
    found: Architecture = import_module(ARCHITECTURES[name]).ARCHITECTURE
    return found


def read_model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Build a ModelConfig from the content of a config.json.

    Raises UsageProblem for an architecture, activation, position encoding or feature that trtx cannot compile.
    """
    name = (config.get("architectures") or ["(none)"])[0]
    if name not in ARCHITECTURES:
        raise UsageProblem(
            f"trtx cannot compile the architecture {name}",
            why="config.json names it under `architectures`",
            fix=did_you_mean(name, ARCHITECTURES),
        )
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    try:
        shape = ModelConfig(architecture=name, dtype=dtype, **_read_fields(name, config))
    except (KeyError, TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        why = f"it lacks {error}" if isinstance(error, KeyError) else _first_line(error)
        raise UsageProblem(
            "config.json does not describe a model", why=why, fix="fetch or save the model again"
        ) from error
    _check(shape)
    return shape


def _read_fields(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    fields = load_architecture(name).read_config(config)
    # One spelling of a model without windows, so that its programs and keys do not depend on how it was saved.
    return fields if any(fields.get("windows", ())) else {**fields, "windows": ()}


def _check(shape: ModelConfig) -> None:
    if shape.rotated_channels % 2 or shape.num_heads % shape.num_kv_heads:
        raise UsageProblem(
            f"{shape.num_heads} attention heads of {shape.head_dim} channels over {shape.num_kv_heads} key-value heads "
            "are not supported",
            why="channels are rotated in pairs, and each key-value head serves equally many heads",
        )
    if shape.windows and len(shape.windows) != shape.num_layers:
        raise UsageProblem(
            "config.json does not describe a model",
            why=f"`layer_types` has {len(shape.windows)} entries for {shape.num_layers} layers",
            fix="fetch or save the model again",
        )
    if shape.experts_per_token > shape.num_experts and shape.num_experts:
        raise UsageProblem(
            "config.json does not describe a model",
            why=f"each token takes {shape.experts_per_token} of {shape.num_experts} experts",
            fix="fetch or save the model again",
        )
    for scaling in (shape.rope_scaling, shape.local_rope_scaling):
        factors = [scaling[key] for key in ("short_factor", "long_factor") if key in scaling] if scaling else []
        if any(len(factor) != shape.rotated_channels // 2 for factor in factors):
            raise UsageProblem(
                f"longrope needs {shape.rotated_channels // 2} factors",
                why="there is one for each pair of rotated channels",
                fix="complete config.json's rope parameters",
            )


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]
