"""The engine: requests in, tokens out, one step at a time.

A step is schedule → tensors → program → sample → text. This loop is plain on purpose: whatever runs faster later is
held equal to it. An engine belongs to one thread (see loop.py); `make_request` alone may be called from any.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trtx.hardware.host import count_cpus
from trtx.runtime.blocks import BlockPool
from trtx.runtime.card import load_card
from trtx.runtime.fit import check_machine
from trtx.runtime.folders import find_folders
from trtx.runtime.inputs import DecodeInputs, prefill_tensors
from trtx.runtime.memory import blocks_per_sequence, plan_num_blocks
from trtx.runtime.program import Programs, load_programs
from trtx.runtime.request import FinishReason, Output, Request, RequestRefused, SamplingParams
from trtx.runtime.sampler import sample
from trtx.runtime.scheduler import Batch, Decode, Prefill, Scheduler
from trtx.runtime.stats import EngineStats, Load
from trtx.runtime.stops import StopStrings
from trtx.runtime.threads import choose_num_threads
from trtx.runtime.tokenizer import TextStream, Tokenizer

DEFAULT_MEMORY_FRACTION = 0.9


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request of `Engine.generate`."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


class Engine:
    """Programs, scheduler and tokenizer put together.

    `num_threads` is for one operation; None leaves it to torch. `clock` gives seconds; only differences count.
    """

    def __init__(
        self,
        programs: Programs,
        tokenizer: Tokenizer,
        *,
        num_threads: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        card = programs.card
        self.card = card
        self.tokenizer = tokenizer
        self.stats = EngineStats()
        self.clock = clock
        self._num_threads = num_threads
        self._programs = programs
        self._scheduler = Scheduler(BlockPool(programs.num_blocks), card.limits, card.kv_cache.tokens_per_block)
        self._inputs = DecodeInputs(
            card.limits.max_batch_size, blocks_per_sequence(card), card.kv_cache.tokens_per_block
        )
        self._texts: dict[int, _Text] = {}
        self._ids = itertools.count()

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        weights: Path | None = None,
        kv_cache_bytes: int | None = None,
        memory_fraction: float = DEFAULT_MEMORY_FRACTION,
        verify: bool = True,
    ) -> Engine:
        """Load a ready engine folder, a deployment folder around one, or a build output with `weights` elsewhere.

        The KV cache takes `kv_cache_bytes`, or else `memory_fraction` of the memory available now, weights included.
        `verify` compares the programs' digests with the card before they are mapped.

        Raises UsageProblem for a folder that is none of these, EnvironmentProblem when the engine does not fit this
        machine or its memory, VerificationFailed when the parts are damaged or do not belong together.
        """
        folders = find_folders(folder, weights)
        card = load_card(folders.engine)
        check_machine(card)
        tokenizer = Tokenizer.load(folders.tokenizer)
        weights_bytes = folders.weights_bytes(card)
        num_blocks = plan_num_blocks(
            card, kv_cache_bytes=kv_cache_bytes, memory_fraction=memory_fraction, weights_bytes=weights_bytes
        )
        # torch obeys OMP_NUM_THREADS, else counts cores; a container may have fewer processors than its machine cores.
        max_threads = min(torch.get_num_threads(), count_cpus(Path("/proc"), Path("/sys/fs/cgroup")))
        programs = load_programs(folders.engine, folders.weights, num_blocks, verify=verify)
        engine = cls(programs, tokenizer, num_threads=choose_num_threads(weights_bytes, max_threads))
        engine.use_thread()
        return engine

    def use_thread(self) -> None:
        """Make the calling thread the one that runs steps: each has a number of threads for an operation of its own."""
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)

    @property
    def max_request_tokens(self) -> int:
        """The longest prompt plus output that a request may have here."""
        return self._scheduler.max_request_tokens

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    @property
    def load_now(self) -> Load:
        """How full the engine is; another thread may see it a step late."""
        pool = self._scheduler.pool
        return Load(len(self._scheduler.running), len(self._scheduler.waiting), pool.num_used, pool.capacity)

    def make_request(self, prompt: str | Sequence[int], params: SamplingParams) -> Request:
        """A request ready for `add_request`. Safe in any thread.

        Raises RequestRefused when this engine could never run it.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        vocab_size = self.card.model.vocab_size
        wrong = next((token for token in (*ids, *params.stop_token_ids) if not 0 <= token < vocab_size), None)
        if wrong is not None:
            param = "prompt" if wrong in ids else "stop_token_ids"
            raise RequestRefused(
                f"{param} has the token id {wrong}, and the vocabulary ends at {vocab_size - 1}", param=param
            )
        eos_ids = frozenset[int]() if params.ignore_eos else self.tokenizer.eos_ids
        request = Request(next(self._ids), ids, params, eos_ids.union(params.stop_token_ids), self.clock())
        self._scheduler.check(request)
        return request

    def add_request(self, request: Request) -> None:
        """Queue a request of `make_request`."""
        self._texts[request.id] = _Text(TextStream(self.tokenizer), StopStrings(request.params.stop))
        self._scheduler.add(request)

    def cancel(self, request: Request) -> None:
        """Drop a request, waiting or running, and free its blocks now; nothing happens when it has ended."""
        if not request.finished:
            self._scheduler.finish(request, "cancelled")
            self._forget(request)

    def step(self) -> list[Output]:
        """Run one batch and return what it added to each request that got a token; empty when there is no work."""
        batch = self._scheduler.schedule()
        if batch is None:
            return []
        logits_NV = self._run(batch)
        requests = batch.sampled
        token_ids = sample(logits_NV, requests) if requests else []
        self._scheduler.commit(batch, token_ids)
        if isinstance(batch, Decode):
            self._inputs.advance(requests, token_ids)
        time_s = self.clock()
        self.stats.output_tokens += len(token_ids)
        return [self._read(request, token, time_s) for request, token in zip(requests, token_ids, strict=True)]

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """Complete prompts together, in order. Raises RequestRefused before anything runs."""
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        requests = [self.make_request(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
        texts: dict[int, list[str]] = {request.id: [] for request in requests}
        for request in requests:
            self.add_request(request)
        while not all(request.finished for request in requests):
            for output in self.step():
                texts.setdefault(output.request.id, []).append(output.text)
        return [_complete(request, "".join(texts[request.id])) for request in requests]

    def check_integrity(self) -> None:
        """Raise AssertionError when blocks and requests disagree."""
        self._scheduler.check_integrity()
        queued = {request.id for request in (*self._scheduler.running, *self._scheduler.waiting)}
        if queued != self._texts.keys():
            raise AssertionError("texts are kept for other requests than those queued")

    def _run(self, batch: Batch) -> Tensor:
        if isinstance(batch, Prefill):
            self.stats.prefill_steps += 1
            self.stats.prompt_tokens += sum(chunk.length for chunk in batch.chunks)
            return self._programs.prefill(*prefill_tensors(batch.chunks, self.card.kv_cache.tokens_per_block))
        self.stats.decode_steps += 1
        return self._programs.decode(*self._inputs.tensors(batch.requests))

    def _read(self, request: Request, token_id: int, time_s: float) -> Output:
        """Turn one new token into text, and end the request at a stop string."""
        text = self._texts[request.id]
        piece, stopped = text.push(token_id, last=request.finished, shown=request.finish_reason != "stop")
        if stopped:
            self._scheduler.finish(request, "stop")
            request.finish_reason = "stop"
        if request.finished:
            self._forget(request)
        return Output(request, (token_id,), piece, request.finish_reason, time_s)

    def _forget(self, request: Request) -> None:
        del self._texts[request.id]
        if request.finish_reason is not None:
            self.stats.finished[request.finish_reason] += 1


@dataclass(frozen=True, slots=True)
class _Text:
    stream: TextStream
    stops: StopStrings

    def push(self, token_id: int, *, last: bool, shown: bool) -> tuple[str, bool]:
        """The text to give out and whether a stop string was met. The token that ends a sequence is not `shown`."""
        piece = self.stream.push(token_id) if shown else ""
        if last:
            piece += self.stream.flush()
        piece, stopped = self.stops.push(piece)
        return (piece + self.stops.flush() if last and not stopped else piece), stopped


def _complete(request: Request, text: str) -> Completion:
    assert request.finish_reason is not None  # noqa: S101 - the caller waited for it
    return Completion(text, tuple(request.output_ids), request.finish_reason)
