"""An engine's own config.json against what was asked for, setting by setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.trtllm_specs import MIXTRAL, make_spec

from trtx.backends.tensorrt_llm.drift import EngineConfig, find_drift, read_engine_config
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.spec import Ranks, TrtllmSpec
from trtx.errors import VerificationFailed

RELEASE = Release.load("1.2.1")


def drift(
    spec: TrtllmSpec,
    *,
    pretrained: dict[str, Any] | None = None,
    build: dict[str, Any] | None = None,
    plugins: dict[str, Any] | None = None,
    version: str = "1.2.1",
) -> dict[str, tuple[Any, Any]]:
    config = EngineConfig(version, pretrained or {}, {**(build or {}), "plugin_config": plugins or {}})
    return {row.field: (row.asked, row.got) for row in find_drift(spec, RELEASE, config)}


def test_an_engine_that_says_nothing_has_no_drift() -> None:
    assert drift(make_spec("1.2.1")) == {}


def test_another_release_is_drift() -> None:
    assert drift(make_spec("1.2.1"), version="1.2.0") == {"version": ("1.2.1", "1.2.0")}


@pytest.mark.parametrize(
    ("word", "stored", "is_same"),
    [
        ("auto", "auto", True),
        ("auto", "bfloat16", True),  # As the builder resolves it.
        ("auto", "float16", False),
        ("disable", None, True),
        ("disable", "float16", False),
        ("fp8", "fp8", True),
    ],
)
def test_words_of_plugins_are_compared_by_their_meaning(word: str, stored: Any, is_same: bool) -> None:
    spec = make_spec("1.2.1", plugins={"gemm_plugin": word})
    assert (drift(spec, plugins={"gemm_plugin": stored}) == {}) is is_same


@pytest.mark.parametrize(
    ("word", "stored", "is_same"), [("enable", True, True), ("enable", False, False), ("disable", False, True)]
)
def test_switches_became_booleans(word: str, stored: bool, is_same: bool) -> None:
    spec = make_spec("1.2.1", plugins={"reduce_fusion": word})
    assert (drift(spec, plugins={"reduce_fusion": stored}) == {}) is is_same


def test_a_block_of_another_size_is_drift() -> None:
    assert drift(make_spec("1.2.1"), plugins={"tokens_per_block": 64}) == {
        "build_config.plugin_config.tokens_per_block": (32, 64)
    }


def test_the_model_and_its_format_are_compared() -> None:
    spec = make_spec("1.2.1", algorithm="fp8", kv_cache="fp8", shape=MIXTRAL, ranks=Ranks(tensor=4, expert=4))
    found = drift(
        spec,
        pretrained={
            "hidden_size": 4096,
            "dtype": "float16",
            "mapping": {"world_size": 4, "tp_size": 4, "pp_size": 1, "moe_tp_size": 4, "moe_ep_size": 1},
            "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None},
        },
    )
    assert found == {
        "pretrained_config.dtype": ("bfloat16", "float16"),
        "pretrained_config.mapping.moe_tp_size": (1, 4),
        "pretrained_config.mapping.moe_ep_size": (4, 1),
        "pretrained_config.quantization.kv_cache_quant_algo": ("FP8", None),
    }


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"version": "1", "pretrained_config": {}})])
def test_a_folder_without_an_engines_config_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(VerificationFailed, match="is no engine folder"):
        read_engine_config(tmp_path)
