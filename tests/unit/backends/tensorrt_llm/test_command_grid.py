"""Every command line that trtx makes is one that the release reads, for every release and a grid of recipes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from support.trtllm_specs import LLAMA_70B, MIXTRAL, QWEN2, make_spec
from support.trtllm_table import PROPERTY, make_note

from trtx.backends.tensorrt_llm.argv_bench import BenchFiles, BenchLoad, make_bench_command, said_in
from trtx.backends.tensorrt_llm.argv_build import make_build_command
from trtx.backends.tensorrt_llm.argv_convert import make_convert_command
from trtx.backends.tensorrt_llm.argv_quantize import Calibration, make_quantize_command
from trtx.backends.tensorrt_llm.argv_serve import make_serve_command, takes_options
from trtx.backends.tensorrt_llm.commands import Command
from trtx.backends.tensorrt_llm.llm_options import make_options
from trtx.backends.tensorrt_llm.parser import Parsed, parse
from trtx.backends.tensorrt_llm.presets import Case, Preset, expand_preset
from trtx.backends.tensorrt_llm.releases import Flow, Release, known_releases
from trtx.backends.tensorrt_llm.spec import Lora, Ranks, Speculation, TrtllmSpec
from trtx.errors import UsageProblem

FORMATS = (
    ("none", "auto"),
    ("fp8", "fp8"),
    ("int8_sq", "int8"),
    ("int8_wo", "auto"),
    ("int4_awq", "auto"),
    ("w4a8_awq", "fp8"),
    ("nvfp4", "fp8"),
)
RANKS = (Ranks(), Ranks(tensor=4), Ranks(tensor=2, pipeline=2))
EXPERTS = (Ranks(tensor=4, expert=4), Ranks(tensor=4, expert=2))
ENGINE_EXTRAS: tuple[dict[str, Any], ...] = (
    {},
    {"speculation": Speculation(mode="draft-target", max_draft_len=4)},
    {"speculation": Speculation(mode="medusa", max_draft_len=8)},
    {"lora": Lora(max_rank=16, target_modules=("attn_q", "attn_v"), max_adapters=4)},
    {"profiles": True},
    {"plugins": {"gemm_plugin": "auto", "reduce_fusion": "enable"}},
    {"options": {"gather_context_logits": True}},
)
PYTORCH_EXTRAS: tuple[dict[str, Any], ...] = (
    {},
    {"speculation": Speculation(mode="eagle3", max_draft_len=3, draft="file:///draft")},
    {"speculation": Speculation(mode="ngram", max_draft_len=4)},
    {"speculation": Speculation(mode="mtp", max_draft_len=2)},
    {"lora": Lora(max_rank=16, target_modules=("attn_q", "attn_v"), max_adapters=4)},
    {"options": {"kv_cache_config": {"enable_partial_reuse": False}, "stream_interval": 4}},
)
HF, CKPT, OUT = Path("/hf"), Path("/ckpt"), Path("/out")
FILES = BenchFiles(HF, Path("/data.jsonl"), Path("/work"), Path("/report.json"), Path("/engine"), Path("/options.yaml"))
ENGINES = [version for version in known_releases() if Release.load(version).engine_backend]
PYTORCH = [version for version in known_releases() if Release.load(version).pytorch_backend]


def grid(release: str, flow: Flow, extras: tuple[dict[str, Any], ...]) -> Iterator[TrtllmSpec]:
    """Models × formats × parallelism with no extra, and every extra once with each format."""
    shapes = (LLAMA_70B, QWEN2, MIXTRAL)
    for shape, (algorithm, kv_cache) in itertools.product(shapes, FORMATS):
        ranks = (*RANKS, *EXPERTS) if shape.num_experts else RANKS
        for each in ranks:
            yield make_spec(release, flow=flow, shape=shape, algorithm=algorithm, kv_cache=kv_cache, ranks=each)
    for index, extra in enumerate(extras):
        algorithm, kv_cache = FORMATS[index % len(FORMATS)]
        yield make_spec(release, flow=flow, shape=LLAMA_70B, algorithm=algorithm, kv_cache=kv_cache, **extra)


def preset_specs(release: Release, flow: Flow) -> Iterator[TrtllmSpec]:
    """Every preset with every format, as a recipe's becomes flags or keys."""
    for preset, (algorithm, kv_cache) in itertools.product(get_args(Preset), FORMATS):
        case = Case(algorithm, kv_cache, 90, 4, LLAMA_70B)
        flags = dict(expand_preset(preset, release, flow, case))
        profiles = flags.pop("multiple_profiles", None) == "enable"
        chosen = {"plugins": flags, "profiles": profiles} if flow == "engine" else {"options": flags}
        yield make_spec(
            release.version,
            flow=flow,
            shape=LLAMA_70B,
            algorithm=algorithm,
            kv_cache=kv_cache,
            ranks=Ranks(tensor=4),
            **chosen,
        )


def engine_commands(spec: TrtllmSpec, release: Release) -> Iterator[tuple[str, Callable[[], Command]]]:
    """Every command of the engine flow, by the program that reads it."""
    yield "trtllm-build", lambda: make_build_command(spec, release, checkpoint=CKPT, output=OUT, timing_cache=OUT)
    calibration = Calibration(Path("/texts"), 512, 2048, 1, 7)
    yield "quantize.py", lambda: make_quantize_command(spec.checkpoint, release, calibration, model=HF, output=OUT)
    yield "convert", lambda: make_convert_command(spec.checkpoint, release, checkpoint=HF, output=OUT, data=OUT)
    yield from served_commands(spec, release)


def served_commands(spec: TrtllmSpec, release: Release) -> Iterator[tuple[str, Callable[[], Command]]]:
    yield "trtllm-bench", lambda: make_bench_command(spec, release, FILES, BenchLoad(100, 8, 2))
    if "trtllm-bench latency" in release.tools:
        yield "trtllm-bench", lambda: make_bench_command(spec, release, FILES, BenchLoad(10, 1, 2), "latency")
    if "trtllm-serve" in release.tools:
        options = "/options.yaml" if takes_options(release) else None
        yield (
            "trtllm-serve",
            lambda: make_serve_command(
                spec, release, model="/engine", tokenizer="/tok", options=options, host="::", port=8000
            ),
        )


def read_all(release: Release, spec: TrtllmSpec, commands: Iterator[tuple[str, Callable[[], Command]]]) -> int:
    """Parse every command; how many there were. Refusals to make one name what the release lacks."""
    count = 0
    for program, make in commands:
        try:
            command = make()
        except UsageProblem as refused:
            assert release.version in refused.what or "not of the" in refused.what, refused.render()
            continue
        parsed = parse(release, command.tool.partition(" ")[0] if program != "convert" else command.tool, command.words)
        check_values(parsed, spec, program)
        assert bool(parsed.uncertain) == bool(command.doubts), (parsed.uncertain, command.doubts)
        assert not command.doubts or release.confidence == "derived"
        count += 1
    return count


def check_values(parsed: Parsed, spec: TrtllmSpec, program: str) -> None:
    """What the release understands is what the spec says."""
    values = parsed.values
    if program == "trtllm-build":
        assert (values["max_batch_size"], values["max_seq_len"]) == (4, 64)
        assert values["tokens_per_block"] == 32
        assert not ({"tp_size", "pp_size"} & parsed.given)
        assert values["opt_num_tokens"] is None or values["multiple_profiles"] == "disable"
    elif program in ("quantize.py", "convert"):
        assert (values["tp_size"], values["pp_size"]) == (spec.ranks.tensor, spec.ranks.pipeline)
        assert values["dtype"] == "bfloat16"
    elif program == "trtllm-bench":
        assert str(values["dataset"]) == "/data.jsonl"


@pytest.mark.parametrize("version", ENGINES)
def test_the_engine_flow_says_nothing_that_its_release_does_not_read(
    version: str, record_property: Callable[[str, object], None]
) -> None:
    release = Release.load(version)
    specs = (*grid(version, "engine", ENGINE_EXTRAS), *preset_specs(release, "engine"))
    count = sum(read_all(release, spec, engine_commands(spec, release)) for spec in specs)
    assert count > 200
    record_property(PROPERTY, make_note("argv accepted", version, "engine", count))


@pytest.mark.parametrize("version", PYTORCH)
def test_the_pytorch_flow_says_nothing_that_its_release_does_not_read(
    version: str, record_property: Callable[[str, object], None]
) -> None:
    release, count = Release.load(version), 0
    for spec in (*grid(version, "pytorch", PYTORCH_EXTRAS), *preset_specs(release, "pytorch")):
        if spec.quantization.kv_cache == "int8":
            continue
        count += read_all(release, spec, served_commands(spec, release))
        options = make_options(spec, release)
        drafted = spec.speculation is not None and spec.speculation.draft is not None
        assert bool(options.doubts) == (release.confidence == "derived" or drafted)
        assert options.values["tensor_parallel_size"] == spec.ranks.tensor
        bench = make_bench_command(spec, release, FILES, BenchLoad(100, 8, 2))
        rest = make_options(spec, release, said_in(bench)).values
        assert not {path[0] for path in said_in(bench) if len(path) == 1} & rest.keys()
    assert count > 100
    record_property(PROPERTY, make_note("argv accepted", version, "pytorch", count))


def test_switches_are_words_and_never_booleans() -> None:
    for version in ENGINES:
        release = Release.load(version)
        words = make_build_command(make_spec(version), release, checkpoint=CKPT, output=OUT, timing_cache=OUT).words
        assert not {"True", "False", "true", "false"} & set(words)
        assert words[words.index("--context_fmha") + 1] == "enable"


def test_what_moved_its_default_is_always_written() -> None:
    """max_batch_size (0.14), tokens_per_block and the context attention switches (0.19), gemm_plugin (0.17)."""
    moved = {"--max_batch_size", "--tokens_per_block", "--use_paged_context_fmha", "--use_fp8_context_fmha"}
    for version in ENGINES:
        command = make_build_command(
            make_spec(version), Release.load(version), checkpoint=CKPT, output=OUT, timing_cache=Path("/own.cache")
        )
        assert {*moved, "--gemm_plugin", "--max_num_tokens", "--workers"} <= set(command.words)
        assert command.words[command.words.index("--output_timing_cache") + 1] == "/own.cache"
