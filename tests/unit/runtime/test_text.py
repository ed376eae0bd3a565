from __future__ import annotations

import pytest
from support.engines import BOS_ID, EOS_ID, make_tokenizer

from trtx.runtime.request import Request, SamplingParams
from trtx.runtime.text import OutputText

TOKENIZER = make_tokenizer()


def read(text: str, *more: int, **params: object) -> tuple[str, int | str | None, int]:
    """The text that comes out for a text and further token ids, the stop string met, and how many tokens it took."""
    made = SamplingParams(max_tokens=100, **params)  # type: ignore[arg-type]
    request = Request(0, [1], made, frozenset([EOS_ID, *made.stop_token_ids]), 0.0)
    reader, out = OutputText(TOKENIZER, request), ""
    for token in [*TOKENIZER.encode(text, add_special_tokens=False), *more]:
        request.append(token)
        piece, stop = reader.push(token)
        out += piece
        if stop is not None:
            return out, stop, len(request.output_ids)
        if request.finished:
            return out, request.stop_reason, len(request.output_ids)
    return out, None, len(request.output_ids)


def test_a_stop_string_is_cut_off_or_kept() -> None:
    assert read("one END two", stop="END") == ("one ", "END", 7)
    assert read("one END two", stop="END", include_stop_str_in_output=True) == ("one END", "END", 7)


def test_stop_strings_are_looked_for_after_min_tokens() -> None:
    assert read("a.b.c.d", stop=".", min_tokens=4) == ("a.b.c", ".", 6)
    assert read("a.b.c.d", stop=".", min_tokens=3)[0] == "a.b"


def test_the_token_that_ends_is_shown_where_stop_strings_are() -> None:
    stop = TOKENIZER.encode("!", add_special_tokens=False)
    assert read("ab!c", stop_token_ids=stop) == ("ab", stop[0], 3)
    assert read("ab!c", stop_token_ids=stop, include_stop_str_in_output=True) == ("ab!", stop[0], 3)
    assert read("ab", EOS_ID, include_stop_str_in_output=True) == ("ab", None, 3)


@pytest.mark.parametrize(("skip", "expected"), [(True, "ab"), (False, "a<s>b")])
def test_special_tokens_are_left_out_unless_asked_for(skip: bool, expected: str) -> None:
    b = TOKENIZER.encode("b", add_special_tokens=False)
    assert read("a", BOS_ID, *b, skip_special_tokens=skip)[0] == expected


def test_without_detokenize_there_is_no_text() -> None:
    assert read("ab", EOS_ID, detokenize=False) == ("", None, 3)


def test_text_held_back_comes_with_the_last_token() -> None:
    assert read("abEN", EOS_ID, stop="END") == ("abEN", None, 5)
