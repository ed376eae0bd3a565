"""Answers in the shape of the OpenAI API, whole and in pieces."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

DONE_EVENT = "data: [DONE]\n\n"


@dataclass
class Choice:
    """One finished or growing answer."""

    text: str = ""
    num_tokens: int = 0
    finish_reason: str | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of a request, over all its prompts and choices."""

    prompt_tokens: int
    completion_tokens: int

    def as_json(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


class Reply(Protocol):
    """The two endpoints differ in how a choice looks; everything else is the same."""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The answer in one piece."""
        ...

    def opening(self) -> list[dict[str, Any]]:
        """Choices of the first event of a stream, before any text; empty when there is no such event."""
        ...

    def piece(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        """One choice with the text that was added to it."""
        ...

    def event(self, choices: Sequence[dict[str, Any]], **more: Any) -> str:
        """One server-sent event."""
        ...


@dataclass(frozen=True)
class _Head:
    model: str
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def _body(self, kind: str, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": list(choices), **more}


class CompletionReply(_Head):
    """Answers of /v1/completions."""

    def __init__(self, model: str) -> None:
        super().__init__(model, f"cmpl-{uuid.uuid4().hex}")

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        listed = [self.piece(i, choice.text, choice.finish_reason) for i, choice in enumerate(choices)]
        return self._body("text_completion", listed, usage=usage.as_json())

    def opening(self) -> list[dict[str, Any]]:
        return []

    def piece(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def event(self, choices: Sequence[dict[str, Any]], **more: Any) -> str:
        return make_event(self._body("text_completion", choices, **more))


class ChatReply(_Head):
    """Answers of /v1/chat/completions."""

    def __init__(self, model: str) -> None:
        super().__init__(model, f"chatcmpl-{uuid.uuid4().hex}")

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        listed = [
            {
                "index": i,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for i, choice in enumerate(choices)
        ]
        return self._body("chat.completion", listed, usage=usage.as_json())

    def opening(self) -> list[dict[str, Any]]:
        return [self._delta(0, {"role": "assistant", "content": ""}, None)]

    def piece(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return self._delta(index, {"content": text} if text else {}, finish_reason)

    def event(self, choices: Sequence[dict[str, Any]], **more: Any) -> str:
        return make_event(self._body("chat.completion.chunk", choices, **more))

    def _delta(self, index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def make_event(body: dict[str, Any]) -> str:
    """One server-sent event: https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
