from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import BOS_ID, EOS_ID, make_tokenizer, raw_tokenizer, write_tokenizer_folder

from trtx.errors import VerificationFailed
from trtx.runtime.request import RequestRefused
from trtx.runtime.tokenizer import MAX_HELD_TOKENS, TextStream, Tokenizer

TOKENIZER = make_tokenizer()


def byte_ids(data: bytes) -> list[int]:
    """Ids of bytes that need not be text, by the alphabet of the byte-level tokenizer."""
    printable = {i for r in (range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100)) for i in r}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)}
    vocabulary = raw_tokenizer().get_vocab()
    return [vocabulary[letters[byte]] for byte in data]


BYTE_IDS = byte_ids(bytes(range(256)))


def stream_text(ids: list[int]) -> tuple[str, list[str]]:
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(token) for token in ids] + [stream.flush()]
    return "".join(pieces), pieces


def test_encoding_adds_the_special_tokens_that_the_file_names_and_decoding_leaves_them_out() -> None:
    ids = TOKENIZER.encode("hi")
    assert (ids[0], len(ids)) == (BOS_ID, 3)
    assert TOKENIZER.decode([*ids, EOS_ID]) == "hi"
    assert TOKENIZER.encode("hi", add_special_tokens=False) == ids[1:]


@given(st.text(max_size=30))
def test_streamed_text_is_the_whole_text_and_no_piece_splits_a_character(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    streamed, pieces = stream_text(ids)
    assert streamed == text
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in pieces)


@given(st.binary(max_size=MAX_HELD_TOKENS - 1))
def test_bytes_that_are_no_text_come_out_as_they_decode_as_a_whole(data: bytes) -> None:
    ids = [BYTE_IDS[byte] for byte in data]
    assert stream_text(ids)[0] == TOKENIZER.decode(ids)


def test_a_character_comes_out_with_its_last_byte() -> None:
    stream = TextStream(TOKENIZER)
    assert [stream.push(token) for token in byte_ids("a€b".encode())] == ["a", "", "", "€", "b"]
    assert stream.flush() == ""


def test_a_sequence_that_ends_inside_a_character_ends_with_a_replacement() -> None:
    stream = TextStream(TOKENIZER)
    assert [stream.push(token) for token in byte_ids("€".encode()[:2])] == ["", ""]
    assert stream.flush() == "\ufffd"


def test_an_endless_run_of_broken_bytes_is_not_held_for_ever() -> None:
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(BYTE_IDS[0xFF]) for _ in range(MAX_HELD_TOKENS)]
    assert pieces[-1] == "\ufffd" * MAX_HELD_TOKENS


def test_a_model_folder_gives_tokens_end_ids_and_chat_template(tmp_path: Path) -> None:
    write_tokenizer_folder(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_ids == {EOS_ID}
    assert tokenizer.special_ids == {BOS_ID, EOS_ID}
    chat = tokenizer.render_chat([{"role": "user", "content": "hi"}])
    # The template writes <s> itself; the tokenizer does not add a second one.
    assert chat.count(BOS_ID) == 1
    assert tokenizer.decode(chat) == "[user]hi[assistant]"


@pytest.mark.parametrize(
    ("generation_config", "tokenizer_config", "expected"),
    [
        ({"eos_token_id": [3, 257]}, {}, {3, 257}),
        ({"eos_token_id": 5}, {"eos_token": "</s>"}, {5}),
        ({}, {"eos_token": {"content": "</s>", "special": True}}, {257}),
        ({}, {"eos_token": "<nowhere>"}, set()),
        ({}, {}, set()),
    ],
)
def test_end_ids_come_from_the_generation_config_and_else_from_the_eos_token(
    tmp_path: Path, generation_config: dict[str, object], tokenizer_config: dict[str, object], expected: set[int]
) -> None:
    raw_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation_config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    assert Tokenizer.load(tmp_path).eos_ids == expected


def test_limits_of_training_do_not_cut_or_pad_prompts(tmp_path: Path) -> None:
    raw = raw_tokenizer()
    raw.enable_truncation(4)
    raw.enable_padding(length=8)
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert len(tokenizer.encode("abcdefgh")) == 9
    assert len(tokenizer.encode("a")) == 2


def test_a_missing_or_damaged_tokenizer_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(VerificationFailed, match="is not a tokenizer"):
        Tokenizer.load(tmp_path)
    raw_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(VerificationFailed, match=r"generation_config\.json is not JSON"):
        Tokenizer.load(tmp_path)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(VerificationFailed, match="is not a JSON object"):
        Tokenizer.load(tmp_path)


def test_a_model_without_a_chat_template_refuses_chats() -> None:
    with pytest.raises(RequestRefused, match="no chat template"):
        make_tokenizer(chat_template=None).render_chat([{"role": "user", "content": "hi"}])
