"""Modules that keep their numbers: from Hugging Face's names to patterns over the engine's. Imports no torch.

The loader matches patterns against module names and, where it packs weight-only numbers itself, against tensor
names (models/convert_utils.py: weight_only_quantize_dict), and both count layers from the first of the stage.
"""

from __future__ import annotations

from collections.abc import Iterable

from trtx.backends.tensorrt_llm.checkpoint.formats import ALWAYS_EXCLUDED, ROWWISE, WEIGHT_ONLY
from trtx.backends.tensorrt_llm.checkpoint.share import split
from trtx.backends.tensorrt_llm.checkpoint.sizes import Sizes
from trtx.errors import UsageProblem
from trtx.models.architecture import Architecture
from trtx.models.config import load_architecture
from trtx.models.formats import is_excluded

# Module in the engine, below the layer → what it is made of, below Hugging Face's layer.
Made = dict[str, tuple[str, ...]]


def layer_modules(sizes: Sizes) -> Made:
    """What the quantizable modules of a layer are made of."""
    names = load_architecture(sizes.architecture)
    attention: Made = {"attention.qkv": names.qkv, "attention.dense": (names.out,)}
    if sizes.num_experts:
        return {**attention, "mlp": tuple(_expert_matrices(names, range(sizes.num_experts)))}
    gate, up = names.up
    return {**attention, "mlp.fc": (gate,), "mlp.gate": (up,), "mlp.proj": (names.down,)}


def _expert_matrices(names: Architecture, experts: range) -> Iterable[str]:
    assert names.experts is not None  # noqa: S101 - architectures with experts have their names
    for number in experts:
        for name in (names.experts.gate, names.experts.up, names.experts.down):
            yield name.format(number)


def exclude_patterns(sizes: Sizes, excluded: tuple[str, ...], quant_algo: str | None, pipeline: int) -> tuple[str, ...]:
    """Patterns for config.json's `exclude_modules`; `excluded` are those of Hugging Face's names.

    Raises UsageProblem for a module of which only a part is excluded, and for layers that cannot be told apart because
    each pipeline stage counts its own.
    """
    names, modules = load_architecture(sizes.architecture), layer_modules(sizes)
    by_layer = []
    for layer in range(sizes.num_layers):
        found = frozenset(m for m in modules if _is_excluded(names, layer, m, modules[m], excluded))
        by_layer.append(_whole_blocks(found, modules) if quant_algo == ROWWISE else found)
    patterns = [f"transformer.layers.{layer}.{module}" for layer, module in _by_stage(by_layer, pipeline)]
    if quant_algo in WEIGHT_ONLY:
        patterns += [f"{pattern}.*weight" for pattern in patterns]
    return (*ALWAYS_EXCLUDED, *patterns)


def _by_stage(by_layer: list[frozenset[str]], pipeline: int) -> list[tuple[str, str]]:
    """Layers as a stage counts them, `*` for all, and modules that are excluded there."""
    if len(set(by_layer)) == 1:
        return [("*", module) for module in sorted(by_layer[0])]
    stages = [split(len(by_layer), pipeline, stage) for stage in range(pipeline)]
    found = []
    for local in range(len(stages[0])):
        kinds = {by_layer[stage[local]] for stage in stages if local < len(stage)}
        if len(kinds) > 1:
            raise UsageProblem(
                f"layers that differ in what is excluded do not go with {pipeline} pipeline stages",
                why="TensorRT-LLM names layers from the first of the stage, so a name is of one in every stage",
                fix="exclude a module in all layers, or set pipeline parallelism to 1",
            )
        found += [(str(local), module) for module in sorted(kinds.pop())]
    return found


def _whole_blocks(excluded: frozenset[str], modules: Made) -> frozenset[str]:
    """The same for FP8_PER_CHANNEL_PER_TOKEN: an attention or an MLP as a whole, with the norm before it."""
    found: set[str] = set()
    for block, norm in (("attention", "input_layernorm"), ("mlp", "post_layernorm")):
        parts = {module for module in modules if module.startswith(block)}
        if parts <= excluded:
            found |= {block, norm}
        elif kept := sorted(parts & excluded):
            raise UsageProblem(
                f"{kept[0]} cannot be excluded from {ROWWISE} alone",
                why=f"TensorRT-LLM quantizes the {block} of a layer as a whole",
                fix=f"exclude all of {', '.join(sorted(parts))}, or none",
            )
    return frozenset(found)


def _is_excluded(
    names: Architecture, layer: int, module: str, sources: tuple[str, ...], patterns: tuple[str, ...]
) -> bool:
    found = [name for name in sources if is_excluded(names.layer_source(layer, name), patterns)]
    if found and len(found) != len(sources):
        raise UsageProblem(
            f"{names.layer_source(layer, found[0])} cannot be excluded from quantization alone",
            why=f"TensorRT-LLM has {len(sources)} matrices in one, its {module}",
            fix="exclude all of them or none",
        )
    return bool(found)
