"""The pool of KV-cache blocks: which are free, which are in use and how often, and whose content is known.

It manages block numbers only; the tensors that the numbers address belong to the programs. Imports no torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

# Padding tokens write here and no request ever reads it, so it is never handed out.
NULL_BLOCK = 0


class BlockPool:
    """Blocks 1 … num_blocks - 1, each with a reference count.

    A block is free exactly when its count is zero. Counts above one are for blocks that several requests read. A block
    that was kept under the digest of its content stays findable after its last reader left, until a request needs a
    block and none without known content is free: the one that was left longest ago goes first.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"a pool needs the null block and at least one more, not {num_blocks} in all")
        self.num_blocks = num_blocks
        self.num_evicted = 0
        # Last freed, first reused: the hot end of the pool stays in the processor's caches.
        self._blank = list(range(num_blocks - 1, NULL_BLOCK, -1))
        # Free blocks with known content, the one left longest ago first.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._counts = [0] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def capacity(self) -> int:
        """Blocks that requests can use: all but the null block."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        """Blocks that nobody refers to, with or without known content."""
        return len(self._blank) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Free blocks whose content can still be found."""
        return len(self._idle)

    @property
    def num_used(self) -> int:
        return self.capacity - self.num_free

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks, each with a count of one. The caller has looked at `num_free`: a shortage is a ValueError."""
        if num_blocks > self.num_free:
            raise ValueError(f"{num_blocks} blocks asked for, {self.num_free} free")
        taken = [self._blank.pop() if self._blank else self._evict() for _ in range(num_blocks)]
        for block in taken:
            self._counts[block] = 1
        return taken

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """The blocks of the leading digests, up to the first one that is not here; their counts do not change."""
        found: list[int] = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def count_free(self, blocks: Iterable[int]) -> int:
        """How many of these blocks nobody refers to."""
        return sum(self._counts[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to blocks that are in use or whose content is known."""
        for block in blocks:
            if self._counts[block] == 0:
                if block not in self._idle:
                    raise ValueError(f"block {block} is free and cannot be shared")
                del self._idle[block]
            self._counts[block] += 1

    def keep(self, block: int, digest: bytes) -> None:
        """Make a block in use findable by the digest of its content, which must not change any more.

        When another block is known by that digest already, this one stays unknown.
        """
        if self._counts[block] == 0 or block in self._digest_of:
            raise ValueError(f"block {block} is free or kept already")
        if digest not in self._block_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def free(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block of a sequence; a block without references is free again.

        The end of a sequence is found only together with its beginning, so it counts as left longer ago.
        """
        for block in reversed(blocks):
            if self._counts[block] == 0:
                raise ValueError(f"block {block} is freed twice")
            self._counts[block] -= 1
            if self._counts[block] == 0:
                if block in self._digest_of:
                    self._idle[block] = None
                else:
                    self._blank.append(block)

    def count(self, block: int) -> int:
        """References to a block; zero when it is free."""
        return self._counts[block]

    def digest_of(self, block: int) -> bytes | None:
        """The digest that a block is known by."""
        return self._digest_of.get(block)

    def check_integrity(self) -> None:
        """Raise AssertionError when a block is lost, listed twice, free and in use at once, or found wrongly."""
        blank = set(self._blank)
        hold(len(blank) == len(self._blank), "a block is in the free list twice")
        hold(not blank & self._idle.keys(), "a block is free with and without known content")
        free = blank | self._idle.keys()
        hold(NULL_BLOCK not in free and self._counts[NULL_BLOCK] == 0, "the null block was handed out")
        hold(min(self._counts) >= 0, "a block has a negative count")
        for block in range(1, self.num_blocks):
            hold((block in free) == (self._counts[block] == 0), f"block {block} is lost, or free and in use")
        known = {block: digest for digest, block in self._block_of.items()}
        hold(known == self._digest_of, "digests and blocks do not belong together")
        hold(self._idle.keys() <= known.keys(), "a block waits to be found and has no digest")
        hold(not blank & known.keys(), "a block with known content would be given out before its turn")

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._digest_of.pop(block)]
        self.num_evicted += 1
        return block


def hold(condition: bool, message: str) -> None:
    """Raise AssertionError when an invariant is broken. Not an assert statement: it also runs under python -O."""
    if not condition:
        raise AssertionError(message)
