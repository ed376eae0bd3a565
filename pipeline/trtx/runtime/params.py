"""What a request may ask of sampling, in the names that vLLM and TensorRT-LLM give it. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trtx.errors import UsageProblem

# The range of OpenAI's API; what lies beyond it does not read as text any more.
MAX_PENALTY = 2.0

# (token ids of prompt and output so far, logits [V] float32 on the CPU) → logits [V]; the argument may be changed.
LogitsProcessor = Callable[[list[int], Any], Any]


class RequestRefused(UsageProblem):
    """A request that this engine cannot serve, now or ever; `param` names the field at fault."""

    def __init__(self, what: str, *, param: str, why: str = "", fix: str = "", code: str | None = None) -> None:
        super().__init__(what, why=why, fix=fix)
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when to stop.

    Logits go through `logits_processors`, `repetition_penalty` (over prompt and output), `frequency_penalty` and
    `presence_penalty` (over the output), `logit_bias`, and the bans of `bad_words` and `min_tokens`. Of the outcome a
    `temperature` of 0 takes the largest; any other draws from softmax(logits / temperature) cut by `top_k`, `top_p`
    and `min_p`. `top_k` 0 or -1, `top_p` 1 and `min_p` 0 leave all tokens in play.

    With a `seed` the same request gives the same tokens whatever runs beside it. `n` choices have the seeds `seed`,
    `seed + 1`, ….

    `stop` strings end the text before the string, or after it with `include_stop_str_in_output`; `stop_token_ids` end
    it like the model's own end-of-sequence tokens, which `ignore_eos` turns off. Within the first `min_tokens` none of
    them does. `bad_words` and `bad_words_ids` (sequences of token ids) never appear in the output.

    `logprobs` asks for the logarithm of each chosen token's probability, and of so many most likely ones;
    `prompt_logprobs` for the same of the prompt's tokens, all of which are then computed, whatever the KV cache holds
    of them. With it `max_tokens` may be 0: nothing is generated. Without `detokenize` there is no text. A single text
    or id may stand for a list of one, and None for an empty one.

    Raises RequestRefused for a value out of range.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    n: int = 1
    best_of: int | None = None
    min_tokens: int = 0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    bad_words: Sequence[str] = ()
    bad_words_ids: Sequence[Sequence[int]] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    detokenize: bool = True
    logits_processors: Sequence[LogitsProcessor] = ()

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids", "bad_words", "logits_processors"):
            object.__setattr__(self, name, _as_tuple(getattr(self, name)))
        object.__setattr__(self, "bad_words_ids", tuple(tuple(ids) for ids in self.bad_words_ids or ()))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        self._check_ranges()
        self._check_stops()
        if self.best_of not in (None, self.n):
            raise RequestRefused(
                "best_of is not supported: every choice that is generated is returned",
                param="best_of",
                fix="ask for as many choices with n",
            )

    def _check_ranges(self) -> None:
        least = 1 if self.prompt_logprobs is None else 0
        _check(self.max_tokens >= least, "max_tokens", f"at least {least}", self.max_tokens)
        number = self.prompt_logprobs
        _check(number is None or number >= 0, "prompt_logprobs", "0 or more", number)
        _check(0 <= self.temperature < math.inf, "temperature", "0 or more", self.temperature)
        _check(self.top_k >= -1, "top_k", "0 (off) or more", self.top_k)
        _check(0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _check(0 <= self.min_p <= 1, "min_p", "0 to 1", self.min_p)
        _check(0 < self.repetition_penalty < math.inf, "repetition_penalty", "above 0", self.repetition_penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(abs(value) <= MAX_PENALTY, name, f"{-MAX_PENALTY:g} to {MAX_PENALTY:g}", value)
        _check(all(map(math.isfinite, self.logit_bias.values())), "logit_bias", "finite numbers", dict(self.logit_bias))
        _check(self.n >= 1, "n", "at least 1", self.n)
        _check(self.logprobs is None or self.logprobs >= 0, "logprobs", "0 or more", self.logprobs)

    def _check_stops(self) -> None:
        _check(0 <= self.min_tokens <= self.max_tokens, "min_tokens", "0 to max_tokens", self.min_tokens)
        _check(all(self.stop), "stop", "non-empty strings", list(self.stop))
        _check(all(self.bad_words), "bad_words", "non-empty strings", list(self.bad_words))
        _check(all(self.bad_words_ids), "bad_words_ids", "non-empty sequences of ids", list(self.bad_words_ids))
        _check(self.detokenize or not self.stop, "stop", "left out when detokenize is off", list(self.stop))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalizes(self) -> bool:
        """Whether tokens that occurred count for the next one."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def adjusts(self) -> bool:
        """Whether anything comes between the logits and the choice, other than temperature and cuts."""
        return bool(
            self.logits_processors or self.penalizes or self.logit_bias or self.min_tokens or self.bad_words_ids
        )

    def choices(self) -> list[SamplingParams]:
        """The parameters of each of the `n` choices, to be run as requests of their own."""
        if self.n == 1:
            return [self]
        seeds = [None if self.seed is None else self.seed + index for index in range(self.n)]
        return [replace(self, n=1, best_of=None, seed=seed) for seed in seeds]


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str | int) or callable(value) else tuple(value)


def _check(condition: bool, param: str, wanted: str, value: object) -> None:
    if not condition:
        raise RequestRefused(f"{param} must be {wanted}, not {value}", param=param)
