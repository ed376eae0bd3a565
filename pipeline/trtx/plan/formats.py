"""Which number formats a cell's engine has: those of its variant, or those of a model that is quantized already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trtx.errors import TrtxError
from trtx.models.formats import QuantFormat
from trtx.plan.releases import is_tensorrt
from trtx.plan.resolve import PinnedModel, PinnedSources
from trtx.recipe.cells import Cell
from trtx.recipe.checks import Hardware, warning
from trtx.recipe.load import LoadedRecipe
from trtx.recipe.problems import Problem, RecipeInvalid
from trtx.recipe.schema import AS_STORED, Quantization


def make_format(variant: Quantization, model: PinnedModel) -> QuantFormat:
    """The number formats of a variant of a model, in the words of the engine."""
    if variant.algorithm == AS_STORED:
        return model.stored or QuantFormat()
    return QuantFormat.model_validate(
        {"algorithm": variant.algorithm, "kv_cache": variant.kv_cache, "exclude": variant.exclude}
    )


def check_formats(
    loaded: LoadedRecipe, cells: Iterable[Cell], sources: PinnedSources, hardware: Hardware
) -> list[Problem]:
    """Hold every cell's variant to what its model stores. Returns warnings.

    Raises RecipeInvalid with all problems: a model that is quantized in a way that cannot be run, that should be
    quantized once more, or that runs on no such device.
    """
    found = [
        problem
        for cell in cells
        for problem in _check_cell(loaded.point_of(cell), cell, sources.model_of(cell), hardware)
        # What TensorRT-LLM serves as it is published need not be of a format that trtx reads.
        if not (is_tensorrt(cell) and cell.recipe.quantization[cell.variant].algorithm in ("none", AS_STORED))
    ]
    found = list({(each.file, each.mark, each.what): each for each in reversed(found)}.values())[::-1]
    if any(problem.severity == "error" for problem in found):
        raise RecipeInvalid(found)
    return found


def _check_cell(point: LoadedRecipe, cell: Cell, model: PinnedModel, hardware: Hardware) -> Iterator[Problem]:
    variant = cell.recipe.quantization[cell.variant]
    try:
        stored = model.stored
    except TrtxError as error:
        what = f"the model is quantized in a way that cannot be run: {error.what}"
        yield point.problem(("model", "source"), what, why=error.why, fix=error.fix)
        return
    if variant.algorithm == AS_STORED:
        yield from _check_kept(point, cell, stored or QuantFormat(), hardware)
    elif stored is not None:
        yield point.problem(
            ("quantization", cell.variant, "algorithm"),
            f"{variant.algorithm} cannot be had: the model is quantized already, {describe(stored)}",
            why=f"{model.source.url} says so, and numbers that were rounded once are not rounded again",
            fix=f"write `algorithm: {AS_STORED}`, which keeps them, or name the model it was made from as model.source",
        )


def _check_kept(point: LoadedRecipe, cell: Cell, stored: QuantFormat, hardware: Hardware) -> Iterator[Problem]:
    variant = cell.recipe.quantization[cell.variant]
    if variant.kv_cache not in ("auto", stored.kv_cache):
        has = "none for a KV cache" if stored.kv_cache == "auto" else f"those of an {stored.kv_cache} one"
        yield point.problem(
            ("quantization", cell.variant, "kv_cache"),
            f"the model has no scales of an {variant.kv_cache} KV cache",
            why=f"algorithm {AS_STORED} takes the checkpoint's own, and it has {has}",
            fix="leave kv_cache out"
            + (", or write `algorithm: none`, which calibrates one" if stored == QuantFormat() else ""),
        )
    device = hardware.GPUS[cell.recipe.targets[cell.target].gpu]
    if problem_here := hardware.support_problem(device.arch, stored.algorithm):
        severity, what, why = problem_here
        where = ("quantization", cell.variant, "algorithm")
        problem = point.problem(where, f"{cell.target}/{cell.variant}: {what}", why=why)
        yield problem if severity == "error" else warning(problem)
    elif answer := hardware.compile_problem(device.arch, stored.algorithm):
        why, fix = answer
        what = f"{cell.target}/{cell.variant}: an engine of {stored.algorithm} cannot be built for {device.name}"
        yield point.problem(("quantization", cell.variant, "algorithm"), what, why=why, fix=fix)


def describe(stored: QuantFormat) -> str:
    """A format in a few words."""
    return stored.algorithm + ("" if stored.kv_cache == "auto" else f" with an {stored.kv_cache} KV cache")
