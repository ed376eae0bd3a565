"""A closed loop of requests on an engine in this process: as soon as one ends, the next is sent."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise

from trtx.runtime.engine import Engine
from trtx.runtime.request import Request, SamplingParams


@dataclass
class Timing:
    """When a request was sent and when each of its tokens came, on the engine's clock; `failed` says what is wrong."""

    sent_s: float
    token_times_s: list[float] = field(default_factory=list)
    failed: str | None = None

    @property
    def first_token_s(self) -> float:
        """Time to first token."""
        return self.token_times_s[0] - self.sent_s

    @property
    def gaps_s(self) -> list[float]:
        """Times from each token to the next."""
        return [later - earlier for earlier, later in pairwise(self.token_times_s)]


@dataclass(frozen=True)
class LoadResult:
    """One run of a load: its length in seconds and every request, in the order they were sent."""

    elapsed_s: float
    timings: tuple[Timing, ...]

    @property
    def failures(self) -> list[str]:
        return [timing.failed for timing in self.timings if timing.failed is not None]

    @property
    def output_tokens(self) -> int:
        return sum(len(timing.token_times_s) for timing in self.timings)


def make_prompts(engine: Engine, *, input_tokens: int, seed: str) -> Iterator[list[int]]:
    """Endless prompts of random tokens, none of them special; the same for the same seed and tokenizer."""
    vocab_size = min(engine.card.model.vocab_size, engine.tokenizer.vocab_size)
    ordinary = [token for token in range(vocab_size) if token not in engine.tokenizer.special_ids]
    draw = random.Random(seed)
    while True:
        yield draw.choices(ordinary, k=input_tokens)


def run_load(
    engine: Engine,
    prompts: Sequence[list[int]],
    *,
    output_tokens: int,
    concurrency: int,
    on_end: Callable[[], None] = lambda: None,
) -> LoadResult:
    """Send every prompt once, `concurrency` at a time, and generate exactly `output_tokens` for each, greedily.

    Raises RequestRefused when the engine's limits do not allow the load.
    """
    params = SamplingParams(max_tokens=output_tokens, temperature=0, ignore_eos=True)
    waiting = iter(prompts)
    timings: dict[Request, Timing] = {}

    def send(count: int) -> None:
        for prompt in islice(waiting, count):
            request = engine.make_request(prompt, params)
            timings[request] = Timing(request.arrival_s)
            engine.add_request(request)

    started_s = engine.clock()
    send(concurrency)
    while engine.has_work:
        for output in engine.step():
            timing = timings[output.request]
            timing.token_times_s += [output.time_s] * len(output.token_ids)
            if output.finish_reason is not None:
                timing.failed = _find_failure(output.request, output_tokens)
                on_end()
                send(1)
    return LoadResult(engine.clock() - started_s, tuple(timings.values()))


def _find_failure(request: Request, output_tokens: int) -> str | None:
    """What is wrong with a request that has ended, or None."""
    if request.finish_reason == "length" and len(request.output_ids) == output_tokens:
        return None
    return f"ended by {request.finish_reason} after {len(request.output_ids)} of {output_tokens} tokens"
