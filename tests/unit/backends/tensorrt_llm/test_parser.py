"""Command lines as each release reads them: its own are accepted, those of others are refused with the reason."""

from __future__ import annotations

import shlex

import pytest

from trtx.backends.tensorrt_llm.history import explain_option, history, spans
from trtx.backends.tensorrt_llm.parser import Parsed, parse
from trtx.backends.tensorrt_llm.releases import Release, known_releases
from trtx.errors import UsageProblem

EXACT = [version for version in known_releases() if Release.load(version).confidence == "exact"]
BUILD = (
    "--checkpoint_dir /ckpt --output_dir /engine --gemm_plugin auto --max_batch_size 8 --max_input_len 1024 "
    "--max_seq_len 2048 --max_num_tokens 8192 --use_paged_context_fmha enable --multiple_profiles disable --workers 2"
)
QUANTIZE = (
    "--model_dir /hf --qformat fp8 --kv_cache_dtype fp8 --output_dir /ckpt --calib_size 512 --tp_size 4 --pp_size 1 "
    "--dtype bfloat16 --batch_size 1 --calib_max_seq_length 512 --calib_dataset /data --awq_block_size 128"
)
CONVERT = (
    "--model_dir /hf --output_dir /ckpt --dtype float16 --tp_size 2 --pp_size 1 --use_weight_only "
    "--weight_only_precision int8 --load_model_on_cpu --workers 2"
)


def read(version: str, tool: str, line: str) -> Parsed:
    return parse(Release.load(version), tool, shlex.split(line))


def refusal(version: str, tool: str, line: str) -> UsageProblem:
    with pytest.raises(UsageProblem) as problem:
        read(version, tool, line)
    return problem.value


@pytest.mark.parametrize("version", EXACT)
@pytest.mark.parametrize(
    ("tool", "line"),
    [("trtllm-build", BUILD), ("quantize.py", QUANTIZE), ("llama/convert_checkpoint.py", CONVERT)],
)
def test_usual_command_lines_are_those_of_every_release(version: str, tool: str, line: str) -> None:
    parsed = read(version, tool, line)
    assert parsed.uncertain == ()
    flags = {word.removeprefix("--") for word in shlex.split(line) if word.startswith("--")}
    assert parsed.given == flags


# Tool, command line, and the exact releases that take it.
ONLY = [
    ("trtllm-build", "--kv_cache_type paged", "0.13.0 0.14.0 0.15.0 0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    ("trtllm-build", "--low_latency_gemm_plugin fp8", "0.13.0 0.14.0 0.15.0 0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    ("trtllm-build", "--builder_opt 3", "0.12.0 0.13.0"),
    ("trtllm-build", "--builder_force_num_profiles 2", "0.12.0 0.13.0 0.14.0"),
    ("trtllm-build", "--lookup_plugin auto", "0.12.0 0.13.0 0.14.0"),
    ("trtllm-build", "--enable_xqa enable", "0.12.0 0.13.0 0.14.0 0.15.0"),
    ("trtllm-build", "--pp_reduce_scatter enable", "0.15.0 0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    ("trtllm-build", "--monitor_memory", "0.15.0 0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    ("trtllm-build", "--user_buffer enable", "0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    ("trtllm-build", "--visualize_network", "0.12.0 0.13.0 0.14.0 0.15.0 0.16.0 0.17.0.dev2024121700"),
    ("trtllm-build", "--visualize_network /graphs", "1.3.0rc3"),
    ("trtllm-build", "--gemm_plugin nvfp4", "1.3.0rc3"),
    ("trtllm-build", "--dora_plugin enable", "1.3.0rc3"),
    ("trtllm-build", "--fuse_fp4_quant enable", "1.3.0rc3"),
    ("trtllm-build", "--norm_quant_fusion enable", "1.3.0rc3"),
    ("trtllm-build", "--auto_parallel 1", "0.12.0 0.13.0 0.14.0 0.15.0 0.16.0 0.17.0.dev2024121700"),
    ("trtllm-build", "--speculative_decoding_mode eagle", "0.15.0 0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    ("quantize.py", "--auto_quantize_bits 4.5", "0.15.0 0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    ("quantize.py", "--autoq_format fp8", "0.14.0 0.15.0 0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    ("quantize.py", "--cp_size 2", "0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    ("quantize.py", "--qformat nvfp4", "1.3.0rc3"),
    ("quantize.py", "--quantize_lm_head", "1.3.0rc3"),
    ("llama/convert_checkpoint.py", "--use_fp8", "0.13.0 0.14.0 0.15.0 0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    ("llama/convert_checkpoint.py", "--use_qserve", "0.15.0 0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    ("llama/convert_checkpoint.py", "--cp_size 2", "0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    ("llama/convert_checkpoint.py", "--use_embedding_sharing", "0.12.0 0.13.0 0.14.0 0.15.0"),
    ("llama/convert_checkpoint.py", "--calib_size 32", "0.14.0 0.15.0 0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    (
        "trtllm-bench",
        "-m m throughput --engine_dir e --dataset d --request_rate 3",
        "0.12.0 0.13.0 0.14.0 0.15.0 0.16.0 0.17.0.dev2024121700",
    ),
    ("trtllm-bench", "-m m throughput --engine_dir e --dataset d --report_json r.json", "1.3.0rc3"),
    ("trtllm-serve", "/engine --tokenizer t --tp_size 4", "0.15.0 0.16.0 0.17.0.dev2024121700 1.3.0rc3"),
    ("trtllm-serve", "serve /engine --tensor_parallel_size 4", "1.3.0rc3"),
    ("trtllm-serve", "m --extra_llm_api_options a.yaml", "1.3.0rc3"),
    ("trtllm-serve", "m --config a.yaml --backend trt", "1.3.0rc3"),
    ("trtllm-eval", "--model m mmlu --num_samples 10", "1.3.0rc3"),
]


@pytest.mark.parametrize(("tool", "line", "versions"), ONLY)
def test_what_came_and_went_is_taken_by_the_releases_that_have_it(tool: str, line: str, versions: str) -> None:
    taking = []
    for version in EXACT:
        try:
            read(version, tool, line)
        except UsageProblem:
            continue
        taking.append(version)
    assert taking == versions.split()


def test_a_python_bool_is_no_word_of_a_plugin() -> None:
    assert "invalid choice: 'True'" in refusal("0.16.0", "trtllm-build", "--gemm_plugin True").why


def test_wrong_types_and_counts_are_refused() -> None:
    assert "invalid int value: 'many'" in refusal("1.3.0rc3", "trtllm-build", "--max_batch_size many").why
    assert "expected one argument" in refusal("1.3.0rc3", "trtllm-build", "--checkpoint_dir").why
    assert "--model" in refusal("1.3.0rc3", "trtllm-bench", "throughput --dataset d").why


def test_abbreviations_are_refused() -> None:
    assert "did you mean --checkpoint_dir?" in refusal("1.3.0rc3", "trtllm-build", "--checkpoint_di x").fix


def test_a_flag_of_another_release_comes_with_its_history() -> None:
    problem = refusal("0.16.0", "trtllm-build", "--checkpoint_dir c --enable_xqa enable")
    assert problem.what == "trtllm-build of TensorRT-LLM 0.16.0 refuses its command line"
    assert "--enable_xqa" in problem.why
    assert problem.fix == "trtllm-build had --enable_xqa until 0.15.0; 0.16.0 does not have it; leave it out."


def test_groups_read_their_own_options_before_the_command() -> None:
    parsed = read(
        "1.3.0rc3", "trtllm-bench", "--model m --workspace /w throughput --dataset d --concurrency -1 --streaming"
    )
    assert parsed.tool.key == "trtllm-bench throughput"
    assert (parsed.values["model"], parsed.values["workspace"], parsed.values["concurrency"]) == ("m", "/w", -1)
    assert parsed.values["streaming"] is True
    assert parsed.values["backend"] == "pytorch"
    assert "backend" not in parsed.given


def test_commands_may_be_two_deep_and_kebab_case() -> None:
    line = "--model m prepare-dataset --output o.txt token-norm-dist --num-requests 4 "
    line += "--input-mean 8 --input-stdev 0 --output-mean 8 --output-stdev 0"
    parsed = read("1.3.0rc3", "trtllm-bench", line)
    assert parsed.tool.key == "trtllm-bench prepare-dataset token-norm-dist"
    assert parsed.values["num_requests"] == 4


def test_a_command_that_is_missing_or_unknown_is_refused_with_those_there_are() -> None:
    assert refusal("1.3.0rc3", "trtllm-bench", "--model m").what.startswith("trtllm-bench needs a command")
    problem = refusal("0.12.0", "trtllm-bench", "--model m latency")
    assert "trtllm-bench has no command latency" in problem.what
    assert problem.fix == "one of build, throughput"


def test_serving_is_the_default_command() -> None:
    parsed = read("1.3.0rc3", "trtllm-serve", "/engine --port 8001")
    assert (parsed.tool.key, parsed.values["model"], parsed.values["port"]) == ("trtllm-serve serve", "/engine", 8001)
    assert read("1.3.0rc3", "trtllm-serve", "disaggregated -c c.yaml").values["config_file"] == "c.yaml"


def test_off_flags_and_choice_aliases_are_understood() -> None:
    line = "-m m throughput --dataset d --disable_chunked_context --backend tensorrt"
    assert read("1.3.0rc3", "trtllm-bench", line).values["enable_chunked_context"] is False
    assert read("1.3.0rc3", "trtllm-serve", "m --backend trt").values["backend"] == "tensorrt"


def test_what_a_derived_release_may_not_have_is_taken_and_said() -> None:
    parsed = read("1.0.0", "trtllm-serve", "m --tensor_parallel_size 4 --extra_llm_api_options a.yaml --grpc")
    assert len(parsed.uncertain) == 2
    assert "--tp_size is certain" in parsed.uncertain[1] + parsed.uncertain[0]
    assert any(note.startswith("whether this release has --grpc is not established") for note in parsed.uncertain)
    assert read("1.0.0", "trtllm-serve", "m --tp_size 4").uncertain == ()
    assert read("1.0.0", "quantize.py", "--qformat nvfp4").uncertain == (
        "whether --qformat takes nvfp4 is not established",
    )


@pytest.mark.parametrize("version", known_releases())
def test_a_parser_can_be_built_for_every_tool(version: str) -> None:
    from trtx.backends.tensorrt_llm.parser import make_parser

    for tool in Release.load(version).tools.values():
        make_parser(tool)


SENTENCES = [
    (
        "trtllm-build",
        "--user_buffer",
        "0.14.0",
        "trtllm-build has --user_buffer since 0.16.0; 0.14.0 does not have it.",
    ),
    ("trtllm-build", "--gemm_plugin", "0.16.0", "trtllm-build of 0.16.0 has --gemm_plugin (default 'disable')."),
    (
        "trtllm-build",
        "--kv_cache_type",
        "0.12.0",
        "trtllm-build has --kv_cache_type since 0.13.0; 0.12.0 does not have it; write --paged_kv_cache enable.",
    ),
    (
        "trtllm-build",
        "--paged_kv_cache",
        "0.16.0",
        "trtllm-build of 0.16.0 has --paged_kv_cache (deprecated there, default unset).",
    ),
    (
        "quantize.py",
        "--weight_compression",
        "1.2.1",
        "quantize.py had --weight_compression until 0.14.0; 1.2.1 does not have it; write --auto_quantize_bits.",
    ),
    (
        "trtllm-build",
        "--max_output_len",
        "0.16.0",
        "trtllm-build of 0.16.0 has no --max_output_len; write --max_seq_len, which counts input and output.",
    ),
    (
        "trtllm-build",
        "--tp_size",
        "1.0.0",
        "trtllm-build of 1.0.0 has no --tp_size; it is given when the checkpoint is made.",
    ),
    (
        "trtllm-build",
        "--gemm_plugn",
        "1.0.0",
        "no release of trtllm-build that is known has --gemm_plugn; did you mean --gemm_plugin?",
    ),
    ("trtllm-build", "--qformat", "1.0.0", "trtllm-build has no --qformat; quantize.py of 1.0.0 has it."),
    (
        "quantize.py",
        "--device_map",
        "0.16.0",
        "quantize.py has --device_map at the latest since 1.3.0rc3; 0.16.0 does not have it.",
    ),
    ("trtllm-serve", "--tensor_parallel_size", "0.16.0", "write --tp_size."),
    ("trtllm-serve serve", "--tp_size", "0.16.0", "has --tp_size (default 1)."),
    ("trtllm-build", "--zzzzzz", "9.9", "no release that is known has --zzzzzz in trtllm-build."),
]


@pytest.mark.parametrize(("tool", "flag", "release", "sentence"), SENTENCES)
def test_an_option_is_explained_in_one_sentence(tool: str, flag: str, release: str, sentence: str) -> None:
    assert explain_option(tool, flag, release).endswith(sentence)


def test_history_names_every_release_that_has_a_flag() -> None:
    assert [each.release for each in history("trtllm-build", "--enable_xqa")] == [
        "0.12.0",
        "0.13.0",
        "0.14.0",
        "0.15.0",
    ]
    assert history("trtllm-build", "--nothing") == ()
    assert spans(["0.12.0", "0.13.0", "1.3.0rc3"]) == "0.12.0 to 0.13.0, 1.3.0rc3"
