"""The pool of KV-cache blocks: which are free, which are in use and how often. Imports no torch.

It manages block numbers only; the tensors that the numbers address belong to the programs.
"""

from __future__ import annotations

from collections.abc import Iterable

# Padding tokens write here and no request ever reads it, so it is never handed out.
NULL_BLOCK = 0


class BlockPool:
    """Blocks 1 … num_blocks - 1, each with a reference count.

    A block is free exactly when its count is zero. Counts above one are for blocks that several requests read.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"a pool needs the null block and at least one more, not {num_blocks} in all")
        self.num_blocks = num_blocks
        # Last freed, first reused: the hot end of the pool stays in the processor's caches.
        self._free = list(range(num_blocks - 1, NULL_BLOCK, -1))
        self._counts = [0] * num_blocks

    @property
    def capacity(self) -> int:
        """Blocks that requests can use: all but the null block."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.capacity - len(self._free)

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks, each with a count of one. The caller has looked at `num_free`: a shortage is a ValueError."""
        if num_blocks > len(self._free):
            raise ValueError(f"{num_blocks} blocks asked for, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(num_blocks)]
        for block in taken:
            self._counts[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to blocks that are in use."""
        for block in blocks:
            if self._counts[block] == 0:
                raise ValueError(f"block {block} is free and cannot be shared")
            self._counts[block] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each block; a block without references is free again."""
        for block in blocks:
            if self._counts[block] == 0:
                raise ValueError(f"block {block} is freed twice")
            self._counts[block] -= 1
            if self._counts[block] == 0:
                self._free.append(block)

    def count(self, block: int) -> int:
        """References to a block; zero when it is free."""
        return self._counts[block]

    def check_integrity(self) -> None:
        """Raise AssertionError when a block is lost, listed twice, or free and in use at once."""
        free = set(self._free)
        _hold(len(free) == len(self._free), "a block is in the free list twice")
        _hold(NULL_BLOCK not in free and self._counts[NULL_BLOCK] == 0, "the null block was handed out")
        _hold(min(self._counts) >= 0, "a block has a negative count")
        for block in range(1, self.num_blocks):
            _hold((block in free) == (self._counts[block] == 0), f"block {block} is lost, or free and in use")


def _hold(condition: bool, message: str) -> None:
    # Not an assert statement: these checks also run under python -O.
    if not condition:
        raise AssertionError(message)
