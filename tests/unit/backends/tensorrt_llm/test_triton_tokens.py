"""Text and tokens in the Python models around TensorRT-LLM's backend."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.engines import BOS_ID, EOS_ID, write_tokenizer_folder

from trtx.render import TEMPLATES

SCRIPT = TEMPLATES / "triton" / "tensorrt_llm" / "tokens.py"


@pytest.fixture(scope="module")
def tokens() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trtllm_tokens", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tokenizer(tokens: ModuleType, tmp_path: Path) -> Any:
    write_tokenizer_folder(tmp_path / "tokenizer")
    return tokens.Tokenizer(tmp_path / "tokenizer")


def test_ends_and_padding_come_from_the_models_files(tokens: ModuleType, tokenizer: Any, tmp_path: Path) -> None:
    assert (tokenizer.eos_ids, tokenizer.end_id, tokenizer.pad_id) == ([EOS_ID], EOS_ID, EOS_ID)
    folder = tmp_path / "tokenizer"
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [65, EOS_ID]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<s>"}}))
    several = tokens.Tokenizer(folder)
    assert (several.eos_ids, several.end_id, several.pad_id) == ([65, EOS_ID], 65, BOS_ID)
    for name in ("generation_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    assert tokens.Tokenizer(folder).end_id == -1


def test_words_are_flat_with_their_ends_behind_and_filled_up(tokens: ModuleType, tokenizer: Any) -> None:
    one, two = tokenizer.encode("ab", False), tokenizer.encode("c", False)
    found = tokens.word_list(tokenizer, [["ab", "c", ""], ["c"]], [7])
    assert found.tolist() == [
        [[*one, *two, 7], [2, 3, 4, -1]],
        [[*two, 7, 0, 0], [1, 2, -1, -1]],
    ]
    assert tokens.word_list(tokenizer, [[], []]).shape == (2, 2, 0)


def test_a_stream_never_splits_a_character(tokens: ModuleType, tokenizer: Any) -> None:
    stream = tokens.TextStream(tokenizer)
    ids = tokenizer.encode("aé€", False)
    pieces = [stream.push([token]) for token in ids]
    assert pieces == ["a", "", "é", "", "", "€"]
    assert (stream.flush(), stream.text) == ("", "aé€")
    assert stream.push(ids[1:2]) == ""
    assert stream.flush() == "\ufffd"


def test_a_tokenizer_without_the_fast_file_is_read_by_transformers(tokens: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    found = tokens.Tokenizer(tmp_path)
    ids = found.encode("héllo", False)
    assert found.decode(ids) == "héllo"


def test_a_folder_without_a_tokenizer_is_named(tokens: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the folder is missing"):
        tokens.Tokenizer(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor tokenizer_config\.json"):
        tokens.Tokenizer(tmp_path)


def test_parameters_must_be_there(tokens: ModuleType) -> None:
    config = {"parameters": {"a": {"string_value": "True"}}}
    assert tokens.flag(config, "a", False)
    assert not tokens.flag(config, "b", False)
    with pytest.raises(ValueError, match=r"config\.pbtxt has no parameter b"):
        tokens.parameter(config, "b")
