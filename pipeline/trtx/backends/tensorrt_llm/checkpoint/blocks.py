"""Which rows and columns of which Hugging Face matrices a rank's matrices are made of. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from trtx.backends.tensorrt_llm.checkpoint.share import Share
from trtx.backends.tensorrt_llm.checkpoint.sizes import Sizes
from trtx.models.architecture import Architecture
from trtx.models.config import load_architecture
from trtx.models.linear_layout import Cut


@dataclass(frozen=True)
class Block:
    """Rows of matrices of the folder, one matrix below the other, and the columns that all of them share."""

    names: tuple[str, ...]
    rows: tuple[range, ...]
    columns: range
    cut: Cut

    @property
    def pairs(self) -> list[tuple[str, range]]:
        return list(zip(self.names, self.rows, strict=True))

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.rows))


def attention_blocks(sizes: Sizes, share: Share, layer: int) -> dict[str, Block]:
    """Modules below the engine's layer → blocks: attention.qkv and attention.dense."""
    names, hidden = load_architecture(sizes.architecture), range(sizes.hidden_size)
    heads, kv = scale(share.heads, sizes.head_dim), scale(share.kv_heads, sizes.head_dim)
    qkv = tuple(names.layer_source(layer, name) for name in names.qkv)
    return {
        "attention.qkv": Block(qkv, (heads, kv, kv), hidden, "rows"),
        "attention.dense": Block((names.layer_source(layer, names.out),), (hidden,), heads, "columns"),
    }


def mlp_blocks(sizes: Sizes, share: Share, layer: int) -> dict[str, Block]:
    """The same of an MLP: mlp.fc is the gate's matrix, mlp.gate the one that it multiplies."""
    names, hidden, middle = load_architecture(sizes.architecture), range(sizes.hidden_size), share.intermediate
    gate, up = names.up
    return {
        "mlp.fc": Block((names.layer_source(layer, gate),), (middle,), hidden, "rows"),
        "mlp.gate": Block((names.layer_source(layer, up),), (middle,), hidden, "rows"),
        "mlp.proj": Block((names.layer_source(layer, names.down),), (hidden,), middle, "columns"),
    }


def expert_blocks(sizes: Sizes, share: Share, layer: int) -> dict[str, list[Block]]:
    """The same of a mixture, a block for each of the rank's experts.

    mlp.fc has the up matrix above the gate's, the other way round than fc and gate of an MLP (layers/moe.py).
    """
    hidden, middle = range(sizes.hidden_size), share.intermediate
    experts = [expert_names(sizes, layer, number) for number in share.experts]
    return {
        "mlp.fc": [Block((up, gate), (middle, middle), hidden, "rows") for gate, up, _ in experts],
        "mlp.proj": [Block((down,), (hidden,), middle, "columns") for _, _, down in experts],
    }


def expert_names(sizes: Sizes, layer: int, number: int) -> tuple[str, str, str]:
    """Names of the gate, up and down matrices of an expert."""
    names = load_architecture(sizes.architecture)
    assert names.experts is not None  # noqa: S101 - architectures with experts have their names
    experts = names.experts

    def name(of: str) -> str:
        return names.layer_source(layer, of.format(number))

    return name(experts.gate), name(experts.up), name(experts.down)


def router_name(names: Architecture, layer: int) -> str:
    """The module that chooses a token's experts."""
    assert names.experts is not None  # noqa: S101 - architectures with experts have their names
    return names.layer_source(layer, names.experts.router)


def scale(items: range, size: int) -> range:
    """Heads as the channels that they have."""
    return range(items.start * size, items.stop * size)
