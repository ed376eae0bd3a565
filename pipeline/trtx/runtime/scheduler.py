"""Which requests run in the next step, and with how many tokens. Imports no torch.

A step gives every request that decodes one token, and what is left of `max_num_tokens` goes to prompts. First come,
first served: requests start in the order they arrived, one that cannot start yet holds back all behind it, and where
blocks run out the one that arrived last makes room. So whatever runs arrived before whatever waits, the oldest always
goes on, and every request ends.

Blocks are taken as tokens need them. What differs between the policies is how many free blocks a request must find
when it starts, and which of them are then promised to it: under `guaranteed-no-evict` those of its prompt and the
longest output allowed, so that nothing that has started is ever paused; under `max-utilization` those of its prompt,
and it must find one more for every request that runs. (In simulations that spare block saved four to nine tenths of the
pauses and cost no throughput.) There, when a running request needs a block and none is free, the youngest gives its
blocks up and waits at the head of the queue. It keeps its output and the state of its sampling; its tokens are computed
again, as a prompt is.

A step may be planned while the one before it runs, whose tokens nobody knows yet (`Request.num_pending`): call
`schedule`, `schedule`, `commit` (of the first), `schedule`, `commit`, …, never further ahead. Steps must run in the
order in which they were planned: blocks that are given up while a step runs may be written by the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trtx.runtime.batch import Batch, Chunk
from trtx.runtime.blocks import BlockPool, hold
from trtx.runtime.card import Limits
from trtx.runtime.prefix import extend_digests
from trtx.runtime.request import FinishReason, Request, RequestRefused

Policy = Literal["guaranteed-no-evict", "max-utilization"]


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """How requests are put into steps.

    Without `chunked_prefill` a prompt waits for a step that takes all of it, and may not be longer than
    `max_num_tokens`; only a paused request that has grown longer is cut. `prefix_reuse` keeps full blocks after their
    requests have ended, for requests that begin with the same tokens.
    """

    policy: Policy = "max-utilization"
    chunked_prefill: bool = True
    prefix_reuse: bool = True


class Scheduler:
    """The waiting and the running requests, each in the order they arrived, and the blocks they hold.

    A step takes at most `max_scored` prompt tokens whose probabilities are asked for, None for any number: the logits
    of each take memory. Used by one thread. `check` alone reads nothing that changes, and may be called by any.
    """

    def __init__(
        self,
        pool: BlockPool,
        limits: Limits,
        tokens_per_block: int,
        settings: SchedulerSettings = SchedulerSettings(),
        max_scored: int | None = None,
    ) -> None:
        self.pool = pool
        self.limits = limits
        self.tokens_per_block = tokens_per_block
        self.settings = settings
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        # Every running request can decode in every step.
        self._max_running = min(limits.max_batch_size, limits.max_num_tokens)
        self._max_scored = max_scored or limits.max_num_tokens
        self._promised = 0
        self._decodes: tuple[Request, ...] = ()
        self._num_paused = 0

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
        if prompt > self.limits.max_num_tokens and not self.settings.chunked_prefill:
            raise RequestRefused(
                f"the prompt has {prompt} tokens, and this engine computes at most"
                f" {self.limits.max_num_tokens} in a step",
                param="prompt",
                why="it was started without chunked prefill",
                fix="shorten the prompt, or start the engine with chunked prefill",
                code="context_length_exceeded",
            )
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
        """The next step, or None when there is nothing to do now. Every batch returned must be given to `commit`."""
        num_paused = self._num_paused
        decodes, unfinished = self._plan_running()
        budget, scored = self.limits.max_num_tokens - len(decodes), self._max_scored
        chunks = []
        for request in unfinished:
            if (room := min(budget, scored) if request.scores_prompt else budget) > 0:
                chunks.append(self._cut(request, room))
                budget, scored = budget - chunks[-1].length, scored - chunks[-1].num_scored
        num_cached = 0
        # Not in a step that paused somebody: what it gave up is for those who were there before.
        while budget > 0 and self.waiting and len(self.running) < self._max_running and num_paused == self._num_paused:
            room = min(budget, scored) if self.waiting[0].scores_prompt else budget
            if room == 0 or not self._start(self.waiting[0], budget):
                break
            num_cached += self.running[-1].num_computed
            chunks.append(self._cut(self.running[-1], room))
            budget, scored = budget - chunks[-1].length, scored - chunks[-1].num_scored
        if not decodes and not chunks:
            return None
        same = tuple(decodes)
        if same != self._decodes:
            self._decodes = same
        return Batch(self._decodes, tuple(chunks), num_cached, self._num_paused - num_paused)

    def commit(self, batch: Batch, requests: Sequence[Request], token_ids: Sequence[int]) -> None:
        """Record that a step has run: `requests` are those of `batch.sampled` that had not ended, with their tokens.

        Requests that end by a token or by length give their blocks back here.
        """
        size, reuse = self.tokens_per_block, self.settings.prefix_reuse
        for chunk in batch.chunks if reuse else ():
            if not chunk.is_last:
                self._keep(chunk.request, chunk.start + chunk.length)
        for request, token_id in zip(requests, token_ids, strict=True):
            request.num_pending -= 1
            # All tokens known before this one have their keys and values.
            computed = len(request.prompt_ids) + len(request.output_ids)
            request.append(token_id)
            if reuse and computed // size > request.num_kept:
                self._keep(request, computed)
            if request.finish_reason is not None:
                self._remove(request)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request from outside, waiting or running, and free its blocks; nothing happens when it has ended."""
        if not request.finished:
            request.finish_reason = reason
            self._remove(request)

    def check_integrity(self) -> None:
        """Raise AssertionError when blocks and requests disagree; when idle, no block may be in use."""
        self.pool.check_integrity()
        held: dict[int, int] = {}
        for request in self.running:
            self._check_blocks(request)
            for block in request.block_ids:
                held[block] = held.get(block, 0) + 1
        hold(not any(request.block_ids for request in self.waiting), "a waiting request holds blocks")
        hold(not any(request.num_promised for request in self.waiting), "a waiting request is promised blocks")
        hold(
            len(held) == self.pool.num_used and all(self.pool.count(block) == held[block] for block in held),
            "the pool's counts are not those of the running requests",
        )
        promised = sum(request.num_promised for request in self.running)
        hold(promised == self._promised <= self.pool.num_free, "more blocks are promised than are free")
        hold(len(self.running) <= self._max_running, "more requests run than the limits allow")
        hold(not any(request.finished for request in (*self.running, *self.waiting)), "a request that ended is queued")

    def _plan_running(self) -> tuple[list[Request], list[Request]]:
        """Requests that decode in this step, with a place for the token, and those whose prompt is under way."""
        running, size = self.running, self.tokens_per_block
        decodes, unfinished = [], []
        index = 0
        while index < len(running):  # which gets shorter when somebody is paused
            request = running[index]
            index += 1
            num_output = len(request.output_ids) + request.num_pending
            if num_output == 0 or request.num_computed < len(request.prompt_ids) + num_output - 1:
                unfinished.append(request)
            elif num_output < request.params.max_tokens:  # else it only waits for the last one to be known
                if request.num_computed == len(request.block_ids) * size:
                    if not self._make_room(request):
                        break
                    self._take(request, 1)
                request.num_computed += 1
                request.num_pending += 1
                decodes.append(request)
        return decodes, unfinished

    def _start(self, request: Request, budget: int) -> bool:
        """Move a request from the queue to those running, with the blocks that are known to hold its first tokens."""
        size, pool = self.tokens_per_block, self.pool
        found: list[int] = []
        # What is in the pool has no logits any more.
        if self.settings.prefix_reuse and not request.scores_prompt:
            # The last token is computed in any case: its logits are wanted.
            num_full = (request.num_tokens - 1) // size
            extend_digests(request, num_full, size)
            found = pool.find(request.digests[:num_full])
            if len(found) < num_full and self._is_coming(request.digests[len(found)], len(found)):
                return False
        missing = request.num_tokens - len(found) * size
        if not self.settings.chunked_prefill and budget < missing <= self.limits.max_num_tokens:
            return False
        lasting = self.settings.policy == "guaranteed-no-evict"
        num_promised = (self.num_blocks(request) if lasting else -(-request.num_tokens // size)) - len(found)
        spare = 0 if lasting else len(self.running)
        if num_promised + pool.count_free(found) + spare > pool.num_free - self._promised:
            return False
        self.waiting.popleft()
        self.running.append(request)
        pool.share(found)
        request.block_ids = found
        request.num_computed = len(found) * size
        request.num_kept = len(found)
        request.num_promised = num_promised
        self._promised += num_promised
        if request.num_preemptions == 0:
            request.num_cached = request.num_computed
        return True

    def _is_coming(self, digest: bytes, index: int) -> bool:
        """Whether a running request is computing the block of this digest, which is then worth waiting for."""
        return any(
            request.num_kept <= index < len(request.digests) and request.digests[index] == digest
            for request in self.running
        )

    def _cut(self, request: Request, budget: int) -> Chunk:
        """The next tokens of a prompt, as many as the budget takes. Their blocks are promised."""
        start, missing = request.num_computed, request.num_tokens - request.num_computed
        length = min(missing, budget)
        num_blocks = -(-(start + length) // self.tokens_per_block) - len(request.block_ids)
        if num_blocks > 0:
            self._take(request, num_blocks)
        request.num_computed += length
        request.num_pending += length == missing
        return Chunk(request, start, length, length == missing)

    def _take(self, request: Request, num_blocks: int) -> None:
        request.block_ids += self.pool.allocate(num_blocks)
        promised = min(num_blocks, request.num_promised)
        request.num_promised -= promised
        self._promised -= promised

    def _make_room(self, request: Request) -> bool:
        """See to a free block for a running request; False when it was itself the youngest and is paused."""
        while request.num_promised == 0 and self.pool.num_free <= self._promised:
            youngest = self.running.pop()
            self._give_back(youngest)
            youngest.num_preemptions += 1
            self._num_paused += 1
            self.waiting.appendleft(youngest)
            if youngest is request:
                return False
        return True

    def _keep(self, request: Request, num_computed: int) -> None:
        """Let others find the full blocks of the first `num_computed` tokens, which have been computed."""
        num_full = num_computed // self.tokens_per_block
        if not request.block_ids or num_full <= request.num_kept:  # paused or ended while the step ran
            return
        extend_digests(request, num_full, self.tokens_per_block)
        for index in range(request.num_kept, num_full):
            self.pool.keep(request.block_ids[index], request.digests[index])
        request.num_kept = num_full

    def _remove(self, request: Request) -> None:
        # Whatever runs has a block.
        if request.block_ids:
            self.running.remove(request)
            self._give_back(request)
        else:
            self.waiting.remove(request)
        request.digests = []

    def _give_back(self, request: Request) -> None:
        self.pool.free(request.block_ids)
        self._promised -= request.num_promised
        request.block_ids = []
        request.num_computed = request.num_kept = request.num_promised = 0

    def _check_blocks(self, request: Request) -> None:
        blocks, name = request.block_ids, f"request {request.id}"
        hold(len(blocks) > 0 and len(blocks) == len(set(blocks)), f"{name} runs without blocks, or has one twice")
        hold(
            len(blocks) * self.tokens_per_block >= request.num_computed, f"{name} has more tokens than its blocks hold"
        )
        for index, block in enumerate(blocks):
            digest = self.pool.digest_of(block)
            if index >= request.num_kept:
                hold(digest is None and self.pool.count(block) == 1, f"{name} writes into a block that others may read")
            else:
                hold(digest in (None, request.digests[index]), f"{name} reads a block of other tokens")
