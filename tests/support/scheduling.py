"""A scheduler under a model whose next token follows from the tokens that it reads through the block tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trtx.runtime.batch import Batch
from trtx.runtime.blocks import BlockPool
from trtx.runtime.card import Limits
from trtx.runtime.inputs import InputBuilder, StepInputs
from trtx.runtime.request import Request, RequestRefused, SamplingParams
from trtx.runtime.scheduler import Scheduler, SchedulerSettings

BLOCK = 4
STOP = 0
VOCAB_SIZE = 24


def next_token(context: Sequence[int]) -> int:
    """Every token and the order count; one in VOCAB_SIZE is STOP."""
    state = 7
    for token in context:
        state = (state * 31 + token + 1) % 1_000_003
    return state % VOCAB_SIZE


def expected_tokens(prompt: Sequence[int], max_tokens: int) -> list[int]:
    """What a request gets that is alone in the world."""
    context = list(prompt)
    for _ in range(max_tokens):
        context.append(next_token(context))
        if context[-1] == STOP:
            break
    return context[len(prompt) :]


class FakePool:
    """Keeps token ids where a model keeps keys and values."""

    def __init__(self, num_blocks: int) -> None:
        self.slots = [-1] * (num_blocks * BLOCK)

    def poison(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self.slots[block * BLOCK : (block + 1) * BLOCK] = [-1] * BLOCK

    def run(self, inputs: StepInputs) -> list[int]:
        """The next token after every selected row. All tokens are written before any is read, as in every layer."""
        slots = inputs.slots_M.tolist()
        assert len(set(slots)) == len(slots)
        assert min(slots) >= BLOCK
        for slot, token in zip(slots, inputs.tokens_M.tolist(), strict=True):
            self.slots[slot] = token
        starts, positions = inputs.starts_B1.tolist(), inputs.positions_M.tolist()
        tables = inputs.tables_BW.tolist()
        assert starts[-1] == len(slots) == len(positions)
        found = []
        for row in inputs.select_N.tolist():
            sequence = next(b for b in range(len(tables)) if row < starts[b + 1])
            assert inputs.context_B[sequence] == positions[starts[sequence + 1] - 1] + 1
            table = tables[sequence]
            read = [self.slots[table[at // BLOCK] * BLOCK + at % BLOCK] for at in range(positions[row] + 1)]
            found.append(next_token(read))
        return found


@dataclass
class World:
    """Requests come, run and go. With `ahead` every step is planned before the one before it has run."""

    limits: Limits
    num_blocks: int
    settings: SchedulerSettings
    ahead: bool = False
    requests: list[Request] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    num_paused: int = 0
    num_cached: int = 0
    num_steps: int = 0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(BlockPool(self.num_blocks), self.limits, BLOCK, self.settings)
        self.pool = FakePool(self.num_blocks)
        self._inputs = InputBuilder(self.limits.max_batch_size, -(-self.limits.max_seq_len // BLOCK), BLOCK)
        self._under_way: tuple[Batch, StepInputs] | None = None

    def add(self, prompt: Sequence[int], max_tokens: int, salt: bytes = b"") -> Request | None:
        """Queue a request; None when the scheduler refuses it."""
        params = SamplingParams(max_tokens=max_tokens)
        request = Request(len(self.requests), list(prompt), params, frozenset([STOP]), 0.0, salt=salt)
        try:
            self.scheduler.check(request)
        except RequestRefused:
            return None
        self.requests.append(request)
        self.scheduler.add(request)
        return request

    def cancel(self, index: int) -> None:
        if self.requests:
            self.scheduler.finish(self.requests[index % len(self.requests)], "cancelled")

    def step(self) -> bool:
        """Run a step; False when there was none."""
        if not self.ahead:
            return self._finish(self._plan())
        under_way = self._under_way or self._plan()
        if under_way is None:
            return False
        self._under_way = under_way  # runs while the next one is planned
        self._under_way = self._plan()
        return self._finish(under_way)

    def run(self) -> None:
        """Run to the end, within the steps that it must not take more than."""
        bound = 2 * sum(len(r.prompt_ids) + r.params.max_tokens for r in self.requests if not r.finished) + 2
        for _ in range(bound):
            self.step()
            self.check()
        assert all(request.finished for request in self.requests)
        assert self.scheduler.pool.num_used == 0

    def check(self) -> None:
        scheduler = self.scheduler
        scheduler.check_integrity()
        # Whoever runs arrived before whoever waits, and both are in order.
        queued = [request.id for request in (*scheduler.running, *scheduler.waiting)]
        assert queued == sorted(queued)
        assert all(not request.block_ids for request in self.requests if request.finished)

    def _plan(self) -> tuple[Batch, StepInputs] | None:
        before = {request: request.num_computed for request in self.scheduler.running}
        batch = self.scheduler.schedule()
        if batch is None:
            # Nobody waits for nothing: only a token that is on its way can be missing.
            assert self._under_way is not None or not (self.scheduler.running or self.scheduler.waiting)
            return None
        self.scheduler.check_integrity()
        self._hold_budgets(batch, before)
        if not self.ahead:
            self.pool.poison(self.scheduler.pool._blank)
        return batch, self._inputs.make(batch)

    def _finish(self, planned: tuple[Batch, StepInputs] | None) -> bool:
        if planned is None:
            return False
        batch, inputs = planned
        inputs.fill(batch.decodes)
        tokens = self.pool.run(inputs)
        live = [(r, token) for r, token in zip(batch.sampled, tokens, strict=False) if not r.finished]
        self.scheduler.commit(batch, [request for request, _ in live], [token for _, token in live])
        self.num_steps += 1
        return True

    def _hold_budgets(self, batch: Batch, before: dict[Request, int]) -> None:
        assert 1 <= batch.num_tokens <= self.limits.max_num_tokens
        assert 1 <= len(batch.decodes) + len(batch.chunks) <= self.limits.max_batch_size
        assert self.settings.policy == "max-utilization" or batch.num_paused == 0
        for request in batch.decodes:
            assert request.num_computed == before[request] + 1 >= len(request.prompt_ids) + 1
        for chunk in batch.chunks:
            assert chunk.length >= 1
            assert chunk.start == before.get(chunk.request, chunk.start)
            assert chunk.request.num_computed == chunk.start + chunk.length <= chunk.request.num_tokens
            if not self.settings.chunked_prefill and chunk.request.num_tokens <= self.limits.max_num_tokens:
                assert chunk.is_last
            if chunk.request.id not in self.started:
                self.started.append(chunk.request.id)
        self.num_paused += batch.num_paused
        self.num_cached += batch.num_cached
