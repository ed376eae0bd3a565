"""Every verb has `-o json`, so that no tool ever has to read a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup

from trtx.cli.app import make_app


def verbs(command: TyperGroup, name: str = "") -> Iterator[tuple[str, Any]]:
    context = typer.Context(command)
    for word in command.list_commands(context):
        inner = command.get_command(context, word)
        if isinstance(inner, TyperGroup):
            yield from verbs(inner, f"{name}{word} ")
        else:
            yield f"{name}{word}", inner


VERBS = dict(verbs(typer.main.get_group(make_app())))


def test_there_are_verbs() -> None:
    assert {"init", "validate", "resolve", "lock", "plan", "apply", "why", "diff", "migrate"} <= VERBS.keys()
    assert {"cache ls", "cache prune", "cache export"} <= VERBS.keys()


@pytest.mark.parametrize("name", sorted(VERBS))
def test_a_verb_can_print_json(name: str) -> None:
    options = {option for parameter in VERBS[name].params for option in parameter.opts}
    assert {"-o", "--output"} <= options


@pytest.mark.parametrize("name", sorted(VERBS))
def test_the_help_of_a_verb_and_of_all_its_options_teaches(name: str) -> None:
    verb = VERBS[name]
    assert len(verb.help or "") > 20
    assert not [parameter.name for parameter in verb.params if not parameter.help]
