"""Requests: what is asked for, how far it is, how it ended. Imports no torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from trtx.errors import UsageProblem

# stop: an end-of-sequence token, a stop token or a stop string; length: max_tokens; cancelled: nobody waits any more.
FinishReason = Literal["stop", "length", "cancelled"]


class RequestRefused(UsageProblem):
    """A request that this engine cannot serve, now or ever; `param` names the field at fault."""

    def __init__(self, what: str, *, param: str, why: str = "", fix: str = "", code: str | None = None) -> None:
        super().__init__(what, why=why, fix=fix)
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when to stop.

    `temperature` 0 takes the most likely token. `top_k` 0 and `top_p` 1 leave all tokens in play. With a `seed` the
    same request gives the same tokens whatever runs beside it. `stop` strings end the text before the string.
    `stop_token_ids` end it like the model's own end-of-sequence tokens, which `ignore_eos` turns off.

    Raises RequestRefused for a value out of range.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check(self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens)
        _check(0 <= self.temperature < float("inf"), "temperature", "0 or more", self.temperature)
        _check(self.top_k >= 0, "top_k", "0 (off) or more", self.top_k)
        _check(0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _check(all(self.stop), "stop", "non-empty strings", list(self.stop))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _check(condition: bool, param: str, wanted: str, value: object) -> None:
    if not condition:
        raise RequestRefused(f"{param} must be {wanted}, not {value}", param=param)


@dataclass(slots=True, eq=False, weakref_slot=True)
class Request:
    """One sequence on its way through the engine; changed by the scheduler only.

    `num_computed` tokens have their keys and values in the pool; `block_ids` are the blocks that hold them, in
    order. `stop_ids` are all token ids that end the sequence. `random` draws one number in [0, 1) per sampled token.
    """

    id: int
    prompt_ids: Sequence[int]
    params: SamplingParams
    stop_ids: frozenset[int]
    arrival_s: float
    output_ids: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    finish_reason: FinishReason | None = None
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.params.seed)

    @property
    def max_computed(self) -> int:
        """Tokens whose keys and values are ever stored: all but the last one sampled, which nothing attends to."""
        return len(self.prompt_ids) + self.params.max_tokens - 1

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def append(self, token_id: int) -> None:
        """Take the next token, and end when it is a stop token or the last one allowed."""
        self.output_ids.append(token_id)
        if token_id in self.stop_ids:
            self.finish_reason = "stop"
        elif len(self.output_ids) == self.params.max_tokens:
            self.finish_reason = "length"


@dataclass(frozen=True, slots=True)
class Output:
    """What one step, or some in a row, added to one request.

    `text` may be empty while a character or a possible stop string is incomplete. `time_s` is on the engine's clock.
    """

    request: Request
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    time_s: float

    def joined(self, later: Output) -> Output:
        """This output and a later one of the same request as one."""
        return Output(
            self.request, self.token_ids + later.token_ids, self.text + later.text, later.finish_reason, later.time_s
        )
