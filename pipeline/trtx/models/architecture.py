"""What one family of decoder-only models is, besides sizes: how its config.json is read, what its tensors are called in
a checkpoint, and how its layers are put together. Imports no torch: the plan reads configs with it.

models/layout.py makes tensors of it, models/decoder.py a module, and each module of models/architectures declares one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

HfConfig = Mapping[str, Any]

# rms: x / rms(x) · weight; rms_plus_one: with weight + 1 (Gemma); layer: LayerNorm with weight and bias.
Norm = Literal["rms", "rms_plus_one", "layer"]

# Where a fused matrix of the checkpoint has the rows of its parts: all of q, then k, then v; or q, k, v of each head.
Fusion = Literal["stacked", "by_head"]


@dataclass(frozen=True)
class ExpertNames:
    """A mixture of experts in a checkpoint, below the layer; `{}` stands for the number of an expert."""

    router: str
    gate: str
    up: str
    down: str


@dataclass(frozen=True)
class Architecture:
    """One entry of models.config.ARCHITECTURES. The names without comment are the most common ones.

    `read_config` gives the fields of ModelConfig that config.json has, `dtype` and `architecture` excepted; it raises
    KeyError for a missing entry and UsageProblem for what cannot be compiled. `layer_norms` are names in the engine and
    in the checkpoint: a norm named attention_post_norm or mlp_post_norm is over what the part adds to the residual.
    `qkv` and `up` are one source for each part, or one fused source. `gated` says that the MLP has a gate beside `up`.
    `bare_base` allows checkpoints whose names lack the base model's, `transposed` that matrices are [K, N].
    """

    read_config: Callable[[HfConfig], dict[str, Any]]
    base: str = "model"
    layers: str = "layers"
    embed: str = "embed_tokens"
    positions: str | None = None
    final_norm: str = "norm"
    head: str = "lm_head"
    norm: Norm = "rms"
    layer_norms: tuple[tuple[str, str], ...] = (
        ("attention_norm", "input_layernorm"),
        ("mlp_norm", "post_attention_layernorm"),
    )
    head_norms: tuple[str, str] | None = None
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    qkv_fusion: Fusion = "stacked"
    out: str = "self_attn.o_proj"
    out_has_bias: bool = True
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    gated: bool = True
    down: str = "mlp.down_proj"
    experts: ExpertNames | None = None
    bare_base: bool = False
    transposed: bool = False

    def layer_source(self, layer: int, name: str) -> str:
        """The name in the checkpoint of something in a layer."""
        return f"{self.base}.{self.layers}.{layer}.{name}"

    def base_source(self, name: str) -> str:
        """The name in the checkpoint of something beside the layers."""
        return f"{self.base}.{name}"
