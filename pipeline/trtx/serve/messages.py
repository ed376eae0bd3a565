"""Messages of a conversation as the OpenAI API has them, and as chat templates know them."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError


def _check_text(text: str) -> str:
    # JSON can escape half a surrogate pair; no tokenizer can read that.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("text", "text must be valid Unicode") from error
    return text


Text = Annotated[str, AfterValidator(_check_text)]


class TextPart(BaseModel):
    """A part of a message; this server reads text only."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One message. Text parts are joined by line breaks, because chat templates expect one text.

    An assistant's message may have `tool_calls` in place of content; a tool's says which one it answers.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: Text | None = None
    content: Annotated[Text | list[TextPart] | None, Field(validate_default=True)] = None
    name: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        """Clients send their own answers back with fields that are null, such as `refusal`."""
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data

    @field_validator("tool_calls", "tool_call_id")
    @classmethod
    def _belong_to_role(cls, value: Any, info: ValidationInfo) -> Any:
        role = "assistant" if info.field_name == "tool_calls" else "tool"
        if "role" in info.data and info.data["role"] != role:
            raise PydanticCustomError("role", "only messages of role {role} have it", {"role": role})
        return value

    @field_validator("content")
    @classmethod
    def _has_content(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and not info.data.get("tool_calls"):
            raise PydanticCustomError("content", "Field required")
        return value

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it: arguments of tool calls are objects, not JSON in a text."""
        parts = self.content or ""
        message: dict[str, Any] = {
            "role": self.role,
            "content": parts if isinstance(parts, str) else "\n".join(part.text for part in parts),
        }
        if self.tool_calls:
            message["tool_calls"] = [_open_arguments(call) for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message | ({"name": self.name} if self.name is not None else {})


def _open_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    with suppress(ValueError):
        return call | {"function": function | {"arguments": json.loads(function["arguments"])}}
    return call
