"""Checks of a recipe against the shape of its model, which is known once the source is resolved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from trtx.recipe.check_backend import TENSORRT
from trtx.recipe.checks import origin
from trtx.recipe.load import LoadedRecipe
from trtx.recipe.problems import Path, Problem

# Columns that share one scale; trtx.models.formats has the same facts.
GROUP_SIZES = {
    "int4_wo": 128,
    "int4_awq": 128,
    "int4_gptq": 128,
    "w4a8_awq": 128,
    "nvfp4": 16,
    "nvfp4_awq": 16,
    "mxfp4": 32,
    "mxfp8": 32,
}


class ModelShape(Protocol):
    """The sizes of a decoder-only model; trtx.models.config.ModelConfig is one."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def rope_scaling(self) -> Mapping[str, Any] | None: ...


def find_misfits(loaded: LoadedRecipe, model: ModelShape) -> list[Problem]:
    """What the model of a recipe, or of one point of it, cannot do: lengths, shards, group sizes; each problem once.

    Targets of TensorRT-LLM have the rules of its releases: trtx.plan.check_tensorrt_llm.
    """
    found = list(_check_calibration(loaded, model))
    for target in loaded.built:
        if loaded.recipe.engine_for(target).backend == TENSORRT:
            continue
        found += [
            *_check_length(loaded, target, model),
            *_check_shards(loaded, target, model),
            *_check_groups(loaded, target, model),
        ]
    return list(dict.fromkeys(found))


def _check_calibration(loaded: LoadedRecipe, model: ModelShape) -> Iterator[Problem]:
    for name, variant in loaded.recipe.quantization.items():
        length = variant.calibration.max_length
        # A default is cut to the model's length instead.
        if "max_length" in variant.calibration.model_fields_set and length > model.max_position_embeddings:
            path: Path = ("quantization", name, "calibration", "max_length")
            what = f"calibration.max_length {length} is more than the model's {model.max_position_embeddings} positions"
            fix = f"set calibration.max_length to {model.max_position_embeddings} or less"
            yield loaded.problem(path, what, fix=fix)


def _check_length(loaded: LoadedRecipe, target: str, model: ModelShape) -> Iterator[Problem]:
    length = loaded.recipe.engine_for(target).limits.max_seq_len
    if length > model.max_position_embeddings:
        path = origin(loaded, target, "limits", "max_seq_len")
        what = f"max_seq_len {length} is more than the model's {model.max_position_embeddings} positions"
        fix = f"set engine.limits.max_seq_len to {model.max_position_embeddings} or less"
        why = ""
        if model.rope_scaling and model.rope_scaling.get("rope_type") == "dynamic":
            # trtx.models.rope says more.
            why = (
                "beyond them its dynamic RoPE turns all keys anew with every token, and those in the KV cache are "
                "turned already: answers would depend on what else the engine does"
            )
        yield loaded.problem(path, what, why=why, fix=fix, at_key=path not in loaded.tree.places)


def _check_shards(loaded: LoadedRecipe, target: str, model: ModelShape) -> Iterator[Problem]:
    parallelism = loaded.recipe.targets[target].parallelism
    for way, count, sizes in (
        (
            "tensor",
            parallelism.tensor,
            {
                "attention heads": model.num_heads,
                "key-value heads": model.num_kv_heads,
                "columns of the MLP": model.intermediate_size,
            },
        ),
        ("pipeline", parallelism.pipeline, {"layers": model.num_layers}),
    ):
        for noun, size in sizes.items():
            # Ranks may have the same key-value head, when there are more of them.
            if size % count and not (noun == "key-value heads" and count % size == 0):
                what = f"{size} {noun} cannot be divided by {way} parallelism {count}"
                fix = f"use one of {', '.join(map(str, _divisors(list(sizes.values()))))}"
                yield loaded.problem(("targets", target, "parallelism", way), what, fix=fix)


def _divisors(sizes: list[int]) -> list[int]:
    return [count for count in range(1, min(sizes) + 1) if all(size % count == 0 for size in sizes)]


def _check_groups(loaded: LoadedRecipe, target: str, model: ModelShape) -> Iterator[Problem]:
    """A linear's columns in one rank must be whole groups; the row-parallel linears have 1/tensor of the columns."""
    tensor = loaded.recipe.targets[target].parallelism.tensor
    columns = {
        "hidden_size": model.hidden_size,
        "the attention output": model.num_heads * model.head_dim // tensor,
        "intermediate_size": model.intermediate_size // tensor,
    }
    for variant in loaded.built[target]:
        algorithm = loaded.recipe.quantization[variant].algorithm
        group = GROUP_SIZES.get(algorithm)
        for noun, size in columns.items():
            if group and size % group:
                share = f" (per rank, tensor parallelism {tensor})" if tensor > 1 else ""
                what = f"{algorithm} needs columns in groups of {group}, and {noun} has {size}{share}"
                fix = "use an algorithm without groups, such as int8_wo" + (
                    ", or less parallelism" if tensor > 1 else ""
                )
                yield loaded.problem(("quantization", variant, "algorithm"), what, fix=fix)
