from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trtx.runtime.stops import StopStrings


def feed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    watch = StopStrings(stops)
    text = ""
    for piece in pieces:
        given_out, stopped = watch.push(piece)
        text += given_out
        if stopped:
            return text, True
    return text + watch.flush(), False


def test_text_ends_before_the_stop_string_even_when_it_comes_in_pieces() -> None:
    assert feed(["END"], ["one E", "N", "D two"]) == ("one ", True)


def test_the_first_stop_string_in_the_text_counts_not_the_first_in_the_list() -> None:
    assert feed(["b", "a"], ["xxab"]) == ("xx", True)


def test_a_beginning_that_does_not_become_a_stop_string_is_given_out_later() -> None:
    watch = StopStrings(["END"])
    assert watch.push("one EN") == ("one ", None)
    assert watch.push("TER") == ("ENTER", None)
    assert watch.push(" E") == (" ", None)
    assert watch.flush() == "E"


def test_a_beginning_within_a_beginning_is_kept() -> None:
    assert feed(["aab"], ["a", "a", "a", "b"]) == ("a", True)


@given(stops=st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), pieces=st.lists(st.text("abc", max_size=4)))
def test_pieces_give_what_the_whole_text_cut_at_the_first_stop_gives(stops: list[str], pieces: list[str]) -> None:
    text, stopped = feed(stops, pieces)
    whole = "".join(pieces)
    # The stop string whose end comes first in time is met first; of several that end in one piece, the leftmost counts.
    cut = min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))
    assert stopped == any(stop in whole for stop in stops)
    assert whole.startswith(text)
    assert len(text) >= cut
    assert not any(stop in text for stop in stops)
