"""What a caller gets: completions in the shapes that vLLM and TensorRT-LLM give them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trtx.runtime.request import FinishReason, Output, Request, Sampled
from trtx.runtime.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token where it could have come: its logarithmic probability, its rank from 1, and its text.

    `token_bytes` are what the token stands for in UTF-8; a character may be spread over several tokens.
    """

    logprob: float
    rank: int | None
    decoded_token: str
    token_bytes: bytes


# By token id: the chosen token, and the most likely ones.
PositionLogprobs = dict[int, Logprob]


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One choice as far as it has come. `text_diff` and `token_ids_diff` are what is new since the last look.

    `logprobs` has an item per token, and with `cumulative_logprob` is None where they were not asked for.
    `stop_reason` is the stop string or the stop token's id that ended it.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[PositionLogprobs] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    text_diff: str = ""
    token_ids_diff: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt and its choices. `prompt` is None when token ids were given. `finished`: all choices have ended.

    `prompt_logprobs` has an item per token of the prompt, None for the first; None where they were not asked for or are
    not all known yet.
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[PositionLogprobs | None] | None = None


class Choice:
    """One choice while it grows."""

    def __init__(self, index: int, request: Request, tokenizer: Tokenizer) -> None:
        self._index = index
        self._request = request
        self._tokenizer = tokenizer
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[PositionLogprobs] | None = None if request.params.logprobs is None else []
        self._total = 0.0
        self._seen_text = self._seen_tokens = 0
        self.finish_reason: FinishReason | None = None

    def add(self, output: Output) -> None:
        """Take one more output of the request."""
        if output.text:
            self._text.append(output.text)
        self._token_ids += output.token_ids
        self.finish_reason = output.finish_reason
        if self._logprobs is not None:
            for sampled in output.logprobs:
                self._logprobs.append(describe(sampled, self._tokenizer))
                self._total += sampled.logprob or 0.0

    def look(self) -> CompletionOutput:
        """All of it, and what is new since the last look."""
        text, new = "".join(self._text), self._token_ids[self._seen_tokens :]
        diff = text[self._seen_text :]
        self._text, self._seen_text, self._seen_tokens = [text], len(text), len(self._token_ids)
        return CompletionOutput(
            index=self._index,
            text=text,
            token_ids=list(self._token_ids),
            cumulative_logprob=None if self._logprobs is None else self._total,
            logprobs=None if self._logprobs is None else list(self._logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self._request.stop_reason,
            text_diff=diff,
            token_ids_diff=new,
        )


def describe_prompt(request: Request, tokenizer: Tokenizer) -> list[PositionLogprobs | None] | None:
    """The prompt's tokens and how likely each was after those before it, once all are known."""
    if not request.scores_prompt or len(request.prompt_scores) < len(request.prompt_ids) - 1:
        return None
    return [None, *(describe(sampled, tokenizer) for sampled in request.prompt_scores)]


def describe(sampled: Sampled, tokenizer: Tokenizer) -> PositionLogprobs:
    """The chosen token first, then the most likely ones that are others."""
    found: Sequence[tuple[int, float]] = [(sampled.token_id, sampled.logprob or 0.0), *sampled.top]
    ranks = {token_id: rank for rank, (token_id, _) in enumerate(sampled.top, 1)} | {sampled.token_id: sampled.rank}
    described: PositionLogprobs = {}
    for token_id, logprob in found:
        raw = tokenizer.token_bytes(token_id)
        described.setdefault(token_id, Logprob(logprob, ranks[token_id], raw.decode("utf-8", "replace"), raw))
    return described
