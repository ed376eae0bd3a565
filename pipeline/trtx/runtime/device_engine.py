"""The engine over a device that computes by itself: the next step is started before the last one's tokens are known.

A step's tokens stay on the device, where the next step takes them from. So the device never waits for the host: while
it computes one step, the host plans and starts the next, and then reads the tokens of the one before. Requests that
ended by them are computed once more, and nothing of that is ever seen. Steps with requests whose tokens the host has to
choose (penalties, logprobs) are waited for before the next is planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from torch import Tensor

from trtx.runtime.device_sampler import BROKEN, Draws, can_choose, make_draws
from trtx.runtime.engine import Engine, Step
from trtx.runtime.inputs import StepInputs
from trtx.runtime.program import Programs
from trtx.runtime.request import Output, Request, RequestRefused, Sampled, SamplingParams
from trtx.runtime.sampler import LogitsBroken, sample
from trtx.runtime.staging import KNOWN


class Pending(Protocol):
    """A step on its way."""

    logits_NV: Tensor

    def tokens(self) -> list[int]: ...


class DevicePrograms(Programs, Protocol):
    """Programs that start a step and go on; see trtx.runtime.cuda."""

    def submit(self, inputs: StepInputs, sources: Sequence[int], draws: Draws | None = None) -> Pending: ...


@dataclass(slots=True)
class _Flight:
    """A step that was started, the rows of its requests, and whether the device chooses all its tokens."""

    step: Step
    pending: Pending
    requests: tuple[Request, ...]
    is_chosen: bool
    began_s: float


class DeviceEngine(Engine):
    """An Engine whose programs are a device's. Its loop is the only one; `overlap` means nothing here."""

    _programs: DevicePrograms
    _flight: _Flight | None = None

    def make_request(self, prompt: str | Sequence[int], params: SamplingParams) -> Request:
        """As Engine's. Raises RequestRefused also for `prompt_logprobs`: a step keeps no logits for them."""
        if params.prompt_logprobs is not None:
            raise RequestRefused(
                "this engine does not give the probabilities of the prompt's tokens",
                param="prompt_logprobs",
                why="its steps keep the logits of a sequence's last token alone on the GPU",
                fix="ask without prompt_logprobs (over HTTP: echo with max_tokens and without logprobs)",
            )
        return super().make_request(prompt, params)

    @property
    def has_work(self) -> bool:
        return super().has_work or self._flight is not None

    def step(self) -> list[Output]:
        """Start a step and return what the one before it added; empty when there is no work."""
        flight = self._flight or self._start(None)
        if flight is None:
            return []
        self._flight = self._start(flight) if flight.is_chosen else None
        outputs = self._land(flight)
        if not self.has_work:
            self._last_end_s = None
        return outputs

    def _start(self, before: _Flight | None) -> _Flight | None:
        """Plan and start a step; `before` is the one under way, whose tokens are not known."""
        step = self._plan()
        if step is None:
            return None
        batch = step.batch
        step.inputs.fill(batch.decodes)
        sources: Sequence[int] = ()
        if before is not None:
            if before.requests is batch.decodes:
                sources = range(len(batch.decodes))
            else:
                rows = {request: row for row, request in enumerate(before.requests)}
                sources = [rows.get(request, KNOWN) for request in batch.decodes]
        requests = batch.sampled
        is_chosen = all(map(can_choose, requests))
        pending = self._programs.submit(step.inputs, sources, make_draws(requests))
        return _Flight(step, pending, requests, is_chosen, perf_counter())

    def _land(self, flight: _Flight) -> list[Output]:
        """Wait for a step, also for one that gives no token, and hand its tokens out."""
        tokens = flight.pending.tokens()
        self._time(flight.step, flight.began_s, perf_counter())
        live = [row for row, request in enumerate(flight.requests) if request.finish_reason is None]
        requests = [flight.requests[row] for row in live]
        if any(tokens[row] == BROKEN for row in live):
            raise LogitsBroken("the program returned logits that are not finite numbers")
        sampled = [Sampled(tokens[row]) for row in live]
        if not flight.is_chosen:
            self._choose_here(flight, live, sampled)
        self._scheduler.commit(flight.step.batch, requests, [one.token_id for one in sampled])
        flight.step.stats.output_tokens = len(sampled)
        return self._read(flight.step, list(zip(requests, sampled, strict=True)))

    def _choose_here(self, flight: _Flight, live: Sequence[int], sampled: list[Sampled]) -> None:
        """Let the host choose for the requests that the device cannot choose for."""
        asking = [(at, row) for at, row in enumerate(live) if not can_choose(flight.requests[row])]
        if asking:
            logits = flight.pending.logits_NV[[row for _, row in asking]].float().cpu()
            found = sample(logits, [flight.requests[row] for _, row in asking])
            for (at, _), one in zip(asking, found, strict=True):
                sampled[at] = one
