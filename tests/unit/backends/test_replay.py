"""What a build measured: written down for a lock, read back, and put where the compiler looks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trtx.backends.inductor.choices import Choices, ProgramChoices
from trtx.backends.inductor.kernel_configs import describe_replay, read_configs, write_configs
from trtx.backends.inductor.replay import Replay, keep_measured, read_replay
from trtx.errors import UsageProblem
from trtx.plan.lock import LockedBuild

PRODUCTS = ("bf16 16 4096 1024 00ff", "e4m3 128 512 1024 1234")
CONFIG = {"XBLOCK": 128, "num_warps": 4, "num_stages": 1, "configs_hash": "abc", "found_by_coordesc": False}
REPLAY = Replay(PRODUCTS, {"step": {"kz/ckzdigest": CONFIG}})


def test_what_was_measured_comes_back_from_a_lock_as_it_was() -> None:
    program = ProgramChoices(vector_isa="", kernels=3, vector_kernels=0, settings={}, configs=REPLAY.configs["step"])
    summary = json.loads(json.dumps(Choices(programs={"step": program}).summarize(PRODUCTS)))
    locked = LockedBuild(arch="sm_90", key="a" * 64, choices=summary)
    assert set(keep_measured(locked.choices)) == {"products", "step kernels"}
    assert read_replay(keep_measured(locked.choices)) == REPLAY


def test_a_build_that_measured_nothing_has_nothing_to_repeat() -> None:
    program = ProgramChoices(vector_isa="AVX2", kernels=3, vector_kernels=0, settings={"max_autotune": False})
    assert keep_measured(Choices(programs={"step": program}).summarize()) == {}
    assert read_replay({}) == Replay()


@pytest.mark.parametrize(
    "choices",
    [
        {"products": {"bf16 16 4096": "00ff"}},
        {"products": {"bf16 16 4096 1024": "not hexadecimal"}},
        {"products": "bf16"},
        {"step kernels": {"../../outside": "{}"}},
        {"step kernels": {"kz/ckz": "[]"}},
        {"step kernels": {"kz/ckz": "{"}},
        {"step kernels": {"kz/ckz": 3}},
    ],
)
def test_choices_that_no_build_wrote_are_refused(choices: dict[str, Any]) -> None:
    with pytest.raises(UsageProblem, match="cannot be read"):
        read_replay(choices)


def make_kernel(work: Path, name: str, config: dict[str, Any]) -> None:
    """What inductor leaves of a kernel that it tuned."""
    path = work / f"{name}.best_config"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    (path.parent / "ckernel.py").write_text("")


def test_configurations_are_read_without_times_and_lie_in_the_next_folder_where_they_lay_in_the_first(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    make_kernel(first, "kz/ckzdigest", CONFIG | {"time_taken_ms": 12, "triton_cache_hash": "of-this-machine"})
    found = read_configs(first)
    assert found == {"kz/ckzdigest": CONFIG}
    write_configs(second, found)
    assert json.loads((second / "kz/ckzdigest.best_config").read_bytes()) == CONFIG
    # Nothing was compiled there: what was put there is no choice of that program.
    assert read_configs(second) == {}
    make_kernel(second, "kz/ckzdigest", CONFIG)
    assert read_configs(second) == found


def test_inductor_itself_takes_a_configuration_that_was_put_back(tmp_path: Path) -> None:
    """Against torch: the file's name, its place and its content are its own."""
    cache = pytest.importorskip("torch._inductor.runtime.autotune_cache")
    from types import SimpleNamespace

    def open_cache(work: Path) -> Any:
        return cache.AutotuneCache.create({"autotune_local_cache": True}, str(work / "kz" / "ckzsource.py"), "hash")

    configs = [SimpleNamespace(kwargs={"XBLOCK": size}, num_warps=4, num_stages=1) for size in (64, 128)]
    first, second = tmp_path / "first", tmp_path / "second"
    open_cache(first).save(configs[1], 5_000_000)
    (first / "kz" / "ckzsource.py").write_text("")
    assert open_cache(second).read_best({}, configs) is None
    write_configs(second, read_configs(first))
    assert open_cache(second).read_best({}, configs) is configs[1]


def test_a_log_says_what_was_repeated_and_what_was_measured_after_all() -> None:
    other = {**CONFIG, "XBLOCK": 64}
    assert describe_replay({}, {}) == ""
    assert describe_replay({"a": CONFIG}, {"a": CONFIG}) == "replayed 1 of 1 kernel configurations, measured 0"
    assert describe_replay({"a": CONFIG}, {"a": other, "b": CONFIG}) == (
        "replayed 0 of 2 kernel configurations, measured 2"
    )
