"""Which files of a folder make a model or a dataset, decided by name. Imports no torch."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from trtx.errors import UsageProblem, did_you_mean

# https://huggingface.co/docs/transformers/main_classes/tokenizer and …/model: names that save_pretrained writes.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# What ModelOpt writes beside a model that it has quantized.
QUANT_FORMAT_FILE = "hf_quant_config.json"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
DATA_SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")

# The names datasets use for each split: https://huggingface.co/docs/datasets/repository_structure
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def model_files(names: Iterable[str], where: str, *, allow_pickle: bool) -> tuple[str, ...]:
    """The files of a model folder that loading it needs, sorted.

    Raises UsageProblem when there is no config.json, no tokenizer, or no weights in an allowed format.
    """
    present = {name for name in names if is_inside(name)}
    if "config.json" not in present:
        raise UsageProblem(
            f"{where} is not a model",
            why="there is no config.json",
            fix="name the folder of a Hugging Face model that holds config.json, tokenizer and safetensors",
        )
    if not present.intersection(VOCABULARIES):
        raise UsageProblem(
            f"{where} has no tokenizer",
            why=f"none of {', '.join(VOCABULARIES)} is there",
            fix="save the tokenizer beside the model with save_pretrained",
        )
    chosen = {"config.json", *weight_files(present, where, allow_pickle=allow_pickle)}
    chosen |= present & {"generation_config.json", QUANT_FORMAT_FILE}
    chosen |= {name for name in present if any(fnmatch.fnmatchcase(name, pattern) for pattern in TOKENIZER_FILES)}
    return tuple(sorted(chosen))


def weight_files(present: set[str], where: str, *, allow_pickle: bool) -> set[str]:
    """The weights: a single file, else an index and its shards; safetensors before pickles."""
    if "model.safetensors" in present:
        return {"model.safetensors"}
    if SAFETENSORS_INDEX in present:
        return {SAFETENSORS_INDEX} | set(fnmatch.filter(present, "model-*-of-*.safetensors"))
    if not fnmatch.filter(present, "*.bin"):
        raise UsageProblem(
            f"{where} has no weights",
            why=f"there is neither model.safetensors nor {SAFETENSORS_INDEX}",
            fix="name a model saved by save_pretrained, not an adapter or a tokenizer",
        )
    if not allow_pickle:
        raise UsageProblem(
            f"{where} has no safetensors weights",
            why="it has only *.bin files, which are pickles: loading one can run any code",
            fix="choose a revision with safetensors, or set `model.allow_pickle: true` if you trust its author",
        )
    if "pytorch_model.bin" in present:
        return {"pytorch_model.bin"}
    return (present & {PICKLE_INDEX}) | set(fnmatch.filter(present, "pytorch_model-*-of-*.bin"))


def data_files(names: Iterable[str], where: str, split: str | None) -> tuple[str, ...]:
    """The data files of one split, sorted; all of them for None.

    A file belongs to a split when a word of its path says so (`train-00000-of-00003.parquet`, `data/dev/a.txt`).
    Where no path names any split, every file is of the split `train`.

    Raises UsageProblem when there is no data or no such split.
    """
    present = sorted(name for name in names if PurePosixPath(name).suffix in DATA_SUFFIXES and is_inside(name))
    if not present:
        raise UsageProblem(
            f"{where} has no data files", why=f"none ends in {' '.join(DATA_SUFFIXES)}", fix="name a folder with text"
        )
    if split is None:
        return tuple(present)
    by_split = group_by_split(present, split)
    if split not in by_split:
        raise UsageProblem(
            f"{where} has no split '{split}'", why="no file name says so", fix=did_you_mean(split, set(by_split) - {""})
        )
    return tuple(by_split[split])


def held_out_files(names: Iterable[str], split: str) -> tuple[str, ...]:
    """The files of the validation split, where there is one beside the split asked for; else nothing."""
    present = sorted(name for name in names if PurePosixPath(name).suffix in DATA_SUFFIXES and is_inside(name))
    return () if split == "validation" else tuple(group_by_split(present, split).get("validation", ()))


def names_one_file(url: str) -> bool:
    """Whether a URL ends like a data file; such a source has no splits."""
    return PurePosixPath(url).suffix in DATA_SUFFIXES


def group_by_split(names: Iterable[str], asked: str) -> dict[str, list[str]]:
    """File names by split; '' holds those of none, unless no name says any split: then all are `train`."""
    by_split: dict[str, list[str]] = {}
    for name in names:
        by_split.setdefault(split_of(name, asked), []).append(name)
    return {"train": by_split[""]} if set(by_split) == {""} else by_split


def split_of(name: str, asked: str) -> str:
    """The split a path belongs to: the asked word itself, a usual one, or '' for none."""
    words = set(re.split(r"[^A-Za-z0-9]+", name.lower()))
    if asked.lower() in words:
        return asked
    return next((split for split, aliases in SPLIT_WORDS.items() if words.intersection(aliases)), "")


def is_inside(name: str) -> bool:
    """Whether a relative name stays in its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
