"""The TensorRT-LLM releases of a recipe: tables by version, or a probe file with its digest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtx.errors import UsageProblem
from trtx.files import sha256_file
from trtx.recipe.cells import Cell
from trtx.recipe.check_backend import TENSORRT
from trtx.recipe.checks import origin
from trtx.recipe.load import LoadedRecipe
from trtx.recipe.problems import Problem, RecipeInvalid

if TYPE_CHECKING:
    from trtx.backends.tensorrt_llm.releases import Release

# A release, and the probe file as the recipe names it.
ReleaseName = tuple[str, str | None]


@dataclass(frozen=True)
class PinnedRelease:
    """A release; with a probe, where its file is and its SHA-256."""

    release: Release
    probe: Path | None = None
    digest: str | None = None


def is_tensorrt(cell: Cell) -> bool:
    """Whether a cell's engine is TensorRT-LLM's."""
    return cell.recipe.engine_for(cell.target).backend == TENSORRT


def needs_texts(cell: Cell) -> bool:
    """Whether any step of a cell reads texts: the embedded backend measures perplexity of everything."""
    variant = cell.recipe.quantization[cell.variant]
    return not is_tensorrt(cell) or variant.algorithm != "none" or variant.kv_cache != "auto"


def release_name(cell: Cell) -> ReleaseName:
    """What must be loaded once however many cells use it."""
    engine = cell.recipe.engine_for(cell.target)
    return engine.release or "", engine.probe


def describe_release(pinned: PinnedRelease, image: str, digest: str | None) -> dict[str, Any]:
    """What a release brings, for people and tools; None for what no source says."""
    release = pinned.release
    return {
        "release": release.version,
        "tables": "probe" if pinned.digest else release.confidence,
        "probe": pinned.digest,
        "image": image or None,
        "digest": digest,
        "triton_image": release.triton_image,
        "tensorrt": release.tensorrt,
        "cuda": release.cuda,
        "modelopt": release.modelopt,
        "python": release.python,
        "min_driver": release.compatible_driver,
        "toolkit_driver": release.min_driver,
    }


def load_releases(loaded: LoadedRecipe, cells: Iterable[Cell]) -> dict[ReleaseName, PinnedRelease]:
    """The releases of all cells of TensorRT-LLM, each once.

    Raises RecipeInvalid, naming the place, for a release without tables and for a file that is no probe of it.
    """
    found: dict[ReleaseName, PinnedRelease] = {}
    problems: list[Problem] = []
    for cell in cells:
        name = release_name(cell)
        if not is_tensorrt(cell) or name in found:
            continue
        try:
            found[name] = _load(loaded, cell, name)
        except UsageProblem as error:
            point = loaded.point_of(cell)
            setting = "probe" if name[1] is not None else "release"
            path = origin(point, cell.target, setting)
            problems.append(point.problem(path, error.what, why=error.why, fix=error.fix))
    if problems:
        raise RecipeInvalid(list(dict.fromkeys(problems)))
    return found


def _load(loaded: LoadedRecipe, cell: Cell, name: ReleaseName) -> PinnedRelease:
    from trtx.backends.tensorrt_llm.releases import Release

    version, probe = name
    if probe is None:
        return PinnedRelease(_load_shipped(version))
    place = loaded.point_of(cell).tree.places.get(origin(loaded.point_of(cell), cell.target, "probe"))
    beside = Path(place.source.name) if place and not place.source.is_option else loaded.path
    file = (beside.parent / probe).resolve()
    return PinnedRelease(Release.load(version, probed=file), file, sha256_file(file))


def _load_shipped(version: str) -> Release:
    """The shipped tables. Raises UsageProblem; for what is newer than all of them, with what is known of it."""
    from trtx.backends.tensorrt_llm.releases import Release, is_before, known_releases

    try:
        return Release.load(version)
    except UsageProblem as error:
        try:
            newer = not is_before(version, known_releases()[-1])
        except ValueError:
            raise error from None
        if not newer:
            raise
        raise UsageProblem(
            error.what,
            why=f"shipped tables end with {known_releases()[-1]}; after 1.3.0rc20 there is no trtllm-build any more",
            fix="read its image: trtx probe IMAGE --write FILE, and name the file in engine.probe",
        ) from error
