"""The decoder of a GPU's program: what lies between two products of a layer is one operator each.

A norm takes the sum before it and the rounding after it along, attention starts from what its first product left, and
gates are applied where their product ends. So a layer is eight kernels, each of which starts before the one ahead has
ended. It computes what `decoder.py` computes, for the layers that `can_fuse` names.

Legend: see decoder.py.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from trtx.kernels import ops
from trtx.models.attention import Projections
from trtx.models.blocks import RmsNorm, RmsNormPlusOne
from trtx.models.config import DType, ModelConfig, load_architecture
from trtx.models.decoder import Attention, Decoder, Layer, Step
from trtx.models.layout import Shard, rope_tables

# Channels that a thread of the kernels takes at once, and the most that a norm takes (kernels/cuda/norm.cu).
WIDTH, MAX_NORM_CHANNELS = 8, 16384

# A product, and what its columns are still to be multiplied by.
Product = tuple[Tensor, Tensor | None]


class ProductLinear(Protocol):
    """A linear whose surroundings are fused with it: see quant/linear_cuda.py."""

    @property
    def rounding(self) -> Tensor | None:
        """The scalar that inputs are divided by before they come, as e4m3; None: they come as they are."""
        ...

    def multiply(self, x: Tensor) -> Product:
        """The product of such inputs."""
        ...

    def multiply_gated(self, x: Tensor, y_scale: Tensor | None) -> Tensor:
        """silu(gates) · ups of the product's halves; with `y_scale` divided by it, as e4m3."""
        ...


class FusedLayer(Layer):
    """A layer over a residual stream whose last addend is not added yet."""

    def run(
        self, x_ME: Tensor, pending: Product | None, step: Step, k_pool_PSGD: Tensor, v_pool_PSGD: Tensor
    ) -> tuple[Tensor, Product]:
        """The stream without the layer's last output, and that output."""
        attention, gate_up, down = self.attention, _product(self.mlp.gate_up), _product(self.mlp.down)
        x_ME, y_ME = add_and_norm(self.attention_norm, x_ME, pending, _product(attention.qkv).rounding)
        attended = attend(attention, y_ME, step, k_pool_PSGD, v_pool_PSGD)
        x_ME, y_ME = add_and_norm(self.mlp_norm, x_ME, attended, gate_up.rounding)
        return x_ME, down.multiply(gate_up.multiply_gated(y_ME, down.rounding))


class FusedDecoder(Decoder):
    """As Decoder, for a rank that has all layers."""

    layer_type = FusedLayer

    def run_all(self, x_ME: Tensor, step: Step, select_N: Tensor, pools: tuple[Tensor, ...]) -> Tensor:
        pending: Product | None = None
        count = len(self.layers)
        for index, layer in enumerate(self.layers.values()):
            x_ME, pending = cast(FusedLayer, layer).run(x_ME, pending, step, pools[index], pools[count + index])
        if pending is not None:
            pending = (pending[0][select_N], pending[1])
        _, y_NE = add_and_norm(self.final_norm, x_ME[select_N], pending, None)
        return self.project(y_NE)

    def project(self, x_NE: Tensor) -> Tensor:
        """Logits [N, V], in bfloat16 as the product gives them: widened, they would take longer to read and write."""
        return super().project(x_NE) if self.logit_softcap else self.multiply_head(x_NE)


def can_fuse(config: ModelConfig, shard: Shard, dtype: DType) -> bool:
    """Whether the kernels compute layers of this form: those of Llama, Mistral and Qwen2, and others like them."""
    names = load_architecture(config.architecture)
    plain = {name for name, _ in names.layer_norms} == {"attention_norm", "mlp_norm"} and not config.parallel_residual
    dense = names.gated and config.activation == "silu" and not any(config.has_experts(n) for n in shard.layers)
    tables = rope_tables(config, shard)
    sizes = [config.head_dim, len(shard.intermediate), config.hidden_size, *(table.channels // 2 for table in tables)]
    return (
        dtype == "bfloat16"
        and plain
        and dense
        and names.norm in ("rms", "rms_plus_one")
        and not names.head_norms
        and {"local_rope" if config.has_local_rope(n) else "rope" for n in shard.layers}
        == {table.name for table in tables}
        and all(size % WIDTH == 0 for size in sizes)
        and config.hidden_size <= MAX_NORM_CHANNELS
        and shard.is_first
        and shard.is_last
    )


def attend(attention: Attention, y_ME: Tensor, step: Step, k_pool_PSGD: Tensor, v_pool_PSGD: Tensor) -> Product:
    """Attention of normed hidden states."""
    qkv, scale = _product(attention.qkv).multiply(y_ME)
    out = _product(attention.out)
    projections = Projections(qkv, scale, *step.rotations[attention.rope], step.slots_M)
    y_MHD = step.attend.rotate_and_attend(projections, k_pool_PSGD, v_pool_PSGD, attention.scoring, out.rounding)
    return out.multiply(y_MHD.flatten(1))


def add_and_norm(
    norm: nn.Module, x_ME: Tensor, pending: Product | None, y_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The stream with its addend, and its norm."""
    plus_one = isinstance(norm, RmsNormPlusOne)
    weight, epsilon = cast(RmsNorm, norm).weight, cast(RmsNorm, norm).epsilon
    if pending is None:
        return x_ME, ops.rms_norm(x_ME, weight, epsilon, plus_one=plus_one, y_scale=y_scale)
    addend, addend_scale = pending
    return ops.add_rms_norm(
        x_ME, addend, weight, epsilon, plus_one=plus_one, addend_scale=addend_scale, y_scale=y_scale
    )


def _product(module: torch.nn.Module | Tensor) -> ProductLinear:
    return cast(ProductLinear, module)
