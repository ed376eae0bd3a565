"""Answers in the shape of the OpenAI API, whole and in pieces."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trtx.runtime.request import Sampled
from trtx.runtime.tokenizer import Tokenizer
from trtx.serve.tool_calls import ToolAnswer

DONE_EVENT = "data: [DONE]\n\n"


@dataclass
class Choice:
    """One finished or growing answer, or a piece of one. `stop_reason` is the stop string or id that ended it.

    `prompt` are the tokens of the prompt where it is echoed with their logprobs, in the first piece alone; `is_fresh`
    until that has come.
    """

    text: str = ""
    num_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: list[Sampled] = field(default_factory=list)
    prompt: Sequence[Sampled] = ()
    is_fresh: bool = True


@dataclass(frozen=True)
class Usage:
    """Tokens of a request. A prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Reply(Protocol):
    """The two endpoints differ in how a choice looks; everything else is the same."""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The answer in one piece."""
        ...

    def opening(self, num_choices: int) -> list[dict[str, Any]]:
        """Choices of the first event of a stream, before any text; empty when there is no such event."""
        ...

    def piece(self, index: int, choice: Choice) -> dict[str, Any] | None:
        """One choice with what was added to it, None where that is nothing; pieces of a choice come in order."""
        ...

    def event(self, choices: Sequence[dict[str, Any]], **more: Any) -> str:
        """One server-sent event."""
        ...


@dataclass
class _Head:
    model: str
    id: str
    tokenizer: Tokenizer
    created: int = field(default_factory=lambda: int(time.time()))

    def _body(self, kind: str, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": list(choices), **more}

    def _text(self, token_id: int) -> str:
        return self.tokenizer.token_bytes(token_id).decode("utf-8", "replace")


class CompletionReply(_Head):
    """Answers of /v1/completions. `echoes` are texts that choices begin with, by index; `scored` says that these have
    logprobs, which come with the first piece."""

    def __init__(
        self,
        model: str,
        request_id: str,
        tokenizer: Tokenizer,
        echoes: Sequence[str] = (),
        *,
        scored: bool = False,
    ) -> None:
        super().__init__(model, f"cmpl-{request_id}", tokenizer)
        self._echoes = echoes
        self._scored = scored
        self._offsets: dict[int, int] = {}

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        listed = [self._piece(i, choice) for i, choice in enumerate(choices)]
        if not self._scored:
            for i, echo in enumerate(self._echoes):
                listed[i]["text"] = echo + listed[i]["text"]
        return self._body("text_completion", listed, usage=usage.as_json())

    def opening(self, num_choices: int) -> list[dict[str, Any]]:
        if self._scored:
            return []
        return [self._piece(i, Choice(echo)) for i, echo in enumerate(self._echoes)]

    def piece(self, index: int, choice: Choice) -> dict[str, Any] | None:
        told = choice.text or choice.finish_reason or choice.logprobs or choice.prompt
        return self._piece(index, choice) if told else None

    def _piece(self, index: int, choice: Choice) -> dict[str, Any]:
        text, logprobs = choice.text, None
        if choice.prompt:
            text = self._echoes[index] + text
            self._skip_special(index, choice.prompt[0])
        if choice.prompt or choice.logprobs:
            logprobs = self._list(index, [*choice.prompt, *choice.logprobs])
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _skip_special(self, index: int, first: Sampled) -> None:
        """A token that the tokenizer puts before every text is not in the text that is echoed."""
        token = self._text(first.token_id)
        if not self._echoes[index].startswith(token):
            self._offsets[index] = -len(token)

    def event(self, choices: Sequence[dict[str, Any]], **more: Any) -> str:
        return make_event(self._body("text_completion", choices, **more))

    def _list(self, index: int, chosen: Sequence[Sampled]) -> dict[str, Any]:
        """`text_offset` counts characters of the choice's text, by the texts of its tokens one by one."""
        tokens = [self._text(sampled.token_id) for sampled in chosen]
        offsets, at = [], self._offsets.get(index, 0)
        for token in tokens:
            offsets.append(max(at, 0))
            at += len(token)
        self._offsets[index] = at
        # The first token of a prompt comes after nothing and has no logprob.
        tops = [{self._text(token): logprob for token, logprob in sampled.top} or None for sampled in chosen]
        return {
            "tokens": tokens,
            "token_logprobs": [sampled.logprob for sampled in chosen],
            "top_logprobs": tops if any(tops) else None,
            "text_offset": offsets,
        }


class ChatReply(_Head):
    """Answers of /v1/chat/completions. `take_apart` makes what finds the tool calls of one choice."""

    def __init__(
        self, model: str, request_id: str, tokenizer: Tokenizer, take_apart: Callable[[], ToolAnswer] | None = None
    ) -> None:
        super().__init__(model, f"chatcmpl-{request_id}", tokenizer)
        self._take_apart = take_apart
        self._answers: dict[int, ToolAnswer] = {}

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        listed = [self._whole(i, choice) for i, choice in enumerate(choices)]
        return self._body("chat.completion", listed, usage=usage.as_json())

    def _whole(self, index: int, choice: Choice) -> dict[str, Any]:
        text, calls, reason = self._read(index, choice)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message["content"] = text or None
            message["tool_calls"] = [{name: call[name] for name in call if name != "index"} for call in calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self._list(choice.logprobs),
            "finish_reason": reason,
            "stop_reason": choice.stop_reason,
        }

    def _read(self, index: int, choice: Choice) -> tuple[str, list[dict[str, Any]], str | None]:
        """The content and the tool calls that a piece adds, and how the answer ended with it."""
        if self._take_apart is None:
            return choice.text, [], choice.finish_reason
        answer = self._answers.setdefault(index, self._take_apart())
        text, calls = answer.take(choice.text, ended=choice.finish_reason is not None)
        return text, calls, answer.end_reason(choice.finish_reason)

    def opening(self, num_choices: int) -> list[dict[str, Any]]:
        return [self._delta(i, {"role": "assistant", "content": ""}, Choice()) for i in range(num_choices)]

    def piece(self, index: int, choice: Choice) -> dict[str, Any] | None:
        text, calls, reason = self._read(index, choice)
        delta: dict[str, Any] = ({"content": text} if text else {}) | ({"tool_calls": calls} if calls else {})
        if not delta and reason is None and not choice.logprobs:
            return None
        return self._delta(index, delta, choice) | {"finish_reason": reason}

    def event(self, choices: Sequence[dict[str, Any]], **more: Any) -> str:
        return make_event(self._body("chat.completion.chunk", choices, **more))

    def _delta(self, index: int, delta: dict[str, Any], choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._list(choice.logprobs),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _list(self, chosen: Sequence[Sampled]) -> dict[str, Any] | None:
        if not chosen:
            return None
        content = [
            self._token(sampled.token_id, sampled.logprob)
            | {"top_logprobs": [self._token(token_id, logprob) for token_id, logprob in sampled.top]}
            for sampled in chosen
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        raw = self.tokenizer.token_bytes(token_id)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


def make_event(body: dict[str, Any]) -> str:
    """One server-sent event: https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
