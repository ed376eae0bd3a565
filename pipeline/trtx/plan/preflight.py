"""Refusals before anything is spent: what the steps that will run need and this machine lacks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from trtx.errors import EnvironmentProblem, UsageProblem
from trtx.files import free_bytes
from trtx.hardware.fit import Setup, compute_need, find_misfit
from trtx.hardware.gpus import Gpu, find_gpu
from trtx.hardware.host import check_can_build, read_host, visible_gpus
from trtx.hardware.versions import installed_version
from trtx.models.config import ModelConfig
from trtx.models.format_checks import check_calibration
from trtx.models.layout import make_layout, make_shard
from trtx.plan.facts import ABSENT, Facts
from trtx.plan.formats import make_format
from trtx.plan.make import resolve_dtype
from trtx.plan.releases import is_tensorrt
from trtx.plan.resolve import PinnedSources
from trtx.plan.resources import HERE, Placement
from trtx.plan.steps import Plan
from trtx.plan.survey import State, StepStatus
from trtx.recipe.cells import Cell
from trtx.recipe.checks import origin
from trtx.recipe.load import LoadedRecipe
from trtx.recipe.schema import AS_STORED, Parallelism

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


def check_machine(
    plan: Plan, statuses: Iterable[StepStatus], facts: Facts, environ: Mapping[str, str] = os.environ
) -> None:
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
        here = {step.params["arch"]: 1 for step in own if step.stage == "build"}
        for step in own:
            if step.stage == "build":
                arch, rank = step.params["arch"], step.params["rank"]
                here[arch] = max(here[arch], rank["tensor"])
        for device in map(find_gpu, plan.gpus):
            if device.arch in here:
                check_can_build(facts.host, device)
                if device.kind == "gpu":
                    check_gpu_here(device, environ, here[device.arch])
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


def check_gpu_here(device: Gpu, environ: Mapping[str, str], count: int = 1) -> None:
    """Raise EnvironmentProblem unless the first GPUs that CUDA_VISIBLE_DEVICES leaves are so many of a target's."""
    host = read_host()
    gpus = visible_gpus(host, environ)
    others = [g for g in gpus[:count] if g.arch != device.arch or g.catalogue_name not in (device.name, None)]
    if len(gpus) >= count and not others:
        return
    found = f"its GPU is {others[0].name} ({others[0].arch})" if others else host.gpus_problem or "it has no NVIDIA GPU"
    if gpus and not others:
        found = f"the target's tensor parallelism takes {count} GPUs, and it has {len(gpus)}"
    raise EnvironmentProblem(
        f"engines for {device.name} cannot be built and measured on this machine",
        why=found,
        fix="run on a machine with that GPU, or give the target a Slurm runner",
    )


def gpu_gap(shape: ModelConfig) -> str:
    """What a model has that the embedded backend's GPU kernels do not compute; empty when they do."""
    if shape.num_experts:
        return "there is no kernel for mixtures of experts"
    if shape.head_dim not in (64, 128, 256):
        return f"attention has heads of 64, 128 or 256 channels there, and these have {shape.head_dim}"
    return ""


def check_cut(point: LoadedRecipe, cell: Cell, shape: ModelConfig, ways: Parallelism) -> None:
    """Refuse ranks that the model cannot be cut into, or one host does not have, where the recipe asks for them."""
    place = ("targets", cell.target, "parallelism", "tensor" if ways.tensor > 1 else "pipeline")
    try:
        make_shard(shape, ways.tensor, ways.pipeline)
    except UsageProblem as error:
        point.refuse(place, f"{cell.name}: {error.what}", why=error.why, fix=error.fix)
    if ways.tensor > ways.gpus_per_node:
        what = f"{cell.name}: {ways.tensor} ranks are more than the {ways.gpus_per_node} devices of one host"
        why = "the ranks of an embedded engine are processes of one host"
        point.refuse(place, what, why=why, fix="use fewer ranks, or the backend tensorrt-llm")


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
        dtype, quantization = resolve_dtype(engine, gpu, shape), make_format(variant, sources.model_of(cell))
        check_cut(point, cell, shape, target.parallelism)
        try:
            if variant.algorithm != AS_STORED:
                check_calibration(shape, quantization)
            make_layout(shape, quantization, dtype, target.parallelism.tensor, target.parallelism.pipeline)
        except UsageProblem as error:
            point.refuse(("quantization", cell.variant), f"{cell.name}: {error.what}", why=error.why, fix=error.fix)
        if gpu.kind == "gpu" and (why := gpu_gap(shape)):
            what = f"{cell.name}: this model cannot be compiled for a GPU yet"
            point.refuse(
                ("targets", cell.target, "gpu"), what, why=why, fix="use a CPU target, or the backend tensorrt-llm"
            )
        setup = Setup(
            algorithm=quantization.algorithm,
            kv_cache=quantization.kv_cache,
            group_size=quantization.group_size,
            zero_points=quantization.zero_points,
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
            if memory is not None and target.parallelism.tensor > 1:
                memory //= target.parallelism.tensor
                holder = f"each of {target.parallelism.tensor} ranks on {holder}"
        misfit = find_misfit(compute_need(shape, setup), setup, memory, holder)
        if misfit is not None:
            place = origin(point, cell.target, *misfit.setting) if misfit.setting else ("targets", cell.target, "gpu")
            point.refuse(place, f"{cell.name}: {misfit.what}", why=misfit.why, fix=misfit.fix)
