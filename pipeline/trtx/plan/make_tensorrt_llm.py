"""One cell of TensorRT-LLM → its steps. As pure as trtx.plan.make, which calls it.

Engine flow: download → dataset → calibrate → convert → build → benchmark → package. trtx calibrates with ModelOpt and
writes the checkpoint itself, or the release's scripts do both in its container. PyTorch flow: the checkpoint is the
calibrated one, or the model as it is, and a build only writes the options file. What nothing quantizes has no
calibration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trtx.backends.tensorrt_llm.convertible import is_converted, is_plain
from trtx.backends.tensorrt_llm.from_recipe import choose_image
from trtx.backends.tensorrt_llm.probes import PROBE_VARIABLE
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.spec import Device, TrtllmSpec
from trtx.plan.check_tensorrt_llm import make_subject, spec_of
from trtx.plan.effects import STAGES
from trtx.plan.steps import Step
from trtx.plan.workloads import plan_workloads
from trtx.recipe.cells import Cell
from trtx.stages.params_trtllm import (
    TrtllmBenchmarkParams,
    TrtllmBuildParams,
    TrtllmCalibrateParams,
    TrtllmConvertParams,
    TrtllmPackageParams,
    TrtllmParams,
)

if TYPE_CHECKING:
    from trtx.plan.make import Planner

# What a release's image brings that its steps' bytes depend on: names of the toolchain → facts of the release.
IMAGE_FACTS = {
    "image-tensorrt-llm": "version",
    "image-tensorrt": "tensorrt",
    "image-cuda": "cuda",
    "image-modelopt": "modelopt",
}


def add_tensorrt_llm(planner: Planner, cell: Cell, until: str | None) -> None:
    """All steps of one cell, up to the stage `until`."""
    last = STAGES.index(until) if until else len(STAGES)
    _Cell.open(planner, cell).add_all(last)


def image_toolchain(release: Release) -> dict[str, str]:
    """The factors of steps that run in a release's image; what no source says is left out."""
    facts = {name: getattr(release, attribute) for name, attribute in IMAGE_FACTS.items()}
    return {name: value for name, value in facts.items() if value is not None}


def narrow_for_build(spec: TrtllmSpec, *, strict: bool) -> TrtllmSpec:
    """What an engine is built from: settings of its runtime, and without `strict` the name of its GPU, are out of it.

    An engine runs on every GPU of its compute capability, and an options file on all; one built there is tuned for it.
    """
    device = spec.device if strict else Device(name=f"sm_{spec.device.sm}", sm=spec.device.sm, memory_bytes=0)
    if spec.flow == "pytorch":
        return spec.model_copy(update={"device": device})
    pool = spec.pool.model_copy(update={"memory_fraction": 0.0, "host_bytes": 0})
    batching = spec.batching.model_copy(update={"policy": "max-utilization"})
    return spec.model_copy(update={"device": device, "pool": pool, "batching": batching})


@dataclass
class _Cell:
    """The steps of one cell; `made` are those by stage."""

    planner: Planner
    cell: Cell
    spec: TrtllmSpec
    release: Release
    environment: dict[str, str]
    quantizes: bool
    scripts_quantize: bool
    made: dict[str, Step] = field(default_factory=dict)

    @classmethod
    def open(cls, planner: Planner, cell: Cell) -> _Cell:
        pinned, model = planner.sources.release_of(cell), planner.sources.model_of(cell)
        engine = cell.recipe.engine_for(cell.target)
        subject = make_subject(cell, pinned, model.source.config)
        variant = subject.variant
        digest = planner.sources.digest_of(choose_image(engine, pinned.release))
        spec = spec_of(cell, subject, pinned, model.source.config, digest)
        quantizes = variant.algorithm != "none" or variant.kv_cache != "auto"
        environment = {PROBE_VARIABLE: str(pinned.probe)} if pinned.probe else {}
        scripts = spec.converter == "release" and spec.flow == "engine"
        if scripts and is_converted(subject):
            quantizes = False  # convert_checkpoint.py does it on the way.
        if spec.converter == "trtx" and spec.flow == "engine" and is_plain(subject):
            quantizes = False
        return cls(planner, cell, spec, pinned.release, environment, quantizes, quantizes and scripts)

    def add_all(self, last: int) -> None:
        steps = (
            ("download", self._download, True),
            ("dataset", self._dataset, self.quantizes),
            ("calibrate", self._calibrate, self.quantizes),
            ("convert", self._convert, self.spec.flow == "engine" and not self.scripts_quantize),
            ("build", self._build, True),
            ("benchmark", self._benchmark, self.cell.recipe.benchmark is not None),
            ("package", self._package, True),
        )
        for stage, add, wanted in steps:
            if wanted and STAGES.index(stage) <= last:
                self.made[stage] = add()
                self.planner.users.setdefault(self.made[stage].id, []).append(self.cell)

    @property
    def _checkpoint(self) -> Step:
        """What is served, or converted: the calibrated checkpoint, or the model as it is."""
        return self.made.get("calibrate") or self.made["download"]

    def _download(self) -> Step:
        return self.planner.add_download(self.cell)

    def _dataset(self) -> Step:
        return self.planner.add_dataset(self.cell)

    def _calibrate(self) -> Step:
        if not self.scripts_quantize:
            return self.planner.add_calibrate(self.cell, self.made)
        data = self.cell.recipe.quantization[self.cell.variant].calibration
        params = TrtllmCalibrateParams(
            spec=self.spec.checkpoint,
            samples=data.samples,
            max_length=data.max_length,
            batch_size=data.batch_size,
            seed=data.seed,
        )
        return self._add(params, {"model": self.made["download"], "data": self.made["dataset"]}, in_image=True)

    def _convert(self) -> Step:
        params = TrtllmConvertParams(spec=self.spec.checkpoint)
        return self._add(params, {"checkpoint": self._checkpoint}, in_image=self.spec.converter == "release")

    def _build(self) -> Step:
        engine = self.cell.recipe.engine_for(self.cell.target)
        params = TrtllmBuildParams(spec=narrow_for_build(self.spec, strict=engine.strict_gpu))
        if self.spec.flow == "pytorch":
            return self._add(params, {}, in_image=False)
        return self._add(params, {"checkpoint": self.made.get("convert") or self.made["calibrate"]}, in_image=True)

    def _benchmark(self) -> Step:
        benchmark = self.cell.recipe.benchmark
        assert benchmark is not None  # noqa: S101  add_all sees to it
        params = TrtllmBenchmarkParams(
            spec=self.spec,
            workloads=plan_workloads(benchmark),
            repeats=benchmark.repeats,
            warmup_requests=benchmark.warmup_requests,
            seed=benchmark.seed,
        )
        machine = self.planner.placement.describe_machine(self.cell, self.planner.facts.machine())
        return self._add(params, self._served(), in_image=True, machine=machine)

    def _package(self) -> Step:
        package, serving = self.cell.recipe.package, self.cell.recipe.serving
        params = TrtllmPackageParams.model_validate(
            {
                "spec": self.spec,
                "name": self.cell.recipe.name,
                "cell": self.cell.name,
                "image": package.image,
                "emit": package.emit,
                "port": serving.port,
                "gpus_per_node": self.cell.recipe.targets[self.cell.target].parallelism.gpus_per_node,
            }
        )
        inputs = self._served()
        if "benchmark" in self.made:
            inputs["benchmark"] = self.made["benchmark"]
        # A package ships trtx's own checks, so that they are a factor as well.
        return self._add(params, inputs, in_image=True, own={"trtx": self.planner.facts.own_code})

    def _served(self) -> dict[str, Step]:
        served = {"engine": self.made["build"]}
        return served if self.spec.flow == "engine" else {**served, "checkpoint": self._checkpoint}

    def _add(
        self,
        params: TrtllmParams,
        inputs: dict[str, Step],
        *,
        in_image: bool,
        machine: dict[str, str] | None = None,
        own: dict[str, str] | None = None,
    ) -> Step:
        toolchain = {"tables": self.release.digest, **(image_toolchain(self.release) if in_image else {})}
        return self.planner.add(
            f"{params.stage}/{self.cell.name}",
            params,
            inputs,
            toolchain={**toolchain, **(own or {})},
            machine=machine,
            environment=self.environment,
            cell=self.cell,
        )
