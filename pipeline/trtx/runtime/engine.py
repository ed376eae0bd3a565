"""The engine: requests in, tokens out, one step at a time.

A step is schedule → tensors → program → sample → text. The plain loop does that in this order. The overlapped loop
does the same work in another: while a program runs in a thread of its own, the next step is planned as if nothing
ended, and the text of the last one is made. It gives the same outputs and is held equal by test. What ended meanwhile,
by a token, a stop string or a cancellation, may be computed once more; nothing of that is ever seen.

An engine belongs to one thread (see owner.py); `make_request` alone may be called from any.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from trtx.hardware.host import count_cpus
from trtx.runtime.admission import check_ids, find_banned_ids
from trtx.runtime.batch import Batch, Chunk
from trtx.runtime.blocks import BlockPool
from trtx.runtime.card import load_card
from trtx.runtime.fit import check_machine
from trtx.runtime.folders import find_folders
from trtx.runtime.inputs import InputBuilder, StepInputs
from trtx.runtime.memory import PoolSize, blocks_per_sequence
from trtx.runtime.program import Programs, load_programs
from trtx.runtime.request import FinishReason, Output, Request, Sampled, SamplingParams
from trtx.runtime.sampler import sample, score
from trtx.runtime.scheduler import Scheduler, SchedulerSettings
from trtx.runtime.stats import EngineStats, Load, StepStats
from trtx.runtime.text import OutputText
from trtx.runtime.threads import choose_num_threads
from trtx.runtime.tokenizer import Tokenizer
from trtx.runtime.worker import ProgramThread

DEFAULT_MEMORY_FRACTION = 0.9
# Logits of prompt tokens in one step, in numbers (128 MiB).
MAX_SCORED_LOGITS = 1 << 25


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request of `Engine.generate`."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(slots=True)
class Step:
    """A step on its way: what was planned, and its figures as far as they are known."""

    batch: Batch
    inputs: StepInputs
    planned_s: float
    stats: StepStats


class Engine:
    """Programs, scheduler and tokenizer put together.

    `overlap` runs programs in a thread of their own. `num_threads` is for one operation; None leaves it to torch.
    `clock` gives seconds; only differences count.
    """

    def __init__(
        self,
        programs: Programs,
        tokenizer: Tokenizer,
        *,
        settings: SchedulerSettings = SchedulerSettings(),  # noqa: B008 - frozen
        overlap: bool = False,
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
        size = card.kv_cache.tokens_per_block
        max_scored = max(1, MAX_SCORED_LOGITS // card.model.vocab_size)
        self._scheduler = Scheduler(BlockPool(programs.num_blocks), card.limits, size, settings, max_scored)
        self._inputs = InputBuilder(card.limits.max_batch_size, blocks_per_sequence(card), size)
        self._worker = ProgramThread(programs, num_threads) if overlap else None
        self._under_way: Step | None = None
        # When the last program ended, while there is something to do.
        self._last_end_s: float | None = None
        self._texts: dict[int, OutputText] = {}
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
        settings: SchedulerSettings = SchedulerSettings(),  # noqa: B008 - frozen
        overlap: bool = False,
    ) -> Engine:
        """Load a ready engine folder, a deployment folder around one, or a build output with `weights` elsewhere.

        The KV cache takes `kv_cache_bytes`, or else what is left of `memory_fraction` of the memory available now: on a
        processor less the weights, on a GPU less all that the engine takes when it runs its largest step.
        `verify` compares the programs' digests with the card before they are mapped. `settings` and `overlap` say how
        requests are put into steps, and whether the engine works while programs run.

        Raises UsageProblem for a folder that is none of these, EnvironmentProblem when the engine does not fit this
        machine or its memory, VerificationFailed when the parts are damaged or do not belong together.
        """
        folders = find_folders(folder, weights)
        card = load_card(folders.engine)
        check_machine(card)
        tokenizer = Tokenizer.load(folders.tokenizer)
        weights_bytes = folders.weights_bytes(card)
        size = PoolSize(kv_cache_bytes, memory_fraction, weights_bytes)
        # torch obeys OMP_NUM_THREADS, else counts cores; a container may have fewer processors than its machine cores.
        cpus = min(torch.get_num_threads(), count_cpus(Path("/proc"), Path("/sys/fs/cgroup")))
        max_threads = max(1, cpus // card.rank.tensor)
        programs = load_programs(folders.engine, folders.weights, size, verify=verify)
        if card.compiled_for.device == "cuda":
            from trtx.runtime.device_engine import DeviceEngine

            return DeviceEngine(programs, tokenizer, settings=settings)
        num_threads = choose_num_threads(weights_bytes, max_threads)
        engine = cls(programs, tokenizer, settings=settings, overlap=overlap, num_threads=num_threads)
        engine.use_thread()
        return engine

    def use_thread(self) -> None:
        """Make the calling thread the one that runs steps: each has a number of threads for an operation of its own."""
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)

    def when_broken(self, tell: Callable[[Exception], None]) -> None:
        """Have `tell` called once, from any thread, when programs break by themselves, in a step or between two."""
        watch = getattr(self._programs, "when_broken", None)
        if watch is not None:
            watch(tell)

    @property
    def max_request_tokens(self) -> int:
        """The longest prompt plus output that a request may have here."""
        return self._scheduler.max_request_tokens

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting or self._under_way)

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
        check_ids(ids, params, self.card.model.vocab_size)
        eos_ids = frozenset[int]() if params.ignore_eos else self.tokenizer.eos_ids
        stop_ids, banned_ids = eos_ids.union(params.stop_token_ids), find_banned_ids(params, self.tokenizer)
        request = Request(next(self._ids), ids, params, stop_ids, self.clock(), banned_ids)
        self._scheduler.check(request)
        return request

    def add_request(self, request: Request) -> None:
        """Queue a request of `make_request`."""
        self._texts[request.id] = OutputText(self.tokenizer, request)
        self._scheduler.add(request)

    def cancel(self, request: Request) -> None:
        """Drop a request, waiting or running, and free its blocks now; nothing happens when it has ended."""
        if not request.finished:
            self._scheduler.finish(request, "cancelled")
            self._forget(request)

    def step(self) -> list[Output]:
        """Run one batch and return what it added to each request that got a token; empty when there is no work."""
        outputs = self._step_plain() if self._worker is None else self._step_overlapped(self._worker)
        if not self.has_work:
            self._last_end_s = None
        return outputs

    def _step_plain(self) -> list[Output]:
        step = self._plan()
        if step is None:
            return []
        step.inputs.fill(step.batch.decodes)
        began_s = perf_counter()
        logits_NV = self._programs.step(*step.inputs.tensors())
        self._time(step, began_s, perf_counter())
        return self._read(step, self._choose(step, logits_NV))

    def _step_overlapped(self, worker: ProgramThread) -> list[Output]:
        step = self._under_way or self._launch(worker, self._plan())
        if step is None:
            return []
        following = self._plan()
        self._under_way = None
        logits_NV, began_s, ended_s = worker.result()
        self._time(step, began_s, ended_s)
        chosen = self._choose(step, logits_NV)
        self._under_way = self._launch(worker, following)
        return self._read(step, chosen)

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

    def _plan(self) -> Step | None:
        """The next step, up to the tokens that are not known yet."""
        scheduler, planned_s = self._scheduler, perf_counter()
        batch = scheduler.schedule()
        if batch is None:
            return None
        for chunk in batch.chunks:
            if chunk.request.started_s is None:
                chunk.request.started_s = self.clock()
        scheduled_s = perf_counter()
        inputs = self._inputs.make(batch)
        stats = StepStats(
            prompt_tokens=batch.num_chunk_tokens,
            cached_tokens=batch.num_cached,
            batch_size=len(batch.decodes) + len(batch.chunks),
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_blocks_used=scheduler.pool.num_used,
            paused=batch.num_paused,
            schedule_s=scheduled_s - planned_s,
            inputs_s=perf_counter() - scheduled_s,
        )
        return Step(batch, inputs, planned_s, stats)

    def _launch(self, worker: ProgramThread, step: Step | None) -> Step | None:
        """Start a step that was planned, unless all its requests have ended since."""
        if step is None:
            return None
        requests = (*step.batch.decodes, *(chunk.request for chunk in step.batch.chunks))
        if all(request.finish_reason is not None for request in requests):
            return None
        step.inputs.fill(step.batch.decodes)
        worker.submit(step.inputs.tensors())
        return step

    def _time(self, step: Step, began_s: float, ended_s: float) -> None:
        since_s = step.planned_s if self._last_end_s is None else self._last_end_s
        step.stats.step_s, step.stats.program_s = ended_s - since_s, ended_s - began_s
        self._last_end_s = ended_s

    def _choose(self, step: Step, logits_NV: Tensor) -> list[tuple[Request, Sampled]]:
        """Sample a token for every request that has not ended meanwhile, and record them."""
        started_s = perf_counter()
        requests: Sequence[Request] = step.batch.sampled
        if scored := step.batch.scored:
            _score(scored, logits_NV[len(requests) :])
            logits_NV = logits_NV[: len(requests)]
        live = [row for row, request in enumerate(requests) if request.finish_reason is None]
        if len(live) < len(requests):
            requests, logits_NV = [requests[row] for row in live], logits_NV[live]
        sampled = sample(logits_NV, requests) if requests else []
        sampled_s = perf_counter()
        self._scheduler.commit(step.batch, requests, [one.token_id for one in sampled])
        step.stats.output_tokens = (
            sum(request.params.max_tokens > 0 for request in requests) if scored else len(sampled)
        )
        step.stats.sample_s, step.stats.commit_s = sampled_s - started_s, perf_counter() - sampled_s
        return list(zip(requests, sampled, strict=True))

    def _read(self, step: Step, chosen: Sequence[tuple[Request, Sampled]]) -> list[Output]:
        """The text of a step's tokens."""
        started_s, time_s = perf_counter(), self.clock()
        outputs = [self._read_one(request, sampled, time_s) for request, sampled in chosen]
        step.stats.end_s, step.stats.text_s = time_s, perf_counter() - started_s
        self.stats.add(step.stats)
        return outputs

    def _read_one(self, request: Request, sampled: Sampled, time_s: float) -> Output:
        """Turn one new token into text, and end the request at a stop string."""
        if request.params.max_tokens == 0:
            self._forget(request)
            return Output(request, (), "", request.finish_reason, time_s)
        piece, stop = self._texts[request.id].push(sampled.token_id)
        if stop is not None:
            self._scheduler.finish(request, "stop")
            request.finish_reason, request.stop_reason = "stop", stop
        if request.finish_reason is not None:
            self._forget(request)
        logprobs = (sampled,) if request.params.logprobs is not None else ()
        return Output(request, (sampled.token_id,), piece, request.finish_reason, time_s, logprobs)

    def _forget(self, request: Request) -> None:
        del self._texts[request.id]
        if request.finish_reason is not None:
            self.stats.finished[request.finish_reason] += 1


def _score(chunks: Sequence[Chunk], logits_NV: Tensor) -> None:
    """Note how likely the prompts' tokens were; what a request that was paused computes again is known already."""
    first = 0
    for chunk in chunks:
        request, start, count = chunk.request, chunk.start, chunk.num_scored
        known = max(0, len(request.prompt_scores) - start)
        if known < count and request.finish_reason is None:
            expected = request.prompt_ids[start + known + 1 : start + count + 1]
            rows_NV = logits_NV[first + known : first + count]
            request.prompt_scores += score(rows_NV, expected, request.params.prompt_logprobs or 0)
        first += count


def _complete(request: Request, text: str) -> Completion:
    assert request.finish_reason is not None  # noqa: S101 - the caller waited for it
    return Completion(text, tuple(request.output_ids), request.finish_reason)
