"""What benchmarks/runtime.py measures with: figures, calls that take turns, engines of both sides."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from runtime_engines import Kind, Shop
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from trtx.runtime.engine import Engine
from trtx.runtime.request import SamplingParams

KV_CACHE_BYTES = {"demo": 64 << 20, "large": 640 << 20, "mixture": 256 << 20}


@dataclass(frozen=True)
class Figure:
    """One line of the report; `at_least` or `at_most` is what the project promises about it."""

    what: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    @property
    def promise(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"


@dataclass(frozen=True)
class Race:
    """Amounts per second of everyone, round by round."""

    rates: Mapping[str, list[float]]

    def best(self, name: str) -> float:
        return max(self.rates[name])

    def ratio(self, name: str, peer: str) -> float:
        """The median over the rounds of one rate by another."""
        return statistics.median(a / b for a, b in zip(self.rates[name], self.rates[peer], strict=True))


Clock = Callable[[], float]


def race(clock: Clock, rounds: int, calls: Mapping[str, Callable[[], int]], *, warm: bool = False) -> Race:
    """Time calls in turn, after one round that warms up unless they are warm; a call returns the amount that it did."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for call in () if warm else calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began = clock()
            amount = call()
            rates[name].append(amount / (clock() - began))
    return Race(rates)


class Bench:
    """What the sections measure with: engines, loaded once each, peers, and the settings of this run.

    On a `busy` machine everything has one thread, and its processor time counts.
    """

    def __init__(self, shop: Shop, threads: int, kinds: Sequence[Kind], *, quick: bool, busy: bool) -> None:
        self.shop, self.threads, self.quick = shop, threads, quick
        self.clock: Clock = time.process_time if busy else time.perf_counter
        self.built = shop.engines(kinds)
        self._engines: dict[tuple[Kind, bool], Engine] = {}
        self._peers: dict[str, Any] = {}
        self._draw = random.Random(0)

    def race(self, rounds: int, calls: Mapping[str, Callable[[], int]], *, warm: bool = False) -> Race:
        """A race of so many rounds, or of one in a quick run."""
        return race(self.clock, 1 if self.quick else rounds, calls, warm=warm)

    def engine(self, kind: Kind, *, overlap: bool = False) -> Engine:
        if (kind, overlap) not in self._engines:
            torch.set_num_threads(self.threads)
            built, size = self.built[kind], KV_CACHE_BYTES[kind.model]
            loaded = Engine.load(built.engine, weights=built.weights, kv_cache_bytes=size, overlap=overlap)
            self._engines[kind, overlap] = loaded
        return self._engines[kind, overlap]

    def prompts(self, kind: Kind, count: int, length: int) -> list[list[int]]:
        """Random tokens, never the same ones twice, so that nothing of them is in a cache."""
        vocab_size = self.engine(kind).card.model.vocab_size
        return [[self._draw.randrange(3, vocab_size) for _ in range(length)] for _ in range(count)]

    def ours(self, kind: Kind, prompts: list[list[int]], max_tokens: Sequence[int] | int, overlap: bool = False) -> int:
        """Generate so many tokens for every prompt; returns how many there were."""
        engine = self.engine(kind, overlap=overlap)
        engine.use_thread()
        limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens
        params = [SamplingParams(max_tokens=limit, temperature=0, ignore_eos=True) for limit in limits]
        return sum(len(done.token_ids) for done in engine.generate(prompts, params))

    def theirs(self, kind: Kind, prompts: list[list[int]], max_tokens: int, threads: int | None = None) -> int:
        """The same by transformers, prompts of one length in one batch."""
        if kind.model not in self._peers:
            disable_progress_bar()
            folder, dtype = self.shop.model(kind.model), getattr(torch, kind.dtype)
            peer = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
            peer.generation_config.eos_token_id = None
            self._peers[kind.model] = peer
        torch.set_num_threads(threads or self.threads)
        ids = torch.tensor(prompts)
        answer = self._peers[kind.model].generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0
        )
        return answer[:, ids.shape[1] :].numel()
