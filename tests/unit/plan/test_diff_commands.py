"""`trtx diff` of two releases of one recipe: what each brings, and what their tools are told otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.trtllm_recipes import write_model
from support.trtllm_refusals import make_recipe

from trtx.cli.main import main

Differ = Callable[[str, str], tuple[dict[str, Any], str]]


@pytest.fixture
def diff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Differ:
    monkeypatch.setenv("TRTX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path / "models", "llama-8b")

    def compare(old: str, new: str) -> tuple[dict[str, Any], str]:
        for name, text in (("old.yaml", old), ("new.yaml", new)):
            Path(name).write_text(text.replace("hf://owner/name", f"file://{model}"))
        assert main(["diff", "old.yaml", "new.yaml", "-o", "json"]) == 0
        body = json.loads(capsys.readouterr().out)
        assert main(["diff", "old.yaml", "new.yaml"]) == 0
        return body, capsys.readouterr().err

    return compare


LOAD = "benchmark: {workloads: {chat: {input_tokens: 64, output_tokens: 64, concurrency: [1]}}}\n"


def test_two_releases_differ_in_image_versions_keys_and_flags(diff: Differ) -> None:
    body, shown = diff(make_recipe("0.21.0", extra=LOAD), make_recipe("1.3.0rc3", extra=LOAD))
    assert [change["setting"] for change in body["changes"]] == ["engine.release"]
    old, new = body["releases"]["old"][0], body["releases"]["new"][0]
    assert (old["tensorrt"], new["tensorrt"]) == ("10.11.0.33", "10.14.1.48")
    assert {"convert/t/v", "build/t/v", "benchmark/t/v", "package/t/v"} == {
        step["step"] for step in body["steps"]["changed"]
    }
    commands = {(change["stage"], change["tool"]): change for change in body["commands"]}
    assert "--auto_parallel 1" not in commands
    bench = commands["benchmark", "trtllm-bench throughput"]
    assert "--backend tensorrt" in bench["new"]
    assert "--backend tensorrt" not in bench["old"]
    assert "nvcr.io/nvidia/tensorrt-llm/release:0.21.0" in shown
    assert "10.11.0.33" in shown
    assert "--backend tensorrt" in shown


def test_defaults_that_moved_are_written_out_and_so_no_difference(diff: Differ) -> None:
    """tokens_per_block is 64 before 0.19 and 32 since: a recipe that states it is told the same to both."""
    cache = "kv_cache: {tokens_per_block: 64}"
    body, _ = diff(make_recipe("0.18.2", engine=cache), make_recipe("0.20.0", engine=cache))
    build = [change for change in body["commands"] if change["stage"] == "build"]
    assert not [option for change in build for option in (*change["old"], *change["new"]) if "tokens_per" in option]
    body, _ = diff(make_recipe("0.18.2"), make_recipe("0.20.0"))
    [build] = [change for change in body["commands"] if change["stage"] == "build"]
    assert "--tokens_per_block 64" in build["old"]
    assert "--tokens_per_block 32" in build["new"]


def test_the_other_flow_has_another_tool_for_its_build(diff: Differ) -> None:
    body, _ = diff(make_recipe("1.2.1"), make_recipe("1.2.1", "pytorch"))
    assert body["steps"]["removed"] == ["convert/t/v"]
    tools = {change["tool"]: change for change in body["commands"] if change["stage"] == "build"}
    assert tools["trtllm-build"]["new"] == []
    assert "max_batch_size: 8" in tools["options file"]["new"]


def test_a_recipe_of_the_embedded_backend_has_no_commands(diff: Differ) -> None:
    text = "schema: trtx/v1\nname: a\nmodel: {source: demo://tiny-llama}\nquantization: {v: {algorithm: none}}\n"
    body, _ = diff(text + "targets: {t: {gpu: cpu}}\n", text + "targets: {t: {gpu: cpu-avx512}}\n")
    assert body["commands"] == []
    assert body["releases"] == {"old": [], "new": []}
