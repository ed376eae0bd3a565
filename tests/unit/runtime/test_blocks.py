from __future__ import annotations

import pytest

from trtx.runtime.blocks import NULL_BLOCK, BlockPool


def test_every_block_but_the_null_block_can_be_taken_once() -> None:
    pool = BlockPool(5)
    taken = pool.allocate(4)
    assert sorted(taken) == [1, 2, 3, 4]
    assert NULL_BLOCK not in taken
    assert (pool.num_free, pool.num_used, pool.capacity) == (0, 4, 4)


def test_a_freed_block_is_the_next_one_given_out() -> None:
    pool = BlockPool(9)
    taken = pool.allocate(3)
    pool.free([taken[1]])
    assert pool.allocate(1) == [taken[1]]


def test_taking_more_than_is_free_is_an_error_and_takes_nothing() -> None:
    pool = BlockPool(4)
    with pytest.raises(ValueError, match="4 blocks asked for, 3 free"):
        pool.allocate(4)
    assert pool.num_free == 3


def test_a_shared_block_is_free_only_after_its_last_reader_left() -> None:
    pool = BlockPool(3)
    block = pool.allocate(1)
    pool.share(block)
    pool.free(block)
    assert pool.num_free == 1
    pool.free(block)
    assert pool.num_free == 2
    pool.check_integrity()


def test_freeing_twice_and_sharing_a_free_block_are_errors() -> None:
    pool = BlockPool(3)
    block = pool.allocate(1)
    pool.free(block)
    with pytest.raises(ValueError, match="freed twice"):
        pool.free(block)
    with pytest.raises(ValueError, match="cannot be shared"):
        pool.share(block)


def test_a_pool_without_room_beside_the_null_block_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one more"):
        BlockPool(1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda pool: pool._free.pop(), "is lost"),
        (lambda pool: pool._free.append(pool._free[0]), "twice"),
        (lambda pool: pool._free.append(NULL_BLOCK), "null block"),
        (lambda pool: pool._counts.__setitem__(2, 1), "free and in use"),
        (lambda pool: pool._counts.__setitem__(2, -1), "negative"),
    ],
)
def test_the_integrity_check_finds_damage(damage: object, message: str) -> None:
    pool = BlockPool(4)
    pool.check_integrity()
    damage(pool)  # type: ignore[operator]
    with pytest.raises(AssertionError, match=message):
        pool.check_integrity()
