"""Which requests run in the next step. Imports no torch.

Policy: guaranteed no eviction. A request starts only when the blocks for its prompt and all tokens it may generate are
free, and takes them all at once, so whatever has started can end. First come, first served: a request that does not
fit holds back those behind it. A step is either a prefill or a decode, and prefill goes first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from trtx.runtime.blocks import BlockPool
from trtx.runtime.card import Limits
from trtx.runtime.request import FinishReason, Request, RequestRefused

# Prompts of one prefill are padded to the longest. A prompt that would leave the grid with more cells than this many
# times its tokens waits for the next step.
MAX_GRID_OVER_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` … `start + length - 1` of a request's prompt."""

    request: Request
    start: int
    length: int

    @property
    def completes_prompt(self) -> bool:
        return self.start + self.length == len(self.request.prompt_ids)


@dataclass(frozen=True, slots=True)
class Prefill:
    """A step over prompts, padded to a grid of len(chunks) × the longest chunk."""

    chunks: tuple[Chunk, ...]

    @property
    def sampled(self) -> tuple[Request, ...]:
        """The requests that get their first token from this step."""
        return tuple(chunk.request for chunk in self.chunks if chunk.completes_prompt)


@dataclass(frozen=True, slots=True)
class Decode:
    """A step that adds one token to every request. The same object comes back while nobody joins or leaves."""

    requests: tuple[Request, ...]

    @property
    def sampled(self) -> tuple[Request, ...]:
        return self.requests


Batch = Prefill | Decode


class Scheduler:
    """The waiting and the running requests, and the blocks they hold.

    Used by one thread. `check` alone reads nothing that changes, and may be called by any.
    """

    def __init__(self, pool: BlockPool, limits: Limits, tokens_per_block: int) -> None:
        self.pool = pool
        self.limits = limits
        self.tokens_per_block = tokens_per_block
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._decode: Decode | None = None

    def num_blocks(self, request: Request) -> int:
        """Blocks the request needs from start to end."""
        return -(-request.max_computed // self.tokens_per_block)

    @property
    def max_request_tokens(self) -> int:
        """The longest prompt plus output that any request may have."""
        # The last token needs no place in the pool: see Request.max_computed.
        return min(self.limits.max_seq_len, self.pool.capacity * self.tokens_per_block + 1)

    def check(self, request: Request) -> None:
        """Raise RequestRefused when the request could never run."""
        prompt, output = len(request.prompt_ids), request.params.max_tokens
        if prompt == 0:
            raise RequestRefused("the prompt has no tokens", param="prompt", fix="send at least one token")
        if prompt + output > self.limits.max_seq_len:
            raise RequestRefused(
                f"{prompt} prompt tokens and max_tokens {output} make {prompt + output},"
                f" and this engine takes at most {self.limits.max_seq_len}",
                param="max_tokens" if prompt < self.limits.max_seq_len else "prompt",
                why="max_seq_len of the engine",
                fix="shorten the prompt or lower max_tokens",
                code="context_length_exceeded",
            )
        if self.num_blocks(request) > self.pool.capacity:
            raise RequestRefused(
                f"{prompt} prompt tokens and max_tokens {output} need {self.num_blocks(request)} KV-cache blocks,"
                f" and the pool has {self.pool.capacity}",
                param="max_tokens",
                why=f"a block holds {self.tokens_per_block} tokens",
                fix="lower max_tokens, or start the engine with a larger KV cache",
                code="context_length_exceeded",
            )

    def add(self, request: Request) -> None:
        """Queue a request that `check` let pass."""
        self.waiting.append(request)

    def schedule(self) -> Batch | None:
        """The next step, or None when there is nothing to do. Every batch returned must be given to `commit`."""
        chunks = self._plan_prefill()
        if chunks:
            return Prefill(tuple(chunks))
        if not self.running:
            return None
        if self._decode is None:
            self._decode = Decode(tuple(self.running))
        return self._decode

    def commit(self, batch: Batch, token_ids: Sequence[int]) -> None:
        """Record a step that was run: `token_ids` are the new tokens of `batch.sampled`, in order.

        Requests that end by a token or by length give their blocks back here.
        """
        if isinstance(batch, Prefill):
            for chunk in batch.chunks:
                chunk.request.num_computed += chunk.length
        else:
            for request in batch.requests:
                request.num_computed += 1
        for request, token_id in zip(batch.sampled, token_ids, strict=True):
            request.append(token_id)
            if request.finish_reason is not None:
                self._release(request)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request from outside, waiting or running, and free its blocks; nothing happens when it has ended."""
        if request.finished:
            return
        request.finish_reason = reason
        if request in self.waiting:
            self.waiting.remove(request)
        else:
            self._release(request)

    def check_integrity(self) -> None:
        """Raise AssertionError when blocks and requests disagree; when idle, no block may be in use."""
        self.pool.check_integrity()
        held: dict[int, int] = {}
        for request in self.running:
            if len(request.block_ids) * self.tokens_per_block < request.num_computed:
                raise AssertionError(f"request {request.id} has more tokens than its blocks hold")
            for block in request.block_ids:
                held[block] = held.get(block, 0) + 1
        if any(request.block_ids for request in self.waiting):
            raise AssertionError("a waiting request holds blocks")
        if len(held) != self.pool.num_used or any(self.pool.count(block) != held[block] for block in held):
            raise AssertionError("the pool's counts are not those of the running requests")
        if len(self.running) > self.limits.max_batch_size:
            raise AssertionError("more requests run than max_batch_size allows")

    def _plan_prefill(self) -> list[Chunk]:
        """Chunks of the next prefill: a prompt that is under way, then waiting ones while budgets and blocks last."""
        grid = _Grid(self.limits.max_num_tokens)
        # Only the last one started can be unfinished: a prompt in several chunks fills the whole budget.
        if self.running and self.running[-1].num_computed < len(self.running[-1].prompt_ids):
            grid.add(self.running[-1])
        while self.waiting and len(self.running) < self.limits.max_batch_size:
            request = self.waiting[0]
            num_blocks = self.num_blocks(request)
            if not grid.takes(request) or num_blocks > self.pool.num_free:
                break
            self.waiting.popleft()
            request.block_ids = self.pool.allocate(num_blocks)
            self.running.append(request)
            self._decode = None
            grid.add(request)
        return grid.chunks

    def _release(self, request: Request) -> None:
        self.running.remove(request)
        self.pool.free(request.block_ids)
        request.block_ids = []
        self._decode = None


class _Grid:
    """The padded grid of one prefill while it is filled."""

    def __init__(self, max_num_tokens: int) -> None:
        self.chunks: list[Chunk] = []
        self._max_num_tokens = max_num_tokens
        self._longest = 0
        self._tokens = 0

    def takes(self, request: Request) -> bool:
        if not self.chunks:
            return True
        length = len(request.prompt_ids) - request.num_computed
        cells = (len(self.chunks) + 1) * max(self._longest, length)
        return cells <= min(self._max_num_tokens, MAX_GRID_OVER_TOKENS * (self._tokens + length))

    def add(self, request: Request) -> None:
        length = min(len(request.prompt_ids) - request.num_computed, self._max_num_tokens)
        self.chunks.append(Chunk(request, request.num_computed, length))
        self._longest = max(self._longest, length)
        self._tokens += length
