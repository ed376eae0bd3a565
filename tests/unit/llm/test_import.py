from __future__ import annotations

import subprocess
import sys

import pytest

import trtx


def loaded_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_trtx_loads_nothing_of_it() -> None:
    assert not {name for name in loaded_after("import trtx") if name.startswith("trtx.")}


def test_sampling_params_need_neither_torch_nor_numpy() -> None:
    assert not loaded_after("from trtx import SamplingParams") & {"torch", "numpy"}


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        trtx.LMM  # noqa: B018
