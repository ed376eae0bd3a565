"""Refusals of TensorRT-LLM as problems of a recipe: each with its place, the rule, the release and the fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from trtx.errors import UsageProblem
from trtx.hardware.gpus import find_gpu
from trtx.plan.releases import PinnedRelease, is_tensorrt, release_name
from trtx.plan.resolve import model_name
from trtx.plan.resources import HERE, Placement
from trtx.recipe.cells import Cell
from trtx.recipe.checks import origin
from trtx.recipe.load import LoadedRecipe
from trtx.recipe.problems import Path, Problem
from trtx.recipe.runners import LocalRunner, SlurmRunner
from trtx.recipe.schema import AS_STORED, Quantization

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from trtx.backends.tensorrt_llm.refusals.base import Refusal, Subject
    from trtx.backends.tensorrt_llm.spec import TrtllmSpec
    from trtx.plan.facts import Facts
    from trtx.plan.releases import ReleaseName
    from trtx.plan.resolve import ModelName

# Cells that a problem names before it only counts them.
NAMED = 3


def make_subject(
    cell: Cell,
    pinned: PinnedRelease,
    config: Mapping[str, Any] | None,
    facts: Facts | None = None,
    placement: Placement = HERE,
) -> Subject:
    """What refusals look at. `config` is the model's config.json, None while nobody knows it.

    Raises UsageProblem for a config.json that lacks a size.
    """
    from trtx.backends.tensorrt_llm.from_recipe import resolve_flow
    from trtx.backends.tensorrt_llm.refusals.base import Subject
    from trtx.backends.tensorrt_llm.shape import read_shape

    recipe, engine = cell.recipe, cell.recipe.engine_for(cell.target)
    target = recipe.targets[cell.target]
    runner = placement.find(cell, placement.name_of(cell))
    here = isinstance(runner, LocalRunner)
    memory, host = 0, ""
    if facts is not None and here:
        memory, host = facts.host.memory_bytes, "this machine"
    elif isinstance(runner, SlurmRunner):
        memory, host = runner.stages.calibrate.memory or runner.memory or 0, "the job of calibrate"
    return Subject(
        release=pinned.release,
        flow=resolve_flow(engine, pinned.release),
        engine=engine,
        parallelism=target.parallelism,
        variant=_as_served(recipe.quantization[cell.variant]),
        gpu=find_gpu(target.gpu),
        source=recipe.model.source,
        emit=tuple(recipe.package.emit),
        measures=recipe.benchmark is not None,
        job=target.job,
        shape=read_shape(config) if config is not None else None,
        driver=facts.driver if facts is not None and here else None,
        host_bytes=memory,
        host=host,
    )


def _as_served(variant: Quantization) -> Quantization:
    """Numbers that are kept as the model's files have them are, for the release, not quantized by anybody."""
    return variant.model_copy(update={"algorithm": "none"}) if variant.algorithm == AS_STORED else variant


def find_problems(
    loaded: LoadedRecipe,
    cells: Iterable[Cell],
    releases: Mapping[ReleaseName, PinnedRelease],
    configs: Mapping[ModelName, Mapping[str, Any] | None],
    facts: Facts | None = None,
    placement: Placement = HERE,
) -> list[Problem]:
    """All problems and warnings of the cells of TensorRT-LLM; one that several share is told once.

    `configs` are the models' config.json by what names a model, None or absent where it is not known.
    """
    from trtx.backends.tensorrt_llm.refusals.base import find_refusals

    found: dict[Problem, list[str]] = {}
    for cell in cells:
        if not is_tensorrt(cell):
            continue
        point, pinned = loaded.point_of(cell), releases[release_name(cell)]
        config = configs.get(model_name(cell.recipe.model))
        try:
            subject = make_subject(cell, pinned, config, facts, placement)
        except UsageProblem as error:
            problem = point.problem(("model", "source"), error.what, why=error.why, fix=error.fix)
            found.setdefault(problem, []).append(cell.name)
            continue
        refusals = find_refusals(subject)
        if not any(refusal.severity == "error" for refusal in refusals):
            refusals += rehearse_cell(cell, subject, pinned, config)
        for refusal in refusals:
            found.setdefault(_make_problem(point, cell, subject, refusal), []).append(cell.name)
    return [replace(problem, what=f"{_name(names)}: {problem.what}") for problem, names in found.items()]


def rehearse_cell(
    cell: Cell, subject: Subject, pinned: PinnedRelease, config: Mapping[str, Any] | None
) -> list[Refusal]:
    """What only the steps themselves find: a command line that the release refuses, layers that ModelOpt leaves out."""
    from trtx.backends.tensorrt_llm.refusals.base import Refusal
    from trtx.backends.tensorrt_llm.rehearse import rehearse

    if config is None:
        return []
    found = _check_quantizer(subject, config)
    spec = spec_of(cell, subject, pinned, config, None)
    try:
        commands = list(rehearse(spec, pinned.release, measures=cell.recipe.benchmark is not None))
    except UsageProblem as error:
        return [*found, Refusal("command-line", ("engine", "release"), error.what, error.why, error.fix, "its tables")]
    doubts = [doubt for command in commands for doubt in command.doubts]
    if doubts:
        what = f"{len(doubts)} of what {subject.title} is told {'is' if len(doubts) == 1 else 'are'} not established"
        fix = "read its image: trtx probe IMAGE --write FILE, and name the file in engine.probe"
        why = "; ".join(dict.fromkeys(doubts))
        found.append(Refusal("not-established", ("engine", "release"), what, why, fix, "its tables", "warning"))
    return found


def _check_quantizer(subject: Subject, config: Mapping[str, Any]) -> list[Refusal]:
    """Where trtx quantizes, it must know the model's layers and how ModelOpt stores them."""
    from trtx.backends.tensorrt_llm.convertible import choose_converter
    from trtx.backends.tensorrt_llm.from_recipe import make_format
    from trtx.backends.tensorrt_llm.refusals.base import Refusal
    from trtx.models.config import read_model_config
    from trtx.models.layout import make_layout

    variant = subject.variant
    if variant.algorithm == "none" and variant.kv_cache == "auto":
        return []
    if subject.flow == "engine" and choose_converter(subject) == "release":
        return []
    try:
        make_layout(read_model_config(config), make_format(variant), "bfloat16", 1, 1)
    except UsageProblem as error:
        what = f"trtx cannot quantize this model to {variant.algorithm}: {error.what}"
        fix = "name a checkpoint that is quantized already, with algorithm: none"
        return [Refusal("quantizer", ("quantization", "algorithm"), what, error.why, fix, "trtx and ModelOpt")]
    return []


def spec_of(
    cell: Cell, subject: Subject, pinned: PinnedRelease, config: Mapping[str, Any], digest: str | None
) -> TrtllmSpec:
    """The whole spec of a cell; `digest` is its image's, where that is known."""
    from trtx.backends.tensorrt_llm.convertible import choose_converter
    from trtx.backends.tensorrt_llm.from_recipe import make_spec, resolve_dtype

    return make_spec(
        subject,
        dtype=resolve_dtype(subject.engine, config),
        converter=choose_converter(subject) if subject.flow == "engine" else "trtx",
        digest=digest,
        probe=pinned.digest,
    )


def _name(cells: list[str]) -> str:
    more = f" and {len(cells) - NAMED} more" if len(cells) > NAMED else ""
    return ", ".join(cells[:NAMED]) + more


def _make_problem(point: LoadedRecipe, cell: Cell, subject: Subject, refusal: Refusal) -> Problem:
    path = place_of(point, cell, refusal.setting)
    rule = f"rule {refusal.rule} of {subject.title}, {refusal.source}"
    why = f"{refusal.why}; {rule}" if refusal.why else rule
    at_key = refusal.at_key and path in point.tree.places
    problem = point.problem(path, refusal.what, why=why, fix=refusal.fix, at_key=at_key)
    return replace(problem, severity=refusal.severity)


def place_of(point: LoadedRecipe, cell: Cell, setting: Path) -> Path:
    """Where the recipe says a setting of one cell, as refusals name it."""
    head, rest = setting[0], setting[1:]
    if head == "engine":
        return _engine_place(point, cell, rest)
    if head == "quantization":
        return ("quantization", cell.variant, *rest)
    if head == "package" and setting not in point.tree.places:
        return _engine_place(point, cell, ("release",))  # What is packaged by default is not the release's to package.
    if head in ("parallelism", "gpu", "job"):
        return ("targets", cell.target, head, *rest)
    return setting


def _engine_place(point: LoadedRecipe, cell: Cell, rest: Path) -> Path:
    """The override of the target where it says this or, for an item of a list, the list; else the recipe's engine."""
    for length in range(len(rest), 0, -1):
        path = origin(point, cell.target, *(str(part) for part in rest[:length]))
        if path in point.tree.places:
            return (*path, *rest[length:])
    return ("engine", *rest)
