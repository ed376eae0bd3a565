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


A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


def keep_three(pool: BlockPool) -> list[int]:
    """Three free blocks with known content, left in one go."""
    blocks = pool.allocate(3)
    for block, digest in zip(blocks, (A, B, C), strict=True):
        pool.keep(block, digest)
    pool.free(blocks)
    return blocks


def test_a_kept_block_is_found_while_it_is_used_and_after_it() -> None:
    pool = BlockPool(5)
    (block,) = pool.allocate(1)
    assert pool.find([A]) == []
    pool.keep(block, A)
    assert pool.find([A]) == [block]
    pool.free([block])
    assert (pool.find([A]), pool.num_idle, pool.num_free) == ([block], 1, 4)
    pool.share([block])
    assert (pool.count(block), pool.num_idle, pool.num_free) == (1, 0, 3)
    pool.check_integrity()


def test_a_chain_is_found_up_to_its_first_missing_block() -> None:
    pool = BlockPool(5)
    blocks = keep_three(pool)
    assert pool.find([A, B, C]) == blocks
    assert pool.find([A, b"x" * 32, C]) == blocks[:1]
    assert pool.count_free(blocks) == 3
    pool.share(blocks[:1])
    assert pool.count_free(blocks) == 2


def test_blocks_without_known_content_are_given_out_before_those_with() -> None:
    pool = BlockPool(6)
    kept = keep_three(pool)
    assert not set(pool.allocate(2)) & set(kept)
    assert pool.num_evicted == 0


def test_the_block_left_longest_ago_is_evicted_first_and_the_end_of_a_sequence_before_its_beginning() -> None:
    pool = BlockPool(4)
    first, second, third = keep_three(pool)
    # Used once more, so now left last.
    pool.share([third])
    pool.free([third])
    assert pool.allocate(1) == [second]
    assert (pool.find([A]), pool.find([B]), pool.find([C])) == ([first], [], [third])
    assert pool.allocate(2) == [first, third]
    assert pool.find([C]) == []
    assert pool.num_evicted == 3
    pool.check_integrity()


def test_an_evicted_block_holds_something_else_and_can_be_kept_anew() -> None:
    pool = BlockPool(2)
    block = pool.allocate(1)
    pool.keep(block[0], A)
    pool.free(block)
    assert pool.allocate(1) == block
    pool.keep(block[0], B)
    assert (pool.find([A]), pool.find([B])) == ([], block)


def test_of_two_blocks_with_the_same_content_one_is_found() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(2)
    pool.keep(first, A)
    pool.keep(second, A)
    assert pool.find([A]) == [first]
    pool.free([first, second])
    assert (pool.num_idle, pool.num_free) == (1, 3)
    pool.check_integrity()


def test_only_a_block_in_use_can_be_kept_and_only_once() -> None:
    pool = BlockPool(3)
    with pytest.raises(ValueError, match="free or kept"):
        pool.keep(1, A)
    (block,) = pool.allocate(1)
    pool.keep(block, A)
    with pytest.raises(ValueError, match="free or kept"):
        pool.keep(block, B)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda pool: pool._blank.pop(), "is lost"),
        (lambda pool: pool._blank.append(pool._blank[0]), "twice"),
        (lambda pool: pool._blank.append(NULL_BLOCK), "null block"),
        (lambda pool: pool._counts.__setitem__(2, 1), "free and in use"),
        (lambda pool: pool._counts.__setitem__(2, -1), "negative"),
        (lambda pool: pool._blank.append(next(iter(pool._idle))), "with and without"),
        (lambda pool: pool._idle.popitem(), "is lost"),
        (lambda pool: pool._block_of.pop(A), "do not belong together"),
        (lambda pool: pool._digest_of.__setitem__(pool._blank[0], b"x"), "do not belong together"),
        (lambda pool: (pool._block_of.clear(), pool._digest_of.clear()), "has no digest"),
        (lambda pool: pool._blank.append(pool._idle.popitem()[0]), "before its turn"),
    ],
)
def test_the_integrity_check_finds_damage(damage: object, message: str) -> None:
    pool = BlockPool(6)
    keep_three(pool)
    pool.check_integrity()
    damage(pool)  # type: ignore[operator]
    with pytest.raises(AssertionError, match=message):
        pool.check_integrity()
