"""Values keep their meaning in every language a template is written in, whatever they contain."""

from __future__ import annotations

import json
import subprocess

import jinja2
import pytest
import yaml

from trtx.render import (
    environment,
    quote_comment,
    quote_dockerfile,
    quote_json,
    quote_pbtxt,
    quote_shell,
    quote_yaml,
    render,
)
from trtx.runners.slurm.script import quote_sbatch

NASTY = [
    "",
    "plain",
    "a b",
    "it's",
    '"',
    "$(touch x)",
    "`id`",
    "a\nb",
    "#",
    "é: {x}",
    "\\",
    "${HOME}",
    "--flag",
    "'; rm -rf /; '",
]


@pytest.mark.parametrize("value", NASTY)
def test_a_shell_gets_one_word(value: str) -> None:
    answer = subprocess.run(["/bin/sh", "-c", f"printf %s {quote_shell(value)}"], capture_output=True, check=True)
    assert answer.stdout.decode() == value


def test_a_shell_gets_the_words_of_a_list() -> None:
    assert quote_shell(["a b", "c"]) == "'a b' c"
    assert quote_shell(8000) == "8000"


@pytest.mark.parametrize("value", [*NASTY, ["a", 1, None], {"k": "v: #"}, True, "no", "2.0"])
def test_yaml_and_json_read_back_the_value(value: object) -> None:
    assert yaml.safe_load(f"a: {quote_yaml(value)}  # comment") == {"a": value}
    assert json.loads(quote_json(value)) == value
    assert "\n" not in quote_yaml(value)


@pytest.mark.parametrize(("value", "quoted"), [("a b", '"a b"'), ('x"$HOME\\', '"x\\"\\$HOME\\\\"'), (1, '"1"')])
def test_a_dockerfile_gets_one_word(value: object, quoted: str) -> None:
    assert quote_dockerfile(value) == quoted


@pytest.mark.parametrize("value", ["a\nRUN evil", "a\tb", "\x00"])
def test_a_dockerfile_word_cannot_hold_line_breaks(value: str) -> None:
    with pytest.raises(ValueError, match="control characters"):
        quote_dockerfile(value)


@pytest.mark.parametrize("value", ["a\nRUN evil", "a\r\nb", "a\u2028b", "a\x85b"])
def test_a_comment_stays_on_its_line(value: str) -> None:
    assert len(quote_comment(value).splitlines()) == 1


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'name' is undefined"):
        render("recipe/recipe.yaml.j2", schema="x")


def test_a_value_that_is_no_data_is_an_error() -> None:
    with pytest.raises(TypeError, match="cannot write object as JSON"):
        quote_yaml({"a": object()})


def test_every_template_can_be_parsed() -> None:
    names = environment().list_templates(filter_func=lambda name: name.endswith(".j2"))
    assert "recipe/recipe.yaml.j2" in names
    jinja = environment()
    jinja.filters.setdefault("sbatch", quote_sbatch)  # of the runner, which alone renders its script
    for name in names:
        jinja.get_template(name)


def test_a_name_cannot_break_out_of_the_recipe_template() -> None:
    text = render("recipe/recipe.yaml.j2", name='x"\nevil: 1', schema="s.json")
    assert yaml.safe_load(text)["name"] == 'x"\nevil: 1'


def test_strings_of_protobuf_keep_quotes_and_other_alphabets() -> None:
    assert quote_pbtxt('a"b\\c') == '"a\\042b\\134c"'
    assert quote_pbtxt("é\n") == '"\\303\\251\\012"'
