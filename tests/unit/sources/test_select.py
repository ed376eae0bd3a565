"""Which files make a model or a dataset."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtx.errors import UsageProblem
from trtx.models.sources.select import data_files, held_out_files, is_inside, model_files, names_one_file

MODEL = ("config.json", "tokenizer.json", "model.safetensors")


def choose(*names: str, allow_pickle: bool = False) -> tuple[str, ...]:
    return model_files(names, "here", allow_pickle=allow_pickle)


def test_only_what_loading_needs_is_chosen() -> None:
    others = ("README.md", "pytorch_model.bin", "consolidated.safetensors", "model.fp16.safetensors", "onnx/model.onnx")
    templates = ("chat_template.jinja", "additional_chat_templates/tool_use.jinja")
    assert choose(*MODEL, *others, *templates) == tuple(sorted(MODEL + templates))


def test_shards_come_with_their_index() -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    assert set(choose("config.json", "vocab.json", "merges.txt", *shards, "consolidated.safetensors")) == {
        "config.json",
        "vocab.json",
        "merges.txt",
        *shards,
    }


def test_pickles_are_chosen_only_when_allowed_and_nothing_else_is_there() -> None:
    pickled = ("config.json", "tokenizer.json", "pytorch_model.bin")
    with pytest.raises(UsageProblem, match="no safetensors"):
        choose(*pickled)
    assert "pytorch_model.bin" in choose(*pickled, allow_pickle=True)
    assert "pytorch_model.bin" not in choose(*pickled, "model.safetensors", allow_pickle=True)
    shards = ("pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json")
    assert set(shards) <= set(choose("config.json", "tokenizer.json", *shards, allow_pickle=True))


@pytest.mark.parametrize(
    ("missing", "what"),
    [("config.json", "is not a model"), ("tokenizer.json", "no tokenizer"), ("model.safetensors", "no weights")],
)
def test_each_missing_part_is_named(missing: str, what: str) -> None:
    with pytest.raises(UsageProblem, match=what) as caught:
        choose(*(name for name in MODEL if name != missing))
    assert caught.value.fix


def test_names_that_leave_the_folder_are_never_chosen() -> None:
    bad = ("additional_chat_templates/../../x.jinja", "/etc/config.json")
    assert choose(*MODEL, *bad) == tuple(sorted(MODEL))
    assert data_files(["a.txt", "../b.txt", "/c.txt"], "here", None) == ("a.txt",)


@given(st.text(alphabet="a./", max_size=12))
def test_a_name_is_inside_only_if_joining_it_stays_inside(name: str) -> None:
    depth = 0
    for part in name.split("/"):
        depth += {"": 0, ".": 0, "..": -100}.get(part, 1)
    assert is_inside(name) == (depth >= 0 and not name.startswith("/"))


def test_splits_are_found_by_words_of_the_path() -> None:
    names = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/dev/a.jsonl", "test.csv"]
    assert data_files(names, "here", "train") == tuple(names[:2])
    assert data_files(names, "here", "validation") == ("data/dev/a.jsonl",)
    assert data_files(names, "here", "test") == ("test.csv",)
    assert held_out_files(names, "train") == ("data/dev/a.jsonl",)
    assert held_out_files(names, "validation") == ()
    assert data_files(names, "here", None) == tuple(sorted(names))


def test_files_without_any_split_are_the_train_split() -> None:
    assert data_files(["a.txt", "training_notes.md", "b.jsonl"], "here", "train") == ("a.txt", "b.jsonl")
    assert held_out_files(["a.txt"], "train") == ()


def test_a_split_of_another_name_is_found_by_it() -> None:
    assert data_files(["train.jsonl", "train_sft-0.jsonl"], "here", "sft") == ("train_sft-0.jsonl",)


def test_an_unknown_split_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageProblem, match="has no split 'trian'") as caught:
        data_files(["train.jsonl", "test.jsonl"], "here", "trian")
    assert "'train'" in caught.value.fix


def test_a_folder_without_data_says_what_data_is() -> None:
    with pytest.raises(UsageProblem, match="has no data files") as caught:
        data_files(["a.md"], "here", None)
    assert ".parquet" in caught.value.why


@pytest.mark.parametrize(("url", "one"), [("file:///a/b.jsonl", True), ("file:///a/b", False), ("hf://a/b.c", False)])
def test_a_url_that_ends_like_a_data_file_is_one(url: str, one: bool) -> None:
    assert names_one_file(url) is one
