from __future__ import annotations

from pathlib import Path

import pytest
from support.engines import make_card

from trtx.errors import EnvironmentProblem
from trtx.runtime import memory
from trtx.runtime.memory import available_bytes, block_bytes, plan_num_blocks

CARD = make_card(max_batch_size=4, max_seq_len=64, tokens_per_block=4)
# keys and values × 2 layers × 4 tokens × 1 head × 4 channels × 4 bytes
BLOCK = 2 * 2 * 4 * 1 * 4 * 4


def test_a_block_holds_keys_and_values_of_every_layer() -> None:
    assert block_bytes(CARD) == BLOCK


@pytest.mark.parametrize(("dtype", "item"), [("bfloat16", 2), ("float8_e4m3fn", 1), ("int8", 1)])
def test_a_block_of_fewer_bits_is_smaller(dtype: str, item: int) -> None:
    small = CARD.model_copy(update={"kv_cache": CARD.kv_cache.model_copy(update={"dtype": dtype})})
    assert block_bytes(small) == BLOCK * item // 4


def test_the_size_asked_for_is_filled_with_blocks() -> None:
    blocks = plan_num_blocks(CARD, kv_cache_bytes=20 * BLOCK + 1, memory_fraction=0.9, weights_bytes=10**12)
    assert blocks == 20


def test_no_more_blocks_are_taken_than_a_full_batch_of_the_longest_sequences_can_use() -> None:
    blocks = plan_num_blocks(CARD, kv_cache_bytes=10**9, memory_fraction=0.9, weights_bytes=0)
    assert blocks == 4 * 16 + 1


def test_without_a_size_the_cache_takes_a_fraction_of_what_is_available_less_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 100 * BLOCK)
    blocks = plan_num_blocks(CARD, kv_cache_bytes=None, memory_fraction=0.5, weights_bytes=20 * BLOCK)
    assert blocks == 30


@pytest.mark.parametrize("kv_cache_bytes", [16 * BLOCK, None])
def test_a_cache_too_small_for_one_sequence_is_refused_with_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, kv_cache_bytes: int | None
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 40 * BLOCK)
    with pytest.raises(EnvironmentProblem, match="max_seq_len 64 needs") as problem:
        plan_num_blocks(CARD, kv_cache_bytes=kv_cache_bytes, memory_fraction=0.5, weights_bytes=10 * BLOCK)
    # 16 or 10 blocks fit, one of them is the null block.
    assert f"max_seq_len of at most {60 if kv_cache_bytes else 36}" in problem.value.fix


def test_weights_that_leave_no_memory_are_named_instead_of_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 40 * BLOCK)
    with pytest.raises(EnvironmentProblem, match=r"would have 0\.0 MiB") as problem:
        plan_num_blocks(CARD, kv_cache_bytes=None, memory_fraction=0.5, weights_bytes=30 * BLOCK)
    assert "quantizing them" in problem.value.fix
    assert "max_seq_len" not in problem.value.fix


def test_available_memory_is_positive_and_below_the_total() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < available_bytes() < total


@pytest.mark.parametrize(
    ("line", "limit", "used"),
    [("0::/a/b", "memory.max", "memory.current"), ("3:memory:/a/b", "memory.limit_in_bytes", "memory.usage_in_bytes")],
)
def test_every_cgroup_around_the_process_bounds_its_memory(tmp_path: Path, line: str, limit: str, used: str) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    inner = cgroup / "a" / "b"
    inner.mkdir(parents=True)
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(line + "\n")
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 2 kB\n")
    assert available_bytes(proc, cgroup) == 2048
    (inner / limit).write_text("5000\n")
    (inner / used).write_text("10\n")
    assert available_bytes(proc, cgroup) == 2048
    (inner.parent / limit).write_text("1000\n")
    (inner.parent / used).write_text("400\n")
    assert available_bytes(proc, cgroup) == 600
    (inner.parent / used).write_text("1400\n")
    assert available_bytes(proc, cgroup) == 0


def test_a_kernel_that_does_not_tell_is_a_problem_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\n")
    with pytest.raises(EnvironmentProblem, match="how much memory"):
        available_bytes(tmp_path, tmp_path)
