"""Names of container images."""

from __future__ import annotations

import pytest

from trtx.backends.images import MOVING_TAGS, check_base, make_image
from trtx.errors import UsageProblem
from trtx.recipe import checks

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    "reference",
    [
        "python:3.12-slim",
        "docker.io/library/python:3.12-slim-bookworm",
        "nvcr.io/nvidia/cuda:13.0.1-runtime-ubuntu24.04",
        f"python@{DIGEST}",
        f"localhost:5000/a/b__c:1.0@{DIGEST}",
        f"python:latest@{DIGEST}",
    ],
)
def test_a_base_with_a_tag_that_stays_or_a_digest_is_taken_as_it_is(reference: str) -> None:
    assert check_base(reference) == reference


@pytest.mark.parametrize("reference", ["python", "python:latest", "localhost:5000/python", "ghcr.io/x/y:main"])
def test_a_base_that_moves_is_refused(reference: str) -> None:
    with pytest.raises(UsageProblem, match="is not pinned"):
        check_base(reference)


def test_the_check_of_recipes_refuses_the_same_tags() -> None:
    assert checks.MOVING_TAGS == MOVING_TAGS


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "Python:3.12",
        "python:3.12 AS evil",
        "python:3.12\nRUN curl evil",
        "python:3.12\n",
        "$BASE:1",
        "python:3.12@sha256:abc",
        "a" * 300 + ":1",
        "-x:1",
        "python:3.12\u2028RUN",
    ],
)
def test_a_base_that_is_no_image_name_is_refused_and_shown(reference: str) -> None:
    with pytest.raises(UsageProblem, match="not the name of a container image"):
        check_base(reference)


def test_the_image_is_tagged_with_its_cell_and_version() -> None:
    assert make_image("registry.example.com/llm/llama", "x", "h100/fp8", "0123456789ab") == (
        "registry.example.com/llm/llama:h100-fp8-0123456789ab"
    )


def test_without_a_name_the_recipe_names_the_image() -> None:
    assert make_image(None, "llama-3.1-8b-chat", "cpu/none", "0123") == "trtx/llama-3-1-8b-chat:cpu-none-0123"


@pytest.mark.parametrize("name", ["", "../../etc", "名前", "A B\nC"])
def test_any_recipe_name_makes_a_well_formed_image_name(name: str) -> None:
    assert check_base(make_image(None, name, name, "0123"))


@pytest.mark.parametrize("name", ["registry.example.com/a:1.0", f"registry.example.com/a@{DIGEST}"])
def test_an_image_name_with_its_own_tag_is_refused(name: str) -> None:
    with pytest.raises(UsageProblem, match="has a tag already") as caught:
        make_image(name, "x", "cpu/none", "0123")
    assert "registry.example.com/a" in caught.value.fix
