"""Tests that need a GPU of an architecture that trtx compiles for; tests/gpu/run.sh runs them on such a machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.gpu_flow import apply


def has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skipped = pytest.mark.skip(reason="torch sees no GPU")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not has_gpu():
                item.add_marker(skipped)


@pytest.fixture(scope="session")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the small recipe of support/gpu_flow.py was applied."""
    folder = tmp_path_factory.mktemp("flow")
    apply(folder)
    return folder
