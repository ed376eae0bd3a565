"""Settings that only one backend has, set with the other: nothing of a recipe is ever without effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from trtx.recipe.load import LoadedRecipe
from trtx.recipe.lookup import value_at
from trtx.recipe.parts import Part
from trtx.recipe.problems import Path, Problem
from trtx.recipe.schema import Engine, Package, Parallelism
from trtx.recipe.tree import dotted

EMBEDDED, TENSORRT = "inductor", "tensorrt-llm"
# Below `engine`, with what to do instead with the other backend.
TENSORRT_SETTINGS: tuple[Path, ...] = (
    *(("release",), ("flow",), ("probe",), ("container",), ("converter",), ("preset",), ("profiles",), ("plugins",)),
    *(("build_options",), ("llm_options",), ("speculative",), ("lora",), ("strict_gpu",)),
    *(("limits", "max_input_len"), ("limits", "max_beam_width"), ("kv_cache", "host_size")),
)
EMBEDDED_SETTINGS: tuple[tuple[Path, str], ...] = (
    (("kv_cache", "size"), "write kv_cache.memory_fraction: TensorRT-LLM sizes its cache by what is free"),
)
# Below `package`.
EMBEDDED_IMAGES = (
    ("base", "its packages are made on the release's image", "remove it, or name another image in engine.container"),
    ("triton_base", "its packages are made on the release's own image of Triton", "remove it"),
)
# Below a target's `parallelism`. What equals its default says nothing, so that resolved recipes can be read again.
TENSORRT_WAYS = ("context", "expert", "gpus_per_node")


def check_backends(loaded: LoadedRecipe) -> Iterator[Problem]:
    """Problems of one point: settings of the other backend, and what a backend cannot be without."""
    recipe = loaded.recipe
    backends = {name: recipe.engine_for(name).backend for name in recipe.targets}
    for setting in TENSORRT_SETTINGS:
        fix = f"remove it, or write engine.backend: {TENSORRT}"
        yield from _check_setting(loaded, backends, setting, TENSORRT, fix)
    for setting, fix in EMBEDDED_SETTINGS:
        yield from _check_setting(loaded, backends, setting, EMBEDDED, fix)
    if set(backends.values()) == {TENSORRT}:
        for image, why, fix in EMBEDDED_IMAGES:
            if getattr(recipe.package, image) != Package.model_fields[image].default:
                what = f"package.{image} means nothing to the backend {TENSORRT}"
                yield loaded.problem(("package", image), what, why=why, fix=fix, at_key=True)
    for name, backend in backends.items():
        yield from _check_target(loaded, name, backend)


def _check_setting(
    loaded: LoadedRecipe, backends: Mapping[str, str], setting: Path, owner: str, fix: str
) -> Iterator[Problem]:
    """A setting of the recipe's engine is for any target that has its backend; one of a target is for that target."""
    places: list[tuple[Path, set[str]]] = [(("engine", *setting), set(backends.values()))]
    places += [(("targets", name, "engine", *setting), {backend}) for name, backend in backends.items()]
    for path, present in places:
        if owner not in present and path in loaded.tree.places and not _is_default(loaded, path, setting):
            what = f"{dotted(path)} means nothing to the backend {' and '.join(sorted(present))}"
            yield loaded.problem(path, what, why=f"only {owner} has it", fix=fix, at_key=True)


def _is_default(loaded: LoadedRecipe, path: Path, setting: Path) -> bool:
    model: type[Part] = Engine
    for name in setting[:-1]:
        model = cast(type[Part], model.model_fields[str(name)].annotation)
    return bool(value_at(path, loaded.tree.data) == model.model_fields[str(setting[-1])].default)


def _check_target(loaded: LoadedRecipe, name: str, backend: str) -> Iterator[Problem]:
    engine, parallelism = loaded.recipe.engine_for(name), loaded.recipe.targets[name].parallelism
    for way in TENSORRT_WAYS:
        if backend != TENSORRT and getattr(parallelism, way) != Parallelism.model_fields[way].default:
            path: Path = ("targets", name, "parallelism", way)
            what = f"{dotted(path)} means nothing to the backend {backend}"
            fix = f"remove it, or write engine.backend: {TENSORRT}"
            yield loaded.problem(path, what, why=f"only {TENSORRT} has it", fix=fix, at_key=True)
    if backend == TENSORRT and engine.release is None:
        own: Path = ("targets", name, "engine", "backend")
        path = own if own in loaded.tree.places else ("engine", "backend")
        what = f"the target '{name}' has the backend tensorrt-llm and no release"
        why = "flags, image, CUDA and the least driver differ from release to release"
        yield loaded.problem(path, what, why=why, fix="add engine.release, such as 1.2.1")
