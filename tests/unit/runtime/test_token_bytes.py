from __future__ import annotations

import tokenizers
from support.engines import BOS_ID, raw_tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from trtx.runtime.token_bytes import TokenBytes


def test_tokens_of_byte_level_vocabularies_are_every_byte_once() -> None:
    raw = raw_tokenizer()
    token_bytes = TokenBytes(raw)
    assert sorted(token_bytes(i) for i in range(256)) == [bytes([byte]) for byte in range(256)]
    for text in ("naïve café", "\n\t🙂", "日本"):
        ids = raw.encode(text, add_special_tokens=False).ids
        assert b"".join(map(token_bytes, ids)) == text.encode()
    assert token_bytes(BOS_ID) == b"<s>"
    assert token_bytes(10_000) == b""


def sentence_piece() -> tokenizers.Tokenizer:
    tokens = ["<unk>", "▁a", "b", "é", "<0x0A>", "<0xE6>", "▁"]
    tokenizer = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


def test_tokens_of_sentence_piece_keep_their_space_and_raw_bytes() -> None:
    token_bytes = TokenBytes(sentence_piece())
    assert [token_bytes(i) for i in (1, 2, 3, 4, 5, 6, 7)] == [b" a", b"b", "é".encode(), b"\n", b"\xe6", b" ", b"</s>"]


def test_other_decoders_say_what_a_token_is() -> None:
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"one": 0, "two": 1}, unk_token="one"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert TokenBytes(tokenizer)(1) == b"two"
    tokenizer.decoder = decoders.WordPiece()
    assert TokenBytes(tokenizer)(1) == b"two"
