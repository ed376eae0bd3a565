"""Refusals before anything is spent: what the steps that will run need and this machine lacks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trtx.errors import EnvironmentProblem, UsageProblem
from trtx.files import free_bytes
from trtx.hardware.fit import Setup, compute_need, find_misfit
from trtx.hardware.gpus import find_gpu
from trtx.hardware.host import check_can_build
from trtx.hardware.versions import installed_version
from trtx.models.layout import make_layout
from trtx.plan.facts import ABSENT, Facts
from trtx.plan.make import make_format, resolve_dtype
from trtx.plan.releases import is_tensorrt
from trtx.plan.resolve import PinnedSources
from trtx.plan.resources import HERE, Placement
from trtx.plan.steps import Plan
from trtx.plan.survey import State, StepStatus
from trtx.recipe.cells import Cell
from trtx.recipe.checks import origin
from trtx.recipe.load import LoadedRecipe

# Distribution → the stages that import it.
NEEDED = {
    "torch": ("calibrate", "convert", "build", "benchmark"),
    "transformers": ("calibrate", "build"),
    "nvidia-modelopt": ("calibrate",),
    "safetensors": ("calibrate", "convert", "build", "benchmark"),
    "tokenizers": ("calibrate", "benchmark"),
}
# Below this much free space even a small recipe fails half-way.
MIN_FREE_BYTES = 512 << 20


def check_machine(plan: Plan, statuses: Iterable[StepStatus], facts: Facts) -> None:
    """Raises EnvironmentProblem for the first thing that is missing; says nothing when no step has to run here.

    What jobs of a cluster need is there, and not looked for.
    """
    to_run = [status.step for status in statuses if status.state in (State.TO_RUN, State.WAITING)]
    # Steps of another backend look at their container themselves.
    own = [step for step in plan.steps if step.resources is None and "backend" not in step.params]
    stages = {step.stage for step in to_run if step in own}
    if not stages:
        return
    for name, users in NEEDED.items():
        if stages & set(users) and installed_version(name) is None:
            raise EnvironmentProblem(
                f"the Python package {name} is not installed",
                why=f"the stage {next(stage for stage in users if stage in stages)} needs it",
                fix="install the engine packages: pip install 'trtx[engine]'",
            )
    if stages & {"build", "benchmark"}:
        # What is measured here is built here.
        here = {step.params["arch"] for step in own if step.stage == "build"}
        for device in map(find_gpu, plan.gpus):
            if device.arch in here:
                check_can_build(facts.host, device)
    if "build" in stages and facts.compiler == ABSENT:
        raise EnvironmentProblem(
            "there is no C++ compiler",
            why="AOTInductor compiles CPU engines with g++",
            fix="install it, on Debian: apt-get install g++",
        )
    free = free_bytes(Path(plan.cache_dir))
    if free < MIN_FREE_BYTES:
        raise EnvironmentProblem(
            f"only {free >> 20} MiB are free for the cache in {plan.cache_dir}",
            fix="free some space or point TRTX_CACHE_DIR at a larger disk",
        )


def check_fit(
    loaded: LoadedRecipe, cells: Iterable[Cell], sources: PinnedSources, facts: Facts, placement: Placement = HERE
) -> None:
    """Refuse an engine that its model's layers do not allow, or its device's memory cannot hold.

    A CPU's memory is this machine's, or what its job asks for; a job that asks for none is not checked. Raises
    RecipeInvalid with the place in the recipe that says so.
    """
    for cell in cells:
        if is_tensorrt(cell):
            continue  # trtx.plan.check_tensorrt_llm has the rules of its releases.
        recipe, shape, point = cell.recipe, sources.model_of(cell).shape, loaded.point_of(cell)
        engine, target = recipe.engine_for(cell.target), recipe.targets[cell.target]
        gpu, variant = find_gpu(target.gpu), recipe.quantization[cell.variant]
        dtype = resolve_dtype(engine, gpu, shape)
        try:
            make_layout(shape, make_format(variant), dtype, target.parallelism.tensor, target.parallelism.pipeline)
        except UsageProblem as error:
            point.refuse(("quantization", cell.variant), f"{cell.name}: {error.what}", why=error.why, fix=error.fix)
        setup = Setup(
            algorithm=variant.algorithm,
            kv_cache=variant.kv_cache,
            dtype=dtype,
            max_batch_size=engine.limits.max_batch_size,
            max_num_tokens=engine.limits.max_num_tokens,
            max_seq_len=engine.limits.max_seq_len,
            tokens_per_block=engine.kv_cache.block_tokens,
            kv_size_bytes=engine.kv_cache.size,
            tensor=target.parallelism.tensor,
            pipeline=target.parallelism.pipeline,
        )
        memory, holder = gpu.memory_bytes, gpu.name
        if memory is None:
            memory, holder = placement.memory_of(cell, facts.host.memory_bytes)
        misfit = find_misfit(compute_need(shape, setup), setup, memory, holder)
        if misfit is not None:
            place = origin(point, cell.target, *misfit.setting) if misfit.setting else ("targets", cell.target, "gpu")
            point.refuse(place, f"{cell.name}: {misfit.what}", why=misfit.why, fix=misfit.fix)
