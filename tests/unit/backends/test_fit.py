from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
from support.engines import make_card as make_any_card

from trtx.errors import EnvironmentProblem
from trtx.hardware.gpus import ISAS
from trtx.runtime.card import CompiledFor, EngineCard
from trtx.runtime.fit import Machine, check_machine, read_machine

V3 = ISAS["x86-64-v3"].flags
HERE = Machine("x86_64", V3, "2.13.0+cpu")


def make_card(**compiled_for: Any) -> EngineCard:
    facts = {"device": "cpu", "arch": "x86-64-v3", "isa": "AVX2", "cpu_flags": tuple(sorted(V3)), **compiled_for}
    changes = {"compiled_for": CompiledFor(**facts), "toolchain": {"torch": "2.13.0+cpu"}}
    return make_any_card().model_copy(update=changes)


@pytest.mark.parametrize("torch", ["2.13.0+cpu", "2.13.0", "2.13.1+cu130"])
def test_an_engine_runs_where_its_instructions_and_its_torch_are(torch: str) -> None:
    check_machine(make_card(), Machine("x86_64", V3 | {"avx512f"}, torch))


@pytest.mark.parametrize(
    ("card", "machine", "sentence"),
    [
        (
            make_card(device="cuda", arch="sm_90", isa="", cpu_flags=()),
            HERE,
            "this engine was compiled for sm_90 GPUs and this machine has none",
        ),
        (
            make_card(),
            Machine("aarch64", frozenset({"asimd"}), "2.13.0"),
            "this engine was compiled for x86_64 processors and this one is aarch64",
        ),
        (
            make_card(),
            Machine("x86_64", V3 - {"fma", "avx2"}, "2.13.0"),
            "this engine was compiled for x86-64-v3 and this processor has no avx2 and no fma",
        ),
        (
            make_card(),
            Machine("x86_64", V3, "2.14.0"),
            "this engine was compiled with torch 2.13.0+cpu and this machine has 2.14.0",
        ),
        (
            make_card(),
            Machine("x86_64", V3, None),
            "this engine was compiled with torch 2.13.0+cpu and torch is not installed here",
        ),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_in_one_sentence(
    card: EngineCard, machine: Machine, sentence: str
) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        check_machine(card, machine)
    assert caught.value.what == sentence
    assert caught.value.fix


def test_this_machine_is_read_without_importing_torch() -> None:
    machine = read_machine()
    assert machine.torch == version("torch")
    assert machine.cpu_flags
