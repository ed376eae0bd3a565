"""A container of a release, as far as a step can tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.trtllm_specs import write_model
from support.trtllm_standins import activate, install
from support.trtllm_workshop import Workshop


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny-llama") / "model")


@pytest.fixture
def open_workshop(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Workshop]:
    """Enter a container of a release, as far as a process can tell."""

    def enter(release: str, **choices: object) -> Workshop:
        standins = install(tmp_path / "container", release, **choices)  # type: ignore[arg-type]
        activate(standins, monkeypatch)
        return Workshop(tmp_path, standins, tiny_model)

    return enter
