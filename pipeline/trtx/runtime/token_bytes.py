"""The bytes that single tokens stand for. Imports no torch."""

from __future__ import annotations

import json
import re
from typing import Any

import tokenizers

# How a byte that is no text is written in a vocabulary of SentencePiece.
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# SentencePiece writes a space like this.
SPACE = "\u2581"


class TokenBytes:
    """From token ids to bytes, by the way in which the tokenizer's decoder reads its vocabulary."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added: dict[int, str] = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items()}
        kinds = _decoder_kinds(tokenizer)
        self._letters = _byte_letters() if "ByteLevel" in kinds else None
        self._pieces = bool(kinds & {"ByteFallback", "Metaspace"})

    def __call__(self, token_id: int) -> bytes:
        """The bytes of one token; none for an id that the tokenizer does not have."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._letters is not None:
            return b"".join(self._letters.get(letter, letter.encode()) for letter in token)
        if self._pieces:
            byte = BYTE_TOKEN.fullmatch(token)
            return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text.encode()


def _decoder_kinds(tokenizer: tokenizers.Tokenizer) -> set[str]:
    """Types of the decoder and of those that it is made of."""
    if tokenizer.decoder is None:
        return set()
    state: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    return {part["type"] for part in (state, *state.get("decoders", ()))}


def _byte_letters() -> dict[str, bytes]:
    """Byte-level BPE (Radford et al. 2019) writes printable Latin-1 as itself and all other bytes from U+0100 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in plain]
    letters = {chr(byte): bytes([byte]) for byte in plain}
    return letters | {chr(0x100 + place): bytes([byte]) for place, byte in enumerate(others)}
