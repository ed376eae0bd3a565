"""Single command lines: what is written, what is refused, what is in doubt, and how ranks are started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.trtllm_specs import LLAMA_70B, MIXTRAL, TINY, make_spec

from trtx.backends.tensorrt_llm.argv_bench import BenchFiles, BenchLoad, make_bench_command
from trtx.backends.tensorrt_llm.argv_build import make_build_command
from trtx.backends.tensorrt_llm.argv_convert import find_script, make_convert_command
from trtx.backends.tensorrt_llm.argv_quantize import Calibration, make_quantize_command
from trtx.backends.tensorrt_llm.argv_serve import make_serve_command
from trtx.backends.tensorrt_llm.commands import Command
from trtx.backends.tensorrt_llm.launch import plan_launch, srun_words, start_words, triton_words
from trtx.backends.tensorrt_llm.probes import PROBE_VARIABLE, load_release
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.run_tool import settle_doubts
from trtx.backends.tensorrt_llm.spec import Device, Lora, Pool, Ranks, Speculation, TrtllmSpec
from trtx.errors import EnvironmentProblem, UsageProblem, VerificationFailed
from trtx.models.formats import QuantFormat

OUT = Path("/out")


def build(spec: TrtllmSpec, **paths: Path) -> list[str]:
    release = Release.load(spec.release)
    return list(
        make_build_command(spec, release, checkpoint=Path("/c"), output=OUT, timing_cache=Path("/t"), **paths).words
    )


def value(words: list[str] | tuple[str, ...], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


@pytest.mark.parametrize(
    ("release", "flag", "word"),
    [
        ("0.12.0", "--paged_kv_cache", "enable"),
        ("0.12.0", "--kv_cache_type", None),
        ("0.13.0", "--kv_cache_type", "paged"),
        ("0.13.0", "--paged_kv_cache", None),
        ("0.12.0", "--use_fused_mlp", None),  # A flag without a value, off by default.
        ("0.13.0", "--use_fused_mlp", "enable"),
        ("0.14.0", "--lookup_plugin", "disable"),
        ("0.15.0", "--lookup_plugin", None),
        ("1.3.0rc3", "--fuse_fp4_quant", "disable"),
        ("0.18.2", "--fuse_fp4_quant", None),
    ],
)
def test_each_release_gets_its_own_spelling(release: str, flag: str, word: str | None) -> None:
    assert value(build(make_spec(release)), flag) == word


@pytest.mark.parametrize(
    ("changes", "flag", "word"),
    [
        ({}, "--use_paged_context_fmha", "enable"),
        ({"kv_cache": "int8"}, "--use_paged_context_fmha", "disable"),
        ({"algorithm": "fp8", "kv_cache": "fp8"}, "--use_fp8_context_fmha", "enable"),
        (
            {"algorithm": "fp8", "kv_cache": "fp8", "device": Device(name="a100", sm=80, memory_bytes=0)},
            "--use_fp8_context_fmha",
            "disable",
        ),
        ({"algorithm": "fp8"}, "--use_fp8_context_fmha", "disable"),
        ({"algorithm": "int4_awq"}, "--use_fused_mlp", "disable"),
        ({"algorithm": "nvfp4"}, "--gemm_plugin", "nvfp4"),
        ({}, "--gemm_plugin", "disable"),
        ({"plugins": {"gemm_plugin": "auto"}}, "--gemm_plugin", "auto"),
        ({"profiles": True}, "--multiple_profiles", "enable"),
        ({"profiles": True}, "--opt_num_tokens", None),
        ({}, "--opt_num_tokens", "4"),
        ({"options": {"opt_num_tokens": 2}}, "--opt_num_tokens", "2"),
        (
            {"speculation": Speculation(mode="lookahead", max_draft_len=5)},
            "--speculative_decoding_mode",
            "lookahead_decoding",
        ),
        ({"speculation": Speculation(mode="lookahead", max_draft_len=5)}, "--max_draft_len", "5"),
        ({"lora": Lora(max_rank=8, target_modules=("attn_q",), max_adapters=2)}, "--lora_plugin", "auto"),
        ({"pool": Pool(tokens_per_block=128, memory_fraction=0.5, reuse=False)}, "--tokens_per_block", "128"),
        ({"ranks": Ranks(tensor=2, pipeline=2)}, "--workers", "4"),
    ],
)
def test_settings_of_a_recipe_become_flags_of_the_builder(changes: dict[str, Any], flag: str, word: str | None) -> None:
    assert value(build(make_spec("1.2.1", **changes)), flag) == word


def test_an_earlier_timing_cache_is_read() -> None:
    words = build(make_spec(), earlier_timings=Path("/old.cache"))
    assert value(words, "--input_timing_cache") == "/old.cache"


@pytest.mark.parametrize(
    ("changes", "what", "why"),
    [
        ({"plugins": {"enable_xqa": "enable"}}, "has no --enable_xqa", "until 0.15.0"),
        ({"options": {"max_output_len": 3}}, "has no --max_output_len", "write --max_seq_len"),
        ({"plugins": {"gemm_plugin": "nvfp4"}}, "does not take nvfp4", "it takes auto, float16"),
        ({"options": {"checkpoint_dir": "/x"}}, "cannot set checkpoint_dir", "trtx writes it itself"),
        ({"plugins": {"tokens_per_block": "8"}}, "cannot set tokens_per_block", "trtx writes it itself"),
        (
            {"speculation": Speculation(mode="ngram", max_draft_len=5)},
            "ngram is not of the engine flow",
            "draft-target",
        ),
    ],
)
def test_what_the_builder_does_not_have_is_refused_with_its_history(
    changes: dict[str, Any], what: str, why: str
) -> None:
    with pytest.raises(UsageProblem) as refused:
        build(make_spec("0.16.0", **changes))
    assert what in refused.value.what
    assert why in refused.value.why


def quantize(**changes: Any) -> Command:
    spec = make_spec("1.2.1", **changes)
    calibration = Calibration(Path("/texts"), 512, 2048, 4, 7)
    return make_quantize_command(spec.checkpoint, Release.load("1.2.1"), calibration, model=Path("/m"), output=OUT)


def test_awq_calibrates_on_as_many_rows_as_it_says() -> None:
    assert value(quantize(algorithm="int4_awq").words, "--calib_size") == "32"
    assert value(quantize(algorithm="int4_awq").words, "--awq_block_size") == "128"
    assert value(quantize(algorithm="fp8").words, "--calib_size") == "512"


def test_a_head_that_is_quantized_is_asked_for() -> None:
    formats = QuantFormat(algorithm="fp8", exclude=())
    assert "--quantize_lm_head" in quantize(quantization=formats).words
    with pytest.raises(UsageProblem, match="quantizes every layer but lm_head"):
        quantize(quantization=QuantFormat(algorithm="fp8", exclude=("lm_head", "*.down_proj")))


def test_experts_are_not_divided_by_the_script_that_quantizes() -> None:
    with pytest.raises(UsageProblem, match="does not divide experts"):
        quantize(shape=MIXTRAL, ranks=Ranks(tensor=4, expert=4))


def convert(release: str = "0.16.0", **changes: Any) -> tuple[str, ...]:
    spec = make_spec(release, **changes)
    return make_convert_command(
        spec.checkpoint, Release.load(release), checkpoint=Path("/m"), output=OUT, data=Path("/texts")
    ).words


def test_formats_are_flags_of_the_converter() -> None:
    assert value(convert(algorithm="int8_wo"), "--weight_only_precision") == "int8"
    words = convert(algorithm="int8_sq", kv_cache="int8")
    assert value(words, "--smoothquant") == "0.5"
    assert {"--per_channel", "--per_token", "--int8_kv_cache"} <= set(words)
    assert value(words, "--calib_dataset") == "/texts"
    words = convert(algorithm="int4_awq")
    assert (value(words, "--quant_ckpt_path"), value(words, "--group_size")) == ("/m", "128")
    assert "--use_fp8_rowwise" in convert(algorithm="fp8_dynamic")


def test_experts_are_divided_in_the_checkpoint() -> None:
    words = convert(shape=MIXTRAL, ranks=Ranks(tensor=8, expert=4))
    assert (value(words, "--moe_tp_size"), value(words, "--moe_ep_size")) == ("2", "4")


def test_a_model_without_a_script_is_refused() -> None:
    spec = make_spec(shape=TINY.model_copy(update={"architecture": "GptOssForCausalLM"}))
    with pytest.raises(UsageProblem, match="known to read GptOssForCausalLM"):
        find_script(spec.checkpoint, Release.load("0.16.0"))


FILES = BenchFiles(Path("/hf"), Path("/d"), Path("/w"), Path("/r"), Path("/e"), Path("/o"))


def test_a_release_without_concurrency_has_its_batch_bound() -> None:
    words = make_bench_command(make_spec("0.16.0"), Release.load("0.16.0"), FILES, BenchLoad(10, 2, 1)).words
    assert (value(words, "--max_batch_size"), value(words, "--request_rate")) == ("2", "-1")
    words = make_bench_command(make_spec("1.3.0rc3"), Release.load("1.3.0rc3"), FILES, BenchLoad(10, 2, 1)).words
    assert (value(words, "--max_batch_size"), value(words, "--concurrency")) == ("4", "2")


def test_a_release_whose_bench_knows_engines_only_is_refused_for_the_other_flow() -> None:
    spec = make_spec("0.16.0", flow="pytorch")
    with pytest.raises(UsageProblem, match="has no PyTorch backend"):
        make_bench_command(spec, Release.load("0.16.0"), FILES, BenchLoad(10, 2, 1))


def test_a_server_of_the_old_kind_gets_its_sizes_on_the_command_line() -> None:
    def serve(release: str, options: str | None) -> tuple[str, ...]:
        spec = make_spec(release, ranks=Ranks(tensor=2))
        return make_serve_command(
            spec, Release.load(release), model="/e", tokenizer="/t", options=options, host="::", port=1
        ).words

    assert value(serve("0.16.0", None), "--tp_size") == "2"
    new = serve("1.2.1", "/o")
    assert (value(new, "--extra_llm_api_options"), value(new, "--backend")) == ("/o", "tensorrt")
    assert "--tp_size" not in new
    with pytest.raises(UsageProblem, match=r"0\.14\.0 has no trtllm-serve"):
        serve("0.14.0", None)


def test_no_doubt_starts_no_program(tmp_path: Path) -> None:
    release = Release.load("1.3.0rc3")
    command = make_bench_command(make_spec("1.3.0rc3"), release, FILES, BenchLoad(10, 2, 1))
    assert settle_doubts(command, ("/no/such/program",), {}, print) == (command, ())


def test_a_tool_that_gives_no_help_leaves_the_doubts() -> None:
    release = Release.load("1.0.0")
    command = make_bench_command(make_spec("1.0.0"), release, FILES, BenchLoad(10, 2, 1))
    assert command.doubts
    assert settle_doubts(command, ("false",), {}, print) == (command, command.doubts)


def test_ranks_on_one_host_need_no_launcher() -> None:
    launch = plan_launch(Ranks(tensor=4, pipeline=2), 8)
    assert (launch.ranks, launch.hosts, launch.gpus_per_host) == (8, 1, 8)
    assert start_words(launch, ("trtllm-serve", "/e")) == ("trtllm-serve", "/e")


def test_ranks_over_hosts_are_started_by_srun() -> None:
    launch = plan_launch(Ranks(tensor=8, pipeline=2), 8)
    words = start_words(launch, ("trtllm-serve", "/e"), container="image.sqsh")
    assert words[:4] == ("srun", "--mpi=pmix", "--nodes=2", "--ntasks=16")
    assert "--container-image=image.sqsh" in words
    assert words[-3:] == ("trtllm-llmapi-launch", "trtllm-serve", "/e")
    with pytest.raises(UsageProblem, match="starts no ranks"):
        srun_words(launch, mpi="none")
    with pytest.raises(UsageProblem, match="9 ranks do not divide over 2 hosts"):
        plan_launch(Ranks(tensor=9), 8)


def test_an_engine_of_several_ranks_is_one_mpi_job_whose_first_rank_alone_listens() -> None:
    words = triton_words(plan_launch(Ranks(tensor=2, pipeline=2)), "/models", engine=True)
    assert words[:5] == ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "1")
    first, *others = " ".join(words[3:]).split(" : ")
    assert "--allow-http=false" not in first and "--load-model" not in first
    assert len(others) == 3
    for silent in ("--allow-http=false", "--allow-grpc=false", "--allow-metrics=false", "--load-model=tensorrt_llm"):
        assert all(silent in other for other in others)
    regions = {server.partition("shm-region-prefix-name=")[2].split()[0] for server in (first, *others)}
    assert len(regions) == 4
    assert triton_words(plan_launch(Ranks(tensor=2)), "/models", engine=False)[0] == "tritonserver"


def test_a_probe_is_the_one_that_was_planned_with(tmp_path: Path) -> None:
    spec = make_spec(probe="0" * 64).checkpoint
    with pytest.raises(EnvironmentProblem, match="is not here"):
        load_release(spec, {})
    other = tmp_path / "probe.json"
    other.write_text("{}")
    with pytest.raises(VerificationFailed, match="is not the one"):
        load_release(spec, {PROBE_VARIABLE: str(other)})
    assert load_release(make_spec(shape=LLAMA_70B)).version == "0.16.0"
