"""Text to token ids and back for the Python models around the closed backend. Needs numpy and tokenizers, or
transformers for a tokenizer without tokenizer.json; nothing of it runs code that a model brings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REPLACEMENT = "\ufffd"
# Tokens that may stay without text before they are given out as U+FFFD: longer runs are bytes that never become text.
MAX_HELD_TOKENS = 64
# The id for "none" in the backend.
NO_ID = -1


class Tokenizer:
    """A Hugging Face tokenizer. `eos_ids` end a sequence, the first is the one that the backend is told."""

    def __init__(self, path: str) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no tokenizer in {folder}: the folder is missing")
        self._fast: Any = None
        if (folder / "tokenizer.json").is_file():
            import tokenizers

            self._fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            # Limits that were set for training must not cut or fill up prompts.
            self._fast.no_truncation()
            self._fast.no_padding()
        elif (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.model").is_file():
            import transformers

            self._slow = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        else:
            raise FileNotFoundError(
                f"there is no tokenizer in {folder}: neither tokenizer.json nor tokenizer_config.json"
            )
        special = _special_tokens(folder)
        self.eos_ids = self._find_eos(folder, special)
        pad = self._id(special.get("pad_token"))
        self.end_id = self.eos_ids[0] if self.eos_ids else NO_ID
        self.pad_id = self.end_id if pad is None else pad

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if self._fast is not None:
            return list(self._fast.encode(text, add_special_tokens=add_special_tokens).ids)
        return list(self._slow.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        tokenizer = self._slow if self._fast is None else self._fast
        return str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def _id(self, token: str | None) -> int | None:
        if token is None:
            return None
        found = self._slow.convert_tokens_to_ids(token) if self._fast is None else self._fast.token_to_id(token)
        return None if found is None else int(found)

    def _find_eos(self, folder: Path, special: Mapping[str, str]) -> list[int]:
        listed = _read(folder / "generation_config.json").get("eos_token_id")
        if listed is not None:
            return list(listed) if isinstance(listed, list) else [listed]
        found = self._id(special.get("eos_token"))
        return [] if found is None else [found]


class TextStream:
    """The text of one growing sequence, in pieces that never split a character."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._given = 0
        self._context = ""
        self.text = ""

    def push(self, ids: Sequence[int]) -> str:
        """The text that these tokens complete; empty while a character is incomplete."""
        self._ids.extend(ids)
        text = self._decode(self._ids)
        if len(self._ids) == self._given:
            return ""
        if text.endswith(REPLACEMENT) and len(self._ids) - self._given < MAX_HELD_TOKENS:
            return ""
        return self._give(text)

    def flush(self) -> str:
        """What is left when the sequence has ended."""
        return self._give(self._decode(self._ids)) if len(self._ids) > self._given else ""

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, self._skip)

    def _give(self, text: str) -> str:
        piece = text[len(self._context) :]
        # Decoded again with what comes: the text of a token depends on what precedes it.
        self._ids = self._ids[self._given :]
        self._given = len(self._ids)
        self._context = self._decode(self._ids)
        self.text += piece
        return piece


def word_list(tokenizer: Tokenizer, rows: Sequence[Sequence[str]], extra: Sequence[int] = ()) -> Any:
    """Words of every row, and token ids `extra` for all, as the backend wants them: int32 [rows, 2, n].

    Per row first the tokens of all words one after another, then where each word ends, filled up with -1.
    """
    listed = []
    for words in rows:
        sequences = [tokenizer.encode(word, add_special_tokens=False) for word in words if word]
        listed.append([sequence for sequence in sequences if sequence] + [[one] for one in extra])
    width = max((sum(map(len, sequences)) for sequences in listed), default=0)
    result = np.full((len(listed), 2, width), -1, dtype=np.int32)
    result[:, 0, :] = 0
    for row, sequences in enumerate(listed):
        flat = [token for sequence in sequences for token in sequence]
        result[row, 0, : len(flat)] = flat
        result[row, 1, : len(sequences)] = np.cumsum([len(sequence) for sequence in sequences], dtype=np.int32)
    return result


def text_of(value: str | bytes) -> str:
    """A string of a tensor. Raises ValueError for bytes that are no UTF-8."""
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"a text is not UTF-8: {error}") from None


def parameter(config: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A parameter of config.pbtxt."""
    found = config["parameters"].get(name)
    if found is None:
        if default is None:
            raise ValueError(f"config.pbtxt has no parameter {name}")
        return default
    return str(found["string_value"])


def flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    return parameter(config, name, str(default)).lower() in ("true", "1")


def _special_tokens(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        for key, value in _read(folder / name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found.setdefault(key, text)
    return found


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}
