"""Which digest a tag names, asked of a registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.registry import (
    Registry,
    digest_of,
    has_real_registry,
    make_index,
    push,
    run_real_registry,
    serve_registry,
)

from trtx.errors import EnvironmentProblem, TrtxError, UsageProblem, VerificationFailed
from trtx.plan.registry import Image, ask_digest, split_reference

MANIFEST = make_index("base")


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serve_registry() as running:
        running.manifests["base:1.0"] = MANIFEST
        yield running


def refusal(registry: Registry, reference: str = "base:1.0") -> TrtxError:
    with pytest.raises(TrtxError) as caught:
        ask_digest(f"{registry.address}/{reference}")
    return caught.value


@pytest.mark.parametrize(
    ("reference", "image"),
    [
        ("python", Image("registry-1.docker.io", "library/python", "latest")),
        ("python:3.12", Image("registry-1.docker.io", "library/python", "3.12")),
        ("docker.io/library/python:3.12", Image("registry-1.docker.io", "library/python", "3.12")),
        ("owner/name", Image("registry-1.docker.io", "owner/name", "latest")),
        ("nvcr.io/nvidia/cuda:13.0.1-base", Image("nvcr.io", "nvidia/cuda", "13.0.1-base")),
        ("localhost/name:1", Image("localhost", "name", "1")),
        ("registry:5000/a/b/c:1", Image("registry:5000", "a/b/c", "1")),
    ],
)
def test_references_are_read_as_docker_reads_them(reference: str, image: Image) -> None:
    assert split_reference(reference) == image


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost:5000", True), ("127.0.0.1", True), ("127.0.0.1.example.org:5000", False), ("nvcr.io", False)],
)
def test_only_registries_of_this_machine_are_spoken_to_without_encryption(host: str, loopback: bool) -> None:
    assert Image(host, "a", "b").is_loopback == loopback


def test_the_digest_of_a_tag_takes_one_request(registry: Registry) -> None:
    assert ask_digest(f"{registry.address}/base:1.0") == digest_of(MANIFEST)
    assert registry.requests == ["HEAD /v2/base/manifests/1.0"]


def test_a_token_that_everybody_gets_is_fetched(registry: Registry) -> None:
    registry.wants_token = True
    assert ask_digest(f"{registry.address}/base:1.0") == digest_of(MANIFEST)
    assert [line.split()[1] for line in registry.requests].count("/token") == 1


def test_an_image_for_those_who_log_in_is_an_environment_problem(registry: Registry) -> None:
    registry.wants_token = registry.refuses_token = True
    error = refusal(registry)
    assert isinstance(error, EnvironmentProblem)
    assert "name:tag@sha256:" in error.fix


@pytest.mark.parametrize(("states", "head"), [(None, True), ("", False), ("sha1:abc", True)])
def test_a_registry_that_does_not_say_is_asked_for_the_manifest(
    registry: Registry, states: str | None, head: bool
) -> None:
    registry.states_digest, registry.knows_head = states, head
    if states == "sha1:abc":
        assert "contradicts itself" in refusal(registry).what
    else:
        assert ask_digest(f"{registry.address}/base:1.0") == digest_of(MANIFEST)


def test_a_registry_that_contradicts_itself_is_not_believed(registry: Registry) -> None:
    registry.states_digest, registry.knows_head = digest_of(b"other"), False
    assert isinstance(refusal(registry), VerificationFailed)


def test_an_image_that_is_not_there_is_a_usage_problem(registry: Registry) -> None:
    error = refusal(registry, "base:2.0")
    assert isinstance(error, UsageProblem)
    assert "package.base" in error.fix


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_registry_in_trouble_is_an_environment_problem(registry: Registry, status: int) -> None:
    registry.status = status
    assert isinstance(refusal(registry), EnvironmentProblem)


def test_a_registry_that_is_not_there_is_an_environment_problem() -> None:
    with pytest.raises(EnvironmentProblem, match=r"127\.0\.0\.1:9 does not say"):
        ask_digest("127.0.0.1:9/base:1.0")


def test_dockers_own_registry_gives_the_digest_of_an_index(tmp_path: Path, registry: Registry) -> None:
    if not has_real_registry():  # Then the server above stands for it.
        assert ask_digest(f"{registry.address}/base:1.0") == digest_of(MANIFEST)
        return
    with run_real_registry(tmp_path) as address:
        push(address, "team/base", "1.0", MANIFEST)
        assert ask_digest(f"{address}/team/base:1.0") == digest_of(MANIFEST)
        with pytest.raises(UsageProblem):
            ask_digest(f"{address}/team/base:2.0")
