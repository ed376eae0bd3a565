"""Text to token ids and back, with the files of a Hugging Face model folder and the `tokenizers` library alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers

from trtx.errors import VerificationFailed
from trtx.runtime.chat import ChatTemplate, find_template
from trtx.runtime.token_bytes import TokenBytes

REPLACEMENT = "\ufffd"

# Tokens that may stay without text before they are given out as U+FFFD. A UTF-8 character has at most four bytes,
# hence four tokens; a longer run is bytes that never become text, and decoding it again and again would grow dear.
MAX_HELD_TOKENS = 64


class Tokenizer:
    """A tokenizer.json with what stands beside it: special tokens, end-of-sequence ids, chat template.

    `eos_ids` end a sequence; they come from generation_config.json, else from `eos_token`. Encoding and decoding may be
    called from any thread.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        eos_ids: Iterable[int] = (),
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        # Limits that were set for training must not cut or fill up prompts.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.eos_ids = frozenset(eos_ids)
        self.chat_template = chat_template
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special) | self.eos_ids
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        self.token_bytes = TokenBytes(tokenizer)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read a folder with tokenizer.json and, where present, tokenizer_config.json, special_tokens_map.json,
        generation_config.json and chat_template.jinja.

        Raises VerificationFailed when a file is missing or damaged.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise VerificationFailed(
                f"{folder} has no tokenizer.json",
                why="text needs the fast tokenizer's file",
                fix="convert the model again",
            )
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise VerificationFailed(
                f"{path} is not a tokenizer", why=str(error), fix="convert the model again"
            ) from error
        special = _special_tokens(folder)
        return cls(tokenizer, _eos_ids(folder, tokenizer, special), find_template(folder, special))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. With `add_special_tokens` the tokenizer adds what its own file says, such as a BOS."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def is_special(self, text: str) -> bool:
        """Whether a text is one special token, which is left out of texts by default."""
        return self._tokenizer.token_to_id(text) in self.special_ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids, by default without special tokens; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Token ids of a conversation that is ready for the assistant's answer.

        `variables` are for the template: `tools`, and what else the model's own knows.

        Raises RequestRefused when there is no chat template or the template refuses the messages.
        """
        if self.chat_template is None:
            raise ChatTemplate.missing()
        return self.encode(self.chat_template.render(messages, **variables), add_special_tokens=False)


class TextStream:
    """The text of one growing sequence, given out in pieces that never split a UTF-8 character.

    The pieces joined are the decoded sequence wherever its bytes are UTF-8. Ids are decoded with a few before them,
    because the text of a token can depend on what precedes it (a leading space, for one).
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._decode = partial(tokenizer.decode, skip_special_tokens=skip_special_tokens)
        self._ids: list[int] = []
        self._given = 0
        self._context = ""

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT) and len(self._ids) - self._given < MAX_HELD_TOKENS:
            return ""
        return self._give(text)

    def flush(self) -> str:
        """What is left when the sequence has ended; an incomplete character comes out as U+FFFD."""
        return self._give(self._decode(self._ids)) if len(self._ids) > self._given else ""

    def _give(self, text: str) -> str:
        piece = text[len(self._context) :]
        self._ids = self._ids[self._given :]
        self._given = len(self._ids)
        self._context = self._decode(self._ids)
        return piece


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise VerificationFailed(f"{path} is not JSON", why=str(error), fix="convert the model again") from error
    if not isinstance(content, dict):
        raise VerificationFailed(f"{path} is not a JSON object", fix="convert the model again")
    return content


def _special_tokens(folder: Path) -> dict[str, str]:
    """Name → text of the special tokens, such as bos_token and eos_token; a template may use any of them."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        for key, value in _read(folder, name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found.setdefault(key, text)
    return found


def _eos_ids(folder: Path, tokenizer: tokenizers.Tokenizer, special: Mapping[str, str]) -> list[int]:
    listed = _read(folder, "generation_config.json").get("eos_token_id")
    if listed is not None:
        return list(listed) if isinstance(listed, list) else [listed]
    found = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return [] if found is None else [found]
