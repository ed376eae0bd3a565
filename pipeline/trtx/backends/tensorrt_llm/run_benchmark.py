"""trtllm-bench at every concurrency of every workload, into the same report as the embedded backend's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtx.backends.tensorrt_llm import bench_report
from trtx.backends.tensorrt_llm.argv_bench import (
    TOOL,
    BenchFiles,
    BenchLoad,
    has_concurrency,
    has_report,
    make_bench_command,
    said_in,
)
from trtx.backends.tensorrt_llm.bench_dataset import special_tokens, write_dataset
from trtx.backends.tensorrt_llm.bench_report import RunFigures, make_level, read_log, read_report
from trtx.backends.tensorrt_llm.commands import Command
from trtx.backends.tensorrt_llm.llm_options import FILE_NAME, make_options
from trtx.backends.tensorrt_llm.machine import (
    Installed,
    check_container,
    check_gpus,
    find_program,
    read_installed,
    tool_environment,
)
from trtx.backends.tensorrt_llm.probes import load_release
from trtx.backends.tensorrt_llm.run_tool import apply_help, read_help, run_tool
from trtx.backends.tensorrt_llm.served_checkpoint import check_served
from trtx.backends.tensorrt_llm.spec import TrtllmSpec
from trtx.backends.tensorrt_llm.step import Step
from trtx.bench.report import (
    BenchmarkReport,
    EngineFacts,
    LevelResult,
    MachineFacts,
    describe,
    summarize,
    write_report,
)
from trtx.files import link_or_copy, write_text
from trtx.hardware.versions import installed_version
from trtx.models.weights_config import TOKENIZER_FOLDER
from trtx.runtime.card import CompiledFor, Limits

RAW_FOLDER = "raw"
BATCHED = (
    "trtllm-bench of this release has no --concurrency: the batch size bounds the requests in flight, and all others"
    " wait in its queue, so that times to the first token hold that wait"
)
NO_LATENCIES = "trtllm-bench of this release prints no latencies of requests"


@dataclass(frozen=True)
class Load:
    """One workload at one concurrency; `requests` in every repeat."""

    workload: str
    input_tokens: int
    output_tokens: int
    concurrency: int
    requests: int


class Bench:
    """Runs trtllm-bench for one engine, again and again."""

    def __init__(self, spec: TrtllmSpec, step: Step, warmup: int, seed: int) -> None:
        self.spec, self.step = spec, step
        self.release = load_release(spec, step.environ)
        self.warmup, self.seed = warmup, seed
        self.environment = tool_environment(step.environ)
        self.program = find_program(self.release, TOOL, step.environ)
        self.doubts: dict[str, None] = {}
        self.holds_concurrency = True
        self._help: frozenset[str] | None = None
        engine = step.inputs["engine"]
        self.model = step.inputs["checkpoint"] if spec.flow == "pytorch" else engine / TOKENIZER_FOLDER
        self.special = special_tokens(self.model)

    def run(self, load: Load, repeat: int) -> RunFigures:
        """One repeat of one load. Raises StepFailed when trtllm-bench fails or says no figures."""
        name = f"{load.workload}-{load.concurrency}-{repeat}"
        folder = self.step.scratch(name)
        write_dataset(
            folder / "dataset.jsonl",
            vocab_size=self.spec.shape.vocab_size,
            special=self.special,
            input_tokens=load.input_tokens,
            output_tokens=load.output_tokens,
            count=load.requests,
            seed=f"{self.seed}/{load.workload}/{load.concurrency}/{repeat}",
        )
        command, doubts = self._command(load, folder)
        self.doubts |= dict.fromkeys(doubts)
        self.holds_concurrency &= has_concurrency(command)
        lines = run_tool(command, self.program, folder=folder, environment=self.environment, say=self.step.say)
        kept = self.step.output / RAW_FOLDER
        if has_report(command):
            link_or_copy(folder / "report.json", kept / f"{name}.json")
            return read_report(folder / "report.json")
        write_text(kept / f"{name}.log", "".join(f"{line}\n" for line in lines))
        return read_log("\n".join(lines))

    def _command(self, load: Load, folder: Path) -> tuple[Command, tuple[str, ...]]:
        engine = self.step.inputs["engine"]
        files = BenchFiles(
            model=self.model,
            dataset=folder / "dataset.jsonl",
            workspace=folder / "workspace",
            report=folder / "report.json",
            engine=engine if self.spec.flow == "engine" else None,
            options=folder / FILE_NAME if self.release.pytorch_backend else None,
        )
        bounded = BenchLoad(load.requests, load.concurrency, self.warmup)
        command = make_bench_command(self.spec, self.release, files, bounded)
        command, doubts = self._settle(command)
        if files.options is not None:
            write_text(files.options, make_options(self.spec, self.release, said_in(command)).to_yaml())
        return command, doubts

    def _settle(self, command: Command) -> tuple[Command, tuple[str, ...]]:
        """What the tool's help says about options that are not established; it is asked once."""
        if not command.doubts:
            return command, ()
        if self._help is None:
            self._help = read_help(command, self.program, self.environment)
        return apply_help(command, self._help, self.step.say)


def benchmark(
    spec: TrtllmSpec, step: Step, *, loads: list[Load], repeats: int, warmup_requests: int, seed: int
) -> dict[str, Any]:
    """Write benchmark.json, benchmark.csv and raw/. Inputs: engine, in the PyTorch flow checkpoint.

    Raises EnvironmentProblem when this is not the release's container or has other GPUs, StepFailed when a run fails.
    """
    installed = read_installed(step.environ)
    bench = Bench(spec, step, warmup_requests, seed)
    check_container(bench.release, installed, spec.container.image)
    check_gpus(installed, spec.device.sm, spec.ranks.world_size)
    if spec.flow == "pytorch":
        check_served(spec, bench.model)
    results: list[LevelResult] = []
    gpus: dict[str, None] = {gpu.name: None for gpu in installed.gpus}
    for index, load in enumerate(loads):
        runs = []
        for repeat in range(repeats):
            step.progress(index * repeats + repeat, len(loads) * repeats, "runs")
            runs.append(bench.run(load, repeat))
            gpus |= {runs[-1].gpu: None} if runs[-1].gpu else {}
        results.append(
            make_level(
                workload=load.workload,
                input_tokens=load.input_tokens,
                output_tokens=load.output_tokens,
                concurrency=load.concurrency,
                asked=load.requests,
                runs=runs,
            )
        )
        step.say(describe(results[-1]))
    report = BenchmarkReport(
        machine=_machine(installed, tuple(gpus)),
        engine=_engine(spec),
        notes=_notes(bench, results),
        definitions=bench_report.DEFINITIONS,
        repeats=repeats,
        warmup_requests=warmup_requests,
        seed=seed,
        results=tuple(results),
    )
    write_report(step.output, report)
    return {"output_tokens_per_s": summarize(report), "notes": list(report.notes), "doubts": list(bench.doubts)}


def _notes(bench: Bench, results: list[LevelResult]) -> tuple[str, ...]:
    notes = [f"measured by trtllm-bench of TensorRT-LLM {bench.release.version}"]
    if not bench.holds_concurrency:
        notes.append(BATCHED)
    if any(result.time_to_first_token_s is None for result in results):
        notes.append(NO_LATENCIES)
    return (*notes, *bench.doubts)


def _machine(installed: Installed, gpus: tuple[str, ...]) -> MachineFacts:
    host = installed.host
    versions: Mapping[str, str | None] = {"tensorrt_llm": installed.library, "tensorrt": installed.tensorrt}
    return MachineFacts(
        cpu_model=host.cpu_model,
        num_cpus=host.num_cpus,
        memory_bytes=host.memory_bytes,
        isa=host.isa.name if host.isa else None,
        num_threads=None,
        torch=installed_version("torch"),
        gpus=gpus,
        driver=host.driver,
        software={name: version for name, version in versions.items() if version},
    )


def _engine(spec: TrtllmSpec) -> EngineFacts:
    arch, sizes = f"sm_{spec.device.sm}", spec.sizes
    return EngineFacts(
        backend="tensorrt-llm",
        quantization=spec.quantization,
        dtype=spec.dtype,
        limits=Limits(
            max_batch_size=sizes.max_batch_size, max_num_tokens=sizes.max_num_tokens, max_seq_len=sizes.max_seq_len
        ),
        compiled_for=CompiledFor(device="cuda", arch=arch, isa=arch),
        kv_blocks=None,
    )
