"""The tables of TensorRT-LLM releases: all are there, agree with one another, and load at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trtx.backends.tensorrt_llm.drivers import series_driver, toolkit_driver
from trtx.backends.tensorrt_llm.releases import Release, known_releases, triton_images
from trtx.backends.tensorrt_llm.surface import CONFIDENCES, Option, Unresolved
from trtx.backends.tensorrt_llm.tables import DATA, read_table
from trtx.errors import UsageProblem

RELEASES = known_releases()
EXACT = [version for version in RELEASES if Release.load(version).confidence == "exact"]
# Options by tool, counted on the sources by another program than the one that made the tables.
COUNTS = {
    "0.12.0": (64, 25, 45, 18, 0, 0),
    "0.13.0": (66, 25, 46, 19, 0, 0),
    "0.14.0": (65, 27, 48, 24, 0, 0),
    "0.15.0": (66, 27, 50, 27, 12, 0),
    "0.16.0": (66, 28, 50, 28, 12, 0),
    "0.17.0.dev2024121700": (66, 28, 50, 28, 12, 0),
    "1.3.0rc3": (67, 30, 51, 96, 52, 130),
}
ARCHITECTURES = {"0.12.0": 49, "0.13.0": 50, "0.14.0": 52, "0.15.0": 58, "0.16.0": 65, "1.3.0rc3": 82}
TOOLS = ("trtllm-build", "quantize.py", "llama/convert_checkpoint.py", "trtllm-bench", "trtllm-serve", "trtllm-eval")


def test_there_are_fifteen_releases_of_which_seven_were_read_from_their_sources() -> None:
    assert len(RELEASES) == 15
    assert sorted(EXACT) == sorted(COUNTS)


@pytest.mark.parametrize("version", COUNTS)
def test_exact_tables_have_as_many_options_as_were_counted(version: str) -> None:
    release = Release.load(version)
    counts = tuple(sum(len(tool.options) for tool in release.tools.values() if tool.name == name) for name in TOOLS)
    assert counts == COUNTS[version]
    assert len(release.architectures("engine")) == ARCHITECTURES.get(version, 66)


def test_the_pytorch_flow_has_its_architectures_where_it_has_options() -> None:
    assert len(Release.load("1.3.0rc3").architectures("pytorch")) == 48
    assert Release.load("0.16.0").architectures("pytorch") == frozenset()
    assert Release.load("1.2.1").architecture_confidence("pytorch", "LlamaForCausalLM") == "unknown"
    assert Release.load("1.2.1").architecture_confidence("engine", "LlamaForCausalLM") == "interval"
    assert Release.load("1.2.1").architecture_confidence("engine", "Nobody") is None


@pytest.mark.parametrize("version", RELEASES)
def test_a_table_is_consistent(version: str) -> None:
    release = Release.load(version)
    for key, tool in release.tools.items():
        assert key == tool.key
        names = [option.name for option in tool.options]
        assert len(names) == len(set(names)), key
        flags = [flag for option in tool.options for flag in (*option.flags, *option.off_flags)]
        assert len(flags) == len(set(flags)), key
        for word in tool.subcommands:
            assert f"{key} {word}" in release.tools
        for option in tool.options:
            assert option.flags or option.positional
            assert option.confidence in CONFIDENCES
            assert (option.confidence == "exact") == (release.confidence == "exact"), (key, option.name)
            assert release.confidence == "exact" or option.evidence
            if isinstance(option.choices, tuple):
                assert set(option.certain_choices or ()) <= set(option.choices)
                fixed = option.default is None or isinstance(option.default, Unresolved | list)
                assert fixed or option.default in option.choices, (key, option)
            assert set(option.certain_flags or ()) <= set(option.flags)


@pytest.mark.parametrize("version", RELEASES)
def test_what_is_certain_can_be_written(version: str) -> None:
    for tool in Release.load(version).tools.values():
        for option in tool.options:
            if option.is_certain:
                assert option.positional or option.flag in (option.certain_flags or option.flags)


def test_the_pools_hold_each_row_once_and_none_in_vain() -> None:
    used = {"options": set[int](), "schemas": set[int]()}
    for version in RELEASES:
        packed = read_table(f"surface-{version}")
        for tool in packed["tools"].values():
            used["options"].update(each if isinstance(each, int) else each[0] for each in tool["options"])
        used["schemas"].update(row[0] for row in packed["schemas"].values())
        used["schemas"].update(packed["triton_models"].values())
    for name, numbers in used.items():
        rows = [json.dumps(row, sort_keys=True) for row in read_table(name)]
        assert len(rows) == len(set(rows))
        assert numbers == set(range(len(rows)))


def test_the_tables_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.glob("*.json")) < 600_000


def test_defaults_that_moved_are_those_of_the_release() -> None:
    def default(version: str, flag: str, tool: str = "trtllm-build") -> object:
        option = Release.load(version).tool(tool).option(flag)
        assert option is not None
        return option.default

    assert [default(version, "--max_batch_size") for version in ("0.13.0", "0.14.0", "1.2.1")] == [256, 2048, 2048]
    assert [default(version, "--tokens_per_block") for version in ("0.18.2", "0.19.0")] == [64, 32]
    assert [default(version, "--use_paged_context_fmha") for version in ("0.18.2", "0.19.0")] == ["disable", "enable"]
    assert [default(version, "--dtype", "quantize.py") for version in ("0.14.0", "0.15.0")] == ["float16", "auto"]


def test_what_differs_between_neighbours_is_not_given_as_certain() -> None:
    option = Release.load("1.0.0").tool("quantize.py").option("--qformat")
    assert option is not None
    assert option.takes("fp8") == "interval"
    assert option.takes("nvfp4") == "unknown"
    assert option.takes("fp5") is None
    open_set = Option(("--kind",), "kind", choices=Unresolved("differs"), certain_choices=("a",), confidence="interval")
    assert (open_set.takes("a"), open_set.takes("b")) == ("interval", "unknown")
    serve = Release.load("1.0.0").tool("trtllm-serve", "serve")
    sizes = serve.option("--tensor_parallel_size")
    assert sizes is not None
    assert sizes.flag == "--tp_size"


def test_a_release_says_what_it_runs_with() -> None:
    release = Release.load("1.2.1")
    assert release.image == "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"
    assert release.triton_image == "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    assert (release.tensorrt, release.min_driver, release.compatible_driver) == ("10.14.1.48", "590.44.01", "580")
    assert (release.engine_backend, release.pytorch_backend, release.default_flow) == (True, True, "pytorch")
    old = Release.load("0.16.0")
    assert (old.image, old.cuda, old.min_driver) == (None, "12.6.3", "560.35.05")
    assert (old.engine_backend, old.pytorch_backend, old.default_flow) == (True, False, "engine")


def test_triton_containers_without_a_known_release_are_left_out() -> None:
    images = {each.image: each.release for each in triton_images()}
    assert images["nvcr.io/nvidia/tritonserver:25.08-trtllm-python-py3"] == "0.21.0"
    assert "nvcr.io/nvidia/tritonserver:25.11-trtllm-python-py3" not in images
    assert "nvcr.io/nvidia/tritonserver:25.02-trtllm-python-py3" not in images


def test_drivers_are_the_newest_of_a_series_where_the_update_is_not_known() -> None:
    assert toolkit_driver("12.8.1") == "570.124.06"
    assert toolkit_driver("12.9") == "575.57.08"
    assert toolkit_driver("13.x") == toolkit_driver("13.1") == "590.44.01"
    assert toolkit_driver("14.0") is None
    assert (series_driver("12.9"), series_driver("13.0"), series_driver("9.0")) == ("525.60.13", "580", None)


def test_scripts_have_one_place_where_the_layout_is_known_and_two_where_it_is_not() -> None:
    name = "llama/convert_checkpoint.py"
    old, new = "/app/tensorrt_llm/examples/llama", "/app/tensorrt_llm/examples/models/core/llama"
    assert Release.load("0.16.0").scripts(name) == (f"{old}/convert_checkpoint.py",)
    assert Release.load("0.18.2").scripts(name) == (f"{old}/convert_checkpoint.py",)
    assert Release.load("0.19.0").scripts(name) == (f"{old}/convert_checkpoint.py", f"{new}/convert_checkpoint.py")
    assert Release.load("1.2.1").scripts(name) == (f"{new}/convert_checkpoint.py", f"{old}/convert_checkpoint.py")
    assert Release.load("1.3.0rc3").scripts(name) == (f"{new}/convert_checkpoint.py",)


def test_a_subcommand_of_a_tool_without_any_is_the_tool() -> None:
    assert Release.load("0.16.0").tool("trtllm-serve", "serve").key == "trtllm-serve"
    assert Release.load("1.2.1").tool("trtllm-serve", "serve").key == "trtllm-serve serve"


def test_a_tool_that_a_release_does_not_have_is_named_with_those_that_do() -> None:
    with pytest.raises(UsageProblem) as problem:
        Release.load("0.14.0").tool("trtllm-serve")
    assert problem.value.what == "TensorRT-LLM 0.14.0 has no trtllm-serve"
    assert problem.value.why.startswith("trtllm-serve is known of 0.15.0, 0.16.0")


def test_a_release_without_tables_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageProblem) as problem:
        Release.load("1.2.2")
    assert problem.value.what == "there are no tables for TensorRT-LLM 1.2.2"
    assert "did you mean '1.2.1'?" in problem.value.fix
    assert "trtx probe" in problem.value.fix


def test_fields_of_options_files_are_found_through_their_bases() -> None:
    release = Release.load("1.3.0rc3")
    fields = release.schema_fields("TorchLlmArgs")
    assert fields["tensor_parallel_size"].default == 1
    assert fields["attn_backend"].default == "TRTLLM"
    assert release.is_closed("TorchLlmArgs")
    assert release.is_closed("KvCacheConfig")
    assert release.schema_fields("KvCacheConfig")["tokens_per_block"].default == 32
    derived = Release.load("1.0.0").schema_fields("TorchLlmArgs")
    assert derived["tensor_parallel_size"].confidence == "interval"
    assert derived["attn_backend"].confidence == "unknown"
    assert Release.load("0.21.0").schemas == {}


def test_algorithms_grow_with_the_releases() -> None:
    assert len(Release.load("0.12.0").quant_algos) == 13
    assert len(Release.load("1.3.0rc3").quant_algos) == 25
    assert Release.load("1.0.0").quant_algos["FP8"] == "interval"
    assert Release.load("1.0.0").quant_algos["NVFP4"] == "unknown"
    assert set(Release.load("0.16.0").kv_algos) == {"FP8", "INT8"}
    assert set(Release.load("1.3.0rc3").kv_algos) == {"FP8", "INT8", "NVFP4"}
    assert "BUILDER_FORCE_NUM_PROFILES" in Release.load("1.3.0rc3").env_vars


def test_triton_models_have_their_placeholders() -> None:
    model = Release.load("1.3.0rc3").triton_models["inflight_batcher_llm/tensorrt_llm"]
    assert len(model["placeholders"]) == 52
    assert len(model["parameters"]) == 46


@pytest.mark.parametrize(
    "content", ["", "[]", '{"schema": "trtx.plan/v1"}', '{"schema": "trtx.probe/v1", "surface": 3}']
)
def test_what_is_no_probe_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_text(content)
    with pytest.raises(UsageProblem, match="is no result of trtx probe"):
        Release.load("1.2.1", probed=tmp_path / "probe.json")
