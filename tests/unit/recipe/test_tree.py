"""YAML becomes plain values, each with its place, and nothing the file says is lost or guessed."""

from __future__ import annotations

import pytest
import yaml

from trtx.recipe import tree as tree_module
from trtx.recipe.problems import Mark
from trtx.recipe.tree import MAX_VALUES, Tree, Unreadable, dotted, read_tree


def read(text: str) -> Tree:
    return read_tree("recipe.yaml", text)


def test_scalars_are_read_as_yaml_1_2_would() -> None:
    numbers = "a: 1\nb: -2\nc: 1.5\nd: 2.5e+3\nj: 1_000\nk: .5\n"
    texts = "e: true\nf: False\ng: text\nh: 2024-01-31\ni: '5'\nl: =\nm: ''\n"
    assert read(numbers + texts).data == {
        "a": 1,
        "b": -2,
        "c": 1.5,
        "d": 2500.0,
        "e": True,
        "f": False,
        "g": "text",
        "h": "2024-01-31",
        "i": "5",
        "j": 1000,
        "k": 0.5,
        "l": "=",
        "m": "",
    }


def test_every_value_and_key_has_its_place() -> None:
    places = read("a:\n  b: [x, yy]\n  'c d': |\n    text\n").places
    assert places[("a",)].key == Mark(1, 1, 1)
    assert places[("a", "b")].key == Mark(2, 3, 1)
    assert places[("a", "b", 1)][:2] == (Mark(2, 10, 2), None)
    assert places[("a", "c d")][:2] == (Mark(3, 10, 1), Mark(3, 3, 5))


def test_a_place_that_the_file_lacks_is_the_nearest_around_it() -> None:
    tree = read("a:\n  b: 1\n")
    assert tree.place(("a", "b", "c", 0)) == tree.places[("a", "b")]
    assert tree.place(("z",)) == tree.places[()]


def test_columns_count_characters_and_not_bytes() -> None:
    assert read("é: {ü: 1}\n").places[("é", "ü")].key == Mark(1, 5, 1)


def test_aliases_repeat_a_value_with_the_place_of_the_anchor() -> None:
    tree = read("a: &x {b: 1}\nc: *x\n")
    assert tree.data == {"a": {"b": 1}, "c": {"b": 1}}
    assert tree.places[("c", "b")].value == tree.places[("a", "b")].value
    assert tree.places[("c",)].key == Mark(2, 1, 1)


def test_merge_keys_add_what_is_not_there_and_the_first_source_wins() -> None:
    tree = read("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {x: 3, <<: [*a, *b]}\nd:\n  <<: *a\n")
    assert tree.data["c"] == {"x": 3, "y": 1, "z": 2}
    assert tree.data["d"] == {"x": 1, "y": 1}
    assert tree.places[("c", "x")].value == Mark(3, 8, 1)
    assert tree.places[("c", "z")].value == Mark(2, 17, 1)
    assert tree.problems == []


def test_expansion_is_bounded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(Unreadable, match=f"more than {MAX_VALUES} values"):
        read("\n".join(lines))


def test_expansion_by_empty_merges_is_bounded() -> None:
    lines = ["a0: &a0 {}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)]
    with pytest.raises(Unreadable, match=f"more than {MAX_VALUES} values"):
        read("\n".join(lines))


def test_an_anchor_may_not_merge_itself() -> None:
    with pytest.raises(Unreadable, match="contains itself"):
        read("a: &a {b: {<<: *a}}\n")


@pytest.mark.parametrize("opener", ["[", "{a: ", "- ", "? "])
def test_nesting_beyond_any_stack_is_refused(opener: str) -> None:
    with pytest.raises(Unreadable, match="32 levels"):
        read("a: " + opener * 100_000 if opener in ("[", "{a: ") else opener * 100_000)


def test_nesting_that_a_short_file_reaches_is_refused() -> None:
    with pytest.raises(Unreadable, match="32 levels"):
        read("a: " + "[" * 40 + "]" * 40)


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(Unreadable, match="larger than 1 MiB"):
        read("a: " + "x" * (1 << 20))


def test_the_parser_in_python_finds_the_same_places_as_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: &x {b: 1, c: [yes, ü]}\nd: *x\n'e f': \"g\"\n"
    fast = read(text)
    monkeypatch.setattr(tree_module, "LOADER", yaml.SafeLoader)
    slow = read(text)
    assert (slow.data, slow.problems) == (fast.data, fast.problems)
    assert {path: place[:2] for path, place in slow.places.items()} == {
        path: place[:2] for path, place in fast.places.items()
    }


@pytest.mark.parametrize(
    "text",
    ["a:\n\tb: 1", "a: b: c", "a: [1", "a: 'x", "a: *x", "a: @x", "a: {", "a: 1\n b: 2", "--- 1\n--- 2", "a: \x01"],
)
def test_the_parser_in_python_explains_syntax_errors_too(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "LOADER", yaml.SafeLoader)
    with pytest.raises(Unreadable) as caught:
        read(text)
    assert caught.value.problem.fix


@pytest.mark.parametrize("text", ["---", "--- ", "# nothing\n---\n", ""])
def test_a_file_without_a_value_is_empty(text: str) -> None:
    with pytest.raises(Unreadable) as refused:
        read(text)
    assert (refused.value.problem.what, refused.value.problem.mark) == ("the file is empty", Mark(1, 1))


@pytest.mark.parametrize("text", ["a: 1\nb", "a: [1", "a: 'x", "a:\n  -"])
def test_what_is_missing_at_the_end_is_reported_in_a_line_that_is_there(text: str) -> None:
    try:
        (problem,) = read(text).problems
    except Unreadable as error:
        problem = error.problem
    lines = text.split("\n")
    assert (problem.line, problem.source) == (len(lines), lines[-1])
    assert problem.col <= len(lines[-1]) + 1


def test_lines_are_counted_as_yaml_counts_them() -> None:
    with pytest.raises(Unreadable) as refused:
        read("a: 1\rb: 2\r\nc: 3\nd: \x01\n")
    assert refused.value.problem.mark == Mark(4, 4)


def test_what_a_problem_says_first_is_one_line_without_control_characters() -> None:
    (problem,) = read('"a\\nb\\e[1m": 1\n"a\\nb\\e[1m": 2\n').problems
    head = problem.render().split("\n")[0]
    assert head == "recipe.yaml:2:1: error: the key 'a b [1m' is given twice"


def test_paths_are_written_with_dots_and_brackets() -> None:
    assert dotted(("targets", "h100", "quantization", 0)) == "targets.h100.quantization[0]"
    assert dotted(()) == ""
