"""The engine flow in a container whose programs are stand-ins: nothing here is a measurement of anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.trtllm_specs import make_spec
from support.trtllm_standin_checkpoint import read_tensors, write_tensors
from support.trtllm_standins import GPU_NAME
from support.trtllm_workshop import Workshop

from trtx.backends.tensorrt_llm import run_convert
from trtx.backends.tensorrt_llm.card import load_card
from trtx.backends.tensorrt_llm.releases import Release, known_releases
from trtx.backends.tensorrt_llm.run_benchmark import Load, benchmark
from trtx.backends.tensorrt_llm.run_build import build
from trtx.backends.tensorrt_llm.run_calibrate import calibrate
from trtx.backends.tensorrt_llm.run_convert import convert
from trtx.backends.tensorrt_llm.spec import Device, Ranks, Sizes, Speculation, TrtllmSpec
from trtx.bench.report import BenchmarkReport
from trtx.errors import EnvironmentProblem, StepFailed, UsageProblem, VerificationFailed

Enter = Callable[..., Workshop]
EXACT = [version for version in known_releases() if Release.load(version).confidence == "exact"]
LOADS = [Load("chat", 16, 8, concurrency, 6) for concurrency in (1, 4)]


def make_engine(shop: Workshop, spec: TrtllmSpec) -> tuple[Path, dict[str, Any]]:
    step = shop.step(checkpoint=shop.checkpoint(spec))
    summary = build(spec, step)
    return Path(step.output), summary


@pytest.fixture
def shop(open_workshop: Enter) -> Workshop:
    return open_workshop("0.16.0")


def test_a_calibrated_checkpoint_has_ranks_a_format_and_the_tokenizer(shop: Workshop) -> None:
    spec = make_spec(algorithm="fp8", kv_cache="fp8", ranks=Ranks(tensor=2))
    step = shop.step(model=shop.model, data=shop.rows("a", "b"))
    summary = calibrate(spec.checkpoint, step, samples=2, max_length=32, batch_size=1, seed=7)
    assert {name: summary[name] for name in ("quant_algo", "kv_cache", "ranks")} == {
        "quant_algo": "FP8",
        "kv_cache": "FP8",
        "ranks": 2,
    }
    assert (step.output / "rank1.safetensors").is_file()
    tokenizer = json.loads((step.output / "tokenizer/tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert any("quantize.py" in line and "--calib_size 2" in line for line in shop.log)


def test_texts_that_the_script_cannot_read_fail_the_step_with_its_words(shop: Workshop) -> None:
    step = shop.step(model=shop.model)
    with pytest.raises(StepFailed) as failed:
        calibrate(make_spec(algorithm="fp8").checkpoint, step, samples=2, max_length=32, batch_size=1, seed=7)
    assert "quantize.py of TensorRT-LLM 0.16.0 failed (exit status 1)" in failed.value.what
    assert "Unsupported calibration dataset" in failed.value.why


def test_an_engine_has_every_rank_its_tokenizer_and_a_card(shop: Workshop) -> None:
    spec = make_spec(ranks=Ranks(tensor=2, pipeline=2))
    engine, summary = make_engine(shop, spec)
    assert {path.name for path in engine.glob("rank*.engine")} == {f"rank{rank}.engine" for rank in range(4)}
    assert (engine / "tokenizer/tokenizer.json").is_file()
    card = load_card(engine)
    assert (card.tensorrt_llm, card.compute_capability, card.gpu) == ("0.16.0", "9.0", GPU_NAME)
    assert card.tensorrt == "10.7.0.23+standin"
    assert (card.spec, card.world_size, card.drift) == (spec, 4, ())
    assert summary["drift"] == []


def test_the_script_of_the_release_converts_where_it_is_asked_to(shop: Workshop) -> None:
    step = shop.step(checkpoint=shop.model)
    summary = convert(make_spec(ranks=Ranks(tensor=2)).checkpoint, step)
    assert (summary["ranks"], summary["quant_algo"]) == (2, None)
    assert any("/examples/llama/convert_checkpoint.py" in line for line in shop.log)
    assert (step.output / "tokenizer/tokenizer.json").is_file()


@pytest.mark.parametrize(("algorithm", "kv_cache"), [("int8_sq", "int8"), ("int8_wo", "auto"), ("int4_wo", "auto")])
def test_an_engine_is_built_of_what_the_script_converts(shop: Workshop, algorithm: str, kv_cache: str) -> None:
    spec = make_spec(algorithm=algorithm, kv_cache=kv_cache)
    converted = shop.step(checkpoint=shop.model, data=shop.rows("a"))
    convert(spec.checkpoint, converted)
    assert build(spec, shop.step(checkpoint=converted.output))["drift"] == []


@pytest.mark.parametrize("release", EXACT)
def test_every_release_builds_and_measures_by_its_own_programs(open_workshop: Enter, release: str) -> None:
    shop = open_workshop(release)
    spec = make_spec(release, algorithm="fp8", kv_cache="fp8", ranks=Ranks(tensor=2))
    engine, summary = make_engine(shop, spec)
    assert summary["drift"] == []
    assert summary["doubts"] == []
    step = shop.step(engine=engine)
    benchmark(spec, step, loads=LOADS[:1], repeats=1, warmup_requests=1, seed=3)
    report = BenchmarkReport.model_validate_json((step.output / "benchmark.json").read_bytes())
    assert report.results[0].output_tokens_per_s.mean == 1000.0
    assert load_card(engine).tensorrt_llm == release


def test_the_timing_cache_is_the_steps_own(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop.folder)
    engine, _ = make_engine(shop, make_spec())
    assert not (shop.folder / "model.cache").exists()
    assert not list(engine.glob("*.cache"))


SILENT: list[tuple[dict[str, Any], dict[str, tuple[Any, Any]]]] = [
    ({"plugins": {"reduce_fusion": "enable"}}, {"build_config.plugin_config.reduce_fusion": ("enable", False)}),
    (
        {"sizes": Sizes(max_batch_size=2, max_num_tokens=1000, max_seq_len=64)},
        {"build_config.max_num_tokens": (1000, 128)},
    ),
    (
        {"sizes": Sizes(max_batch_size=2, max_num_tokens=128, max_seq_len=64, max_input_len=100)},
        {"build_config.max_input_len": (100, 64)},
    ),
    (
        {"plugins": {"use_fp8_context_fmha": "enable"}},
        {"build_config.plugin_config.use_fp8_context_fmha": ("enable", False)},
    ),
    (
        {"speculation": Speculation(mode="draft-target", max_draft_len=4)},
        {"build_config.max_seq_len": (64, 68)},
    ),
    (
        {"algorithm": "int8_wo", "plugins": {"use_fused_mlp": "enable"}},
        {"build_config.plugin_config.use_fused_mlp": ("enable", False)},
    ),
]


@pytest.mark.parametrize(("changes", "expected"), SILENT, ids=[next(iter(row[1])) for row in SILENT])
def test_what_the_builder_changes_without_a_word_is_reported(
    shop: Workshop, changes: dict[str, Any], expected: dict[str, tuple[Any, Any]]
) -> None:
    engine, summary = make_engine(shop, make_spec(**changes))
    assert {row["field"]: (row["asked"], row["got"]) for row in summary["drift"]} == expected
    assert all("of 1.3.0rc3" in row["reason"] for row in summary["drift"])
    assert [row.field for row in load_card(engine).drift] == list(expected)
    assert any(line.startswith(f"drift: {next(iter(expected))}") for line in shop.log)


def test_a_flag_that_the_installation_does_not_read_fails_the_build_and_names_the_probe(shop: Workshop) -> None:
    checkpoint = shop.checkpoint(make_spec())
    shop.standins.behave(without="--user_buffer")
    with pytest.raises(StepFailed) as failed:
        build(make_spec(), shop.step(checkpoint=checkpoint))
    assert "reads another command line" in failed.value.why
    assert "trtx probe" in failed.value.fix


def test_a_checkpoint_of_other_ranks_is_found_after_the_build(shop: Workshop) -> None:
    checkpoint = shop.checkpoint(make_spec(ranks=Ranks(tensor=2)))
    with pytest.raises(VerificationFailed, match=r"pretrained_config\.mapping\.world_size"):
        build(make_spec(ranks=Ranks()), shop.step(checkpoint=checkpoint))
    with pytest.raises(StepFailed, match=r"left no rank2\.engine"):
        build(make_spec(ranks=Ranks(tensor=4)), shop.step(checkpoint=checkpoint))


def test_heads_that_are_not_in_the_checkpoint_are_missed_before_the_build(shop: Workshop) -> None:
    spec = make_spec(speculation=Speculation(mode="medusa", max_draft_len=4))
    with pytest.raises(UsageProblem, match="no heads for speculative decoding by medusa"):
        build(spec, shop.step(checkpoint=shop.checkpoint(spec)))
    assert shop.log == []


def test_a_damaged_checkpoint_fails_the_build_with_the_tensors_name(shop: Workshop) -> None:
    checkpoint = shop.checkpoint(make_spec())
    tensors = read_tensors(checkpoint / "rank0.safetensors")
    name = "transformer.layers.1.mlp.fc.weight"
    tensors[name] = (tensors[name][0], tensors[name][1][:1])
    write_tensors(checkpoint / "rank0.safetensors", tensors)
    with pytest.raises(StepFailed) as failed:
        build(make_spec(), shop.step(checkpoint=checkpoint))
    assert f"{name} of rank0.safetensors is [1, 32] and must be [64, 32]" in failed.value.why


def test_memory_that_does_not_suffice_is_named(shop: Workshop) -> None:
    checkpoint = shop.checkpoint(make_spec())
    shop.standins.behave(die="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(StepFailed) as failed:
        build(make_spec(), shop.step(checkpoint=checkpoint))
    assert "the GPU has too little free memory" in failed.value.why
    assert "Tried to allocate 2.00 GiB" in failed.value.why


def test_another_release_than_the_planned_one_is_refused_before_anything_runs(open_workshop: Enter) -> None:
    shop = open_workshop("0.16.0", library="0.17.0")
    with pytest.raises(EnvironmentProblem) as refused:
        build(make_spec(), shop.step(checkpoint=shop.model))
    assert "planned for TensorRT-LLM 0.16.0, and 0.17.0+standin is installed" in refused.value.what
    assert shop.log == []


def test_outside_a_container_a_step_says_where_it_belongs(tmp_path: Path, tiny_model: Path) -> None:
    shop = Workshop(tmp_path, None, tiny_model)
    with pytest.raises(EnvironmentProblem) as refused:
        build(make_spec(), shop.step(checkpoint=tiny_model))
    assert "TensorRT-LLM 0.16.0 is not installed here" in refused.value.what
    assert "nvcr.io/nvidia/tensorrt-llm/release:0.16.0" in refused.value.why


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"sm": 80}, f"{GPU_NAME} is another one"),
        ({"gpus": 0}, "0 visible here"),
    ],
)
def test_an_engine_is_built_on_its_own_compute_capability(
    open_workshop: Enter, choices: dict[str, Any], why: str
) -> None:
    shop = open_workshop("0.16.0", **choices)
    with pytest.raises(EnvironmentProblem) as refused:
        build(make_spec(), shop.step(checkpoint=shop.model))
    assert refused.value.what == "the step needs 1 GPU with compute capability 9.0"
    assert why in refused.value.why


def test_a_benchmark_has_a_row_for_each_concurrency_and_says_who_measured(shop: Workshop) -> None:
    engine, _ = make_engine(shop, make_spec())
    step = shop.step(engine=engine)
    summary = benchmark(make_spec(), step, loads=LOADS, repeats=2, warmup_requests=1, seed=3)
    report = BenchmarkReport.model_validate_json((step.output / "benchmark.json").read_bytes())
    assert summary["output_tokens_per_s"] == {"chat@1": 1000.0, "chat@4": 4000.0}
    assert [(row.concurrency, row.requests, row.failed) for row in report.results] == [(1, 12, 0), (4, 12, 0)]
    assert report.machine.gpus == (GPU_NAME,)
    assert report.machine.software["tensorrt_llm"] == "0.16.0+standin"
    # 0.16 prints no latencies and has no --concurrency.
    assert report.results[0].time_to_first_token_s is None
    assert any("no --concurrency" in note for note in report.notes)
    assert {path.name for path in (step.output / "raw").iterdir()} == {
        f"chat-{concurrency}-{repeat}.log" for concurrency in (1, 4) for repeat in (0, 1)
    }
    assert (step.output / "benchmark.csv").read_text().count("\n") == 3


def test_an_engine_of_another_gpu_fails_its_benchmark_in_plain_words(open_workshop: Enter) -> None:
    shop = open_workshop("0.16.0")
    engine, _ = make_engine(shop, make_spec())
    (engine / "rank0.engine").write_text(json.dumps({"release": "0.16.0", "sm": 80}))
    with pytest.raises(StepFailed) as failed:
        benchmark(make_spec(), shop.step(engine=engine), loads=LOADS, repeats=1, warmup_requests=1, seed=3)
    assert "built for another compute capability" in failed.value.why
    assert "build it on the GPU type" in failed.value.fix


def test_trtx_writes_a_checkpoint_without_any_container(tmp_path: Path, tiny_model: Path, monkeypatch: Any) -> None:
    """The writer is called with the spec; who writes is no business of the step's."""
    from types import SimpleNamespace

    from support.trtllm_standin_checkpoint import Ranks as Parts
    from support.trtllm_standin_checkpoint import write_checkpoint

    seen = []

    def write(source: Path, output: Path, spec: Any, say: Any, progress: Any) -> None:
        seen.append(spec)
        parts = Parts(spec.ranks.tensor, spec.ranks.pipeline)
        write_checkpoint(source, output, spec.dtype, parts, {"quant_algo": None, "kv_cache_quant_algo": None})

    monkeypatch.setattr(run_convert.importlib, "import_module", lambda name: SimpleNamespace(write_checkpoint=write))
    shop = Workshop(tmp_path, None, tiny_model)
    spec = make_spec(converter="trtx", ranks=Ranks(tensor=2), device=Device(name="none", sm=80, memory_bytes=0))
    step = shop.step(checkpoint=tiny_model)
    summary = convert(spec.checkpoint, step)
    assert summary["ranks"] == 2
    assert seen == [spec.checkpoint]
    assert seen[0].container is None
    assert (step.output / "tokenizer/tokenizer.json").is_file()
