"""What an engine counts. Imports no torch."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import get_args

from trtx.runtime.request import FinishReason

# Steps that are remembered one by one.
MAX_STEPS = 1000


@dataclass(slots=True)
class StepStats:
    """One step: what it computed, how full the engine was when it was planned, and where its time went.

    `prompt_tokens` were computed in chunks, those of paused requests among them; `cached_tokens` were found in the pool
    instead; `output_tokens` were sampled. `paused` requests lost their blocks to this step.

    Times are in seconds. `step_s` goes from the end of the last step's program to the end of this one's, or from the
    beginning of its planning when the engine had nothing to do before: what it has over `program_s` is what the
    program waited for. The other parts are the engine's own work, which an overlapped loop does while programs run.
    `end_s` is the clock at the end.
    """

    end_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    batch_size: int = 0
    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    paused: int = 0
    step_s: float = 0.0
    schedule_s: float = 0.0
    inputs_s: float = 0.0
    program_s: float = 0.0
    sample_s: float = 0.0
    commit_s: float = 0.0
    text_s: float = 0.0


@dataclass
class EngineStats:
    """Totals since the engine started, and its last steps. Written by the engine's thread; any other may read.

    `step_s` and `program_s` are sums of those of all steps.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    prefill_steps: int = 0
    decode_steps: int = 0
    paused: int = 0
    step_s: float = 0.0
    program_s: float = 0.0
    finished: Counter[FinishReason] = field(default_factory=lambda: Counter(dict.fromkeys(get_args(FinishReason), 0)))
    steps: deque[StepStats] = field(default_factory=lambda: deque(maxlen=MAX_STEPS))

    @property
    def overhead(self) -> float:
        """Part of the time of all steps in which no program ran."""
        return 1 - self.program_s / self.step_s if self.step_s else 0.0

    def add(self, step: StepStats) -> None:
        """Count a step that has ended. A step with prompt tokens is a prefill step, whatever else it computes."""
        self.prompt_tokens += step.prompt_tokens
        self.cached_tokens += step.cached_tokens
        self.output_tokens += step.output_tokens
        if step.prompt_tokens:
            self.prefill_steps += 1
        else:
            self.decode_steps += 1
        self.paused += step.paused
        self.step_s += step.step_s
        self.program_s += step.program_s
        self.steps.append(step)


@dataclass(frozen=True)
class Load:
    """How full an engine is at one moment."""

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks: int
