"""Requests: what is asked for, how far it is, how it ended. Imports no torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from trtx.runtime.params import RequestRefused, SamplingParams

if TYPE_CHECKING:
    from trtx.runtime.adjust import Adjustments

__all__ = ["FinishReason", "Output", "Request", "RequestRefused", "Sampled", "SamplingParams"]

# stop: an end-of-sequence token, a stop token or a stop string; length: max_tokens; cancelled: nobody waits any more;
# error: a logits processor of the request failed or left no token.
FinishReason = Literal["stop", "length", "cancelled", "error"]


class Sampled(NamedTuple):
    """A token that was chosen. The rest is there only where the request asks for `logprobs`.

    `logprob` and those in `top` are natural logarithms of the model's own distribution, before penalties, bias and
    temperature. `rank` is 1 for its most likely token. `top` has (token id, logprob) pairs, most likely first.
    """

    token_id: int
    logprob: float | None = None
    rank: int | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, eq=False, weakref_slot=True)
class Request:
    """One sequence on its way through the engine; changed by the scheduler only.

    `arrival_s` and `started_s`, when its first step was planned, are on the engine's clock.
    `stop_ids` are all token ids that end the sequence. `random` draws one number in [0, 1) per sampled token.
    `banned_ids` are token sequences that must not appear, those of `params.bad_words` among them. `stop_reason` is
    the stop string or the id of `params.stop_token_ids` that ended it. `failure` says why it ended by an error.

    For the scheduler: while a request runs, `block_ids` are its blocks in order; one that waits has none. Blocks are
    shared only with requests of the same `salt`. The first `num_kept` blocks hold tokens whose digests the pool knows;
    `digests` are those of its full blocks, as far as they were needed. After the steps planned so far `num_computed`
    tokens have their keys and values in the pool, and `num_pending` (0 to 2) more tokens will have been sampled than
    are known. `num_promised` blocks it may still take without asking. `num_cached` prompt tokens were found in the pool
    when it first started.

    `prompt_scores` has the prompt's tokens from the second on as if they had been chosen, as far as they were computed;
    nothing where `params.prompt_logprobs` does not ask for them.

    For the sampler: `is_adjusted` says that something comes between the logits and the choice other than temperature
    and cuts, which `adjustments` then carries out; `is_plain` that the largest logit is all that is asked for.
    """

    id: int
    prompt_ids: Sequence[int]
    params: SamplingParams
    stop_ids: frozenset[int]
    arrival_s: float
    banned_ids: Sequence[Sequence[int]] = ()
    salt: bytes = b""
    output_ids: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_pending: int = 0
    num_kept: int = 0
    num_promised: int = 0
    num_cached: int = 0
    num_preemptions: int = 0
    digests: list[bytes] = field(default_factory=list)
    started_s: float | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    failure: str | None = None
    prompt_scores: list[Sampled] = field(default_factory=list)
    adjustments: Adjustments | None = None
    random: random.Random = field(init=False)
    is_adjusted: bool = field(init=False)
    is_plain: bool = field(init=False)

    def __post_init__(self) -> None:
        params = self.params
        self.random = random.Random(params.seed)
        self.is_adjusted = params.adjusts or bool(self.banned_ids)
        self.is_plain = params.greedy and not self.is_adjusted and params.logprobs is None

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known so far."""
        return len(self.prompt_ids) + len(self.output_ids)

    def token_ids(self, start: int, end: int) -> Sequence[int]:
        """Tokens `start` … `end - 1` of prompt and output."""
        num_prompt = len(self.prompt_ids)
        if end <= num_prompt:
            return self.prompt_ids[start:end]
        outputs = self.output_ids[max(0, start - num_prompt) : end - num_prompt]
        return outputs if start >= num_prompt else [*self.prompt_ids[start:], *outputs]

    @property
    def max_computed(self) -> int:
        """Tokens whose keys and values are ever stored: all but the last one sampled, which nothing attends to."""
        return len(self.prompt_ids) + max(self.params.max_tokens, 1) - 1

    @property
    def scores_prompt(self) -> bool:
        """Whether the probabilities of the prompt's tokens are asked for."""
        return self.params.prompt_logprobs is not None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def append(self, token_id: int) -> None:
        """Take the next token, and end when it is a stop token or the last one allowed; none is where that is 0."""
        if self.params.max_tokens == 0:
            self.finish_reason = "length"
            return
        self.output_ids.append(token_id)
        if self.failure is not None:
            self.finish_reason = "error"
        elif token_id in self.stop_ids:
            self.finish_reason = "stop"
            if token_id in self.params.stop_token_ids:
                self.stop_reason = token_id
        elif len(self.output_ids) == self.params.max_tokens:
            self.finish_reason = "length"


@dataclass(frozen=True, slots=True)
class Output:
    """What one step, or some in a row, added to one request.

    `text` may be empty while a character or a possible stop string is incomplete. `time_s` is on the engine's clock.
    `logprobs` has one item per token where the request asks for them, and none otherwise.
    """

    request: Request
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    time_s: float
    logprobs: tuple[Sampled, ...] = ()

    def joined(self, later: Output) -> Output:
        """This output and a later one of the same request as one."""
        return Output(
            self.request,
            self.token_ids + later.token_ids,
            self.text + later.text,
            later.finish_reason,
            later.time_s,
            self.logprobs + later.logprobs,
        )
