"""Cells of a recipe + pinned sources + facts → plan. A pure function: it reads no file and asks no machine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from trtx.hardware.gpus import Gpu, find_gpu
from trtx.models.config import DType, ModelConfig
from trtx.plan.environment import MEASURING_STAGES, make_environment
from trtx.plan.facts import TOOLCHAIN, Facts
from trtx.plan.formats import make_format
from trtx.plan.keys import make_factors, make_key
from trtx.plan.releases import is_tensorrt
from trtx.plan.resolve import PinnedSources
from trtx.plan.resources import LOCAL, Placement, place_steps
from trtx.plan.steps import Plan, Step
from trtx.plan.workloads import plan_workloads
from trtx.recipe.cells import Cell
from trtx.recipe.runners import Runner
from trtx.recipe.schema import Engine
from trtx.runtime.card import Limits, Rank
from trtx.stages.job import JOB_NAME, Input
from trtx.stages.params import (
    BenchmarkParams,
    BuildParams,
    CalibrateParams,
    ConvertParams,
    DatasetParams,
    DownloadParams,
    PackageParams,
    Params,
    Scheduling,
)


@dataclass(frozen=True)
class Options:
    """How a plan is narrowed and run; none of it enters a key except through which steps exist.

    `until` is the last stage to plan; `files` are the recipe's files with their SHA-256, to know later whether they
    were edited. `site_runners` are those of the site's configuration; `runner` names one for all cells in place of
    their own.
    """

    until: str | None = None
    max_parallel: int | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    site_runners: Mapping[str, Runner] = field(default_factory=dict)
    runner: str | None = None


def make_plan(cells: Sequence[Cell], path: Path, sources: PinnedSources, facts: Facts, options: Options) -> Plan:
    """Expand cells, of which there is at least one, into steps; `path` is the recipe they are from."""
    placement = Placement(options.site_runners, options.runner)
    planner = Planner(sources, facts, _threads(facts, options, len(cells)), placement)
    for cell in cells:
        planner.add_cell(cell, options.until)
    made = tuple(replace(step, also=tuple(planner.also.get(step.id, ()))) for step in planner.steps.values())
    steps, runners = place_steps(made, planner.users, placement, facts.python)
    return Plan(
        name=cells[0].recipe.name,
        recipe=str(path),
        cache_dir=str(facts.cache_dir),
        cells=tuple(cell.name for cell in cells),
        gpus=tuple(dict.fromkeys(cell.recipe.targets[cell.target].gpu for cell in cells)),
        max_parallel=options.max_parallel or default_parallel(facts),
        files=dict(options.files),
        steps=steps,
        runners=runners,
    )


def default_parallel(facts: Facts) -> int:
    """Steps at once when nothing is said: two, where there are two cores; each may need gigabytes."""
    return min(2, facts.host.num_cpus)


def resolve_dtype(engine: Engine, gpu: Gpu, shape: ModelConfig) -> DType:
    """`auto` is the checkpoint's own; CPUs compute float16 in bfloat16, which has the hardware, and GPUs everything."""
    if engine.dtype != "auto":
        return engine.dtype
    if gpu.kind == "gpu":
        return "bfloat16"
    return "bfloat16" if shape.dtype == "float16" and gpu.kind == "cpu" else shape.dtype


def _scheduling(engine: Engine) -> Scheduling:
    return Scheduling(
        policy=engine.scheduler.policy,
        chunked_prefill=engine.scheduler.chunked_prefill,
        prefix_reuse=engine.kv_cache.reuse,
    )


def _gpu_factor(gpu: Gpu) -> dict[str, str]:
    """What a measurement depends on beside the engine, which is the same on all GPUs of an architecture."""
    return {"gpu": gpu.name} if gpu.kind == "gpu" else {}


def _threads(facts: Facts, options: Options, num_cells: int) -> int:
    parallel = min(options.max_parallel or default_parallel(facts), num_cells)
    return max(1, facts.host.num_cpus // parallel)


def _join(name: str, part: str) -> str:
    """A step's id with what the matrix adds to it."""
    return f"{name}/{part}" if part else name


def _short_name(url: str) -> str:
    """The last word of a URL, fit for a file name."""
    stem = PurePosixPath(url.partition("://")[2]).stem
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "data"


@dataclass
class Planner:
    """Adds steps in order; a step whose key exists already is not added twice.

    `users` are the cells of each step, `also` what it would be called for the others of them; both by its id.
    """

    sources: PinnedSources
    facts: Facts
    threads: int
    placement: Placement
    steps: dict[str, Step] = field(default_factory=dict)
    users: dict[str, list[Cell]] = field(default_factory=dict)
    also: dict[str, dict[str, None]] = field(default_factory=dict)
    _by_key: dict[str, Step] = field(default_factory=dict)

    def add_cell(self, cell: Cell, until: str | None) -> None:
        """All steps of one target × variant, up to the stage `until`."""
        if is_tensorrt(cell):
            from trtx.plan.make_tensorrt_llm import add_tensorrt_llm

            add_tensorrt_llm(self, cell, until)
            return
        engine = cell.recipe.engine_for(cell.target)
        gpu = find_gpu(cell.recipe.targets[cell.target].gpu)
        made: dict[str, Step] = {}
        for stage, add in (
            ("download", lambda cell, engine, gpu, made: self.add_download(cell)),
            ("dataset", lambda cell, engine, gpu, made: self.add_dataset(cell)),
            ("calibrate", lambda cell, engine, gpu, made: self.add_calibrate(cell, made)),
            ("convert", self._add_convert),
            ("build", self._add_build),
            ("benchmark", self._add_benchmark),
            ("package", self._add_package),
        ):
            if stage != "benchmark" or cell.recipe.benchmark is not None:
                made[stage] = add(cell, engine, gpu, made)
                self.users.setdefault(made[stage].id, []).append(cell)
            if stage == until:
                return

    def add_download(self, cell: Cell) -> Step:
        """The step that fetches the model."""
        pinned = self.sources.model_of(cell)
        model = pinned.source
        params = DownloadParams(url=model.url, identity=model.identity, allow_pickle=cell.recipe.model.allow_pickle)
        return self.add(
            _join("download/model", cell.part_of_point(["model"])),
            params,
            {},
            toolchain=self._toolchain(model.toolchain),
            expected=pinned.files,
        )

    def add_dataset(self, cell: Cell) -> Step:
        """The step that fetches texts and draws rows."""
        data = cell.recipe.quantization[cell.variant].calibration
        resolved = self.sources.dataset_of(cell)
        params = DatasetParams(
            url=resolved.url,
            identity=resolved.identity,
            split=data.split,
            column=data.column,
            samples=data.samples,
            heldout=data.heldout,
            seed=data.seed,
        )
        name = _join(f"download/{_short_name(data.dataset)}", cell.part_of_point(["quantization"]))
        toolchain = self._toolchain(resolved.toolchain)
        return self.add(name, params, {}, toolchain=toolchain, expected=self.sources.rows_of(cell))

    def add_calibrate(self, cell: Cell, made: Mapping[str, Step]) -> Step:
        """The step that quantizes with ModelOpt; `made` has the steps `download` and `dataset`."""
        data = cell.recipe.quantization[cell.variant].calibration
        params = CalibrateParams(
            quantization=make_format(cell.recipe.quantization[cell.variant], self.sources.model_of(cell)),
            max_length=min(data.max_length, self.sources.model_of(cell).shape.max_position_embeddings),
            batch_size=data.batch_size,
            seed=data.seed,
        )
        inputs = {"model": made["download"], "data": made["dataset"]}
        name = _join(f"calibrate/{cell.variant}", cell.part_of_point(["model", "quantization"]))
        return self.add(name, params, inputs)

    def _add_convert(self, cell: Cell, engine: Engine, gpu: Gpu, made: dict[str, Step]) -> Step:
        parallelism = cell.recipe.targets[cell.target].parallelism
        params = ConvertParams(
            dtype=resolve_dtype(engine, gpu, self.sources.model_of(cell).shape),
            tensor=parallelism.tensor,
            pipeline=parallelism.pipeline,
        )
        return self.add(f"convert/{cell.name}", params, {"checkpoint": made["calibrate"]}, cell=cell)

    def _add_build(self, cell: Cell, engine: Engine, gpu: Gpu, made: dict[str, Step]) -> Step:
        limits, parallelism = engine.limits, cell.recipe.targets[cell.target].parallelism
        params = BuildParams(
            model=self.sources.model_of(cell).shape,
            quantization=make_format(cell.recipe.quantization[cell.variant], self.sources.model_of(cell)),
            dtype=resolve_dtype(engine, gpu, self.sources.model_of(cell).shape),
            limits=Limits(
                max_batch_size=limits.max_batch_size,
                max_num_tokens=limits.max_num_tokens,
                max_seq_len=limits.max_seq_len,
            ),
            tokens_per_block=engine.kv_cache.block_tokens,
            # One program serves all ranks; that of pipelines is refused.
            rank=Rank(tensor=parallelism.tensor, pipeline=parallelism.pipeline),
            arch=gpu.arch,
        )
        return self.add(
            f"build/{cell.name}",
            params,
            {},
            witnesses=self._witnesses(made) | {"weights": made["convert"]},
            toolchain=self._toolchain(TOOLCHAIN["build"]) | self._compilers(gpu),
            cell=cell,
        )

    def _add_benchmark(self, cell: Cell, engine: Engine, gpu: Gpu, made: dict[str, Step]) -> Step:
        benchmark = cell.recipe.benchmark
        assert benchmark is not None  # noqa: S101  add_cell sees to it
        params = BenchmarkParams(
            workloads=plan_workloads(benchmark),
            repeats=benchmark.repeats,
            warmup_requests=benchmark.warmup_requests,
            kv_cache_bytes=engine.kv_cache.size,
            memory_fraction=engine.kv_cache.memory_fraction,
            scheduler=_scheduling(engine),
            seed=benchmark.seed,
        )
        return self.add(
            f"benchmark/{cell.name}",
            params,
            {"engine": made["build"], "weights": made["convert"]},
            witnesses=self._witnesses(made),
            machine=self.placement.describe_machine(cell, self.facts.machine()) | _gpu_factor(gpu),
            cell=cell,
        )

    def _add_package(self, cell: Cell, engine: Engine, gpu: Gpu, made: dict[str, Step]) -> Step:
        package, serving = cell.recipe.package, cell.recipe.serving
        params = PackageParams(
            name=cell.recipe.name,
            cell=cell.name,
            image=package.image,
            base=self.sources.image_of(package.base),
            emit=tuple(package.emit),
            triton_base=self.sources.image_of(package.triton_base) if "triton" in package.emit else None,
            port=serving.port,
            kv_cache_bytes=engine.kv_cache.size,
            memory_fraction=engine.kv_cache.memory_fraction,
            scheduler=_scheduling(engine),
        )
        inputs = {"engine": made["build"], "weights": made["convert"]}
        if "benchmark" in made:
            inputs["benchmark"] = made["benchmark"]
        # A package ships trtx's own code, so that is a factor as well.
        toolchain = {**self.facts.pins, "trtx": self.facts.own_code}
        return self.add(
            f"package/{cell.name}",
            params,
            inputs,
            witnesses=self._witnesses(made),
            toolchain=toolchain,
            cell=cell,
        )

    def add(
        self,
        name: str,
        params: Params,
        inputs: dict[str, Step],
        *,
        witnesses: dict[str, Step] | None = None,
        toolchain: dict[str, str] | None = None,
        machine: dict[str, str] | None = None,
        expected: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        cell: Cell | None = None,
    ) -> Step:
        """Add a step, or find the one of the same key; `environment` is set beside what its stage needs."""
        factors = make_factors(
            params,
            inputs={role: step.key for role, step in inputs.items()},
            toolchain=self._toolchain(TOOLCHAIN[params.stage]) if toolchain is None else toolchain,
            machine=machine or {},
        )
        key = make_key(factors)
        if key in self._by_key:
            known = self._by_key[key]
            if name not in self.steps:
                self.also.setdefault(known.id, {})[name] = None
            return known
        exclusive = params.stage in MEASURING_STAGES  # They have the machine to themselves.
        alone = exclusive or params.stage in ("download", "dataset")
        variables, inherit = make_environment(params.stage, self.facts.host.num_cpus if alone else self.threads)
        step = Step(
            id=self._free_name(name),
            stage=params.stage,
            key=key,
            factors=factors,
            params=factors["params"],
            inputs={role: Input(step=step.id, key=step.key) for role, step in inputs.items()}
            | {role: Input(step=step.id, key=step.key, witness=True) for role, step in (witnesses or {}).items()},
            argv=(self.facts.python, "-m", "trtx.stages.worker", JOB_NAME),
            environment={**variables, **(environment or {})},
            inherit=inherit,
            runner=LOCAL,
            exclusive=exclusive,
            cell=cell.name if cell else None,
            expected=dict(expected or {}),
            choices=dict(self.sources.choices.get(key, {})),
        )
        self._by_key[key] = self.steps[step.id] = step
        return step

    def _free_name(self, name: str) -> str:
        """The name, or with -2, -3 … for another step of the same name (two datasets called alike)."""
        number, free = 1, name
        while free in self.steps:
            number += 1
            free = f"{name}-{number}"
        return free

    def _compilers(self, gpu: Gpu) -> dict[str, str]:
        found = {"c++": self.facts.compiler, "kernels": self.facts.kernels}
        return found | ({"nvcc": self.facts.nvcc} if gpu.kind == "gpu" else {})

    def _toolchain(self, distributions: tuple[str, ...]) -> dict[str, str]:
        return {name: self.facts.versions[name] for name in distributions}

    def _witnesses(self, made: dict[str, Step]) -> dict[str, Step]:
        """What a first check of program × weights reads beside them."""
        return {"checkpoint": made["calibrate"], "model": made["download"]}
