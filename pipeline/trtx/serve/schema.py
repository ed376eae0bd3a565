"""Bodies of the OpenAI API: https://platform.openai.com/docs/api-reference. Nothing in them is ignored silently.

A field is either honoured, or accepted only with the value that means "as usual" (NEUTRAL), or one of those that
cannot change an answer (HARMLESS), or refused by name. Fields that OpenAI does not have: `top_k`, `stop_token_ids`,
`ignore_eos`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from trtx.errors import did_you_mean
from trtx.runtime.request import SamplingParams

# Fields that say who asks and why, or how to bill; they cannot change the answer of this server.
HARMLESS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")

# Field → the values that ask for nothing. Any other value is refused: this server cannot do it.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
}
NEUTRAL_COMPLETION = NEUTRAL | {"best_of": (None, 1), "echo": (None, False), "suffix": (None, "")}
NEUTRAL_CHAT = NEUTRAL | {
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
}

# OpenAI gives completions 16 tokens when nothing is said; a chat may fill the context.
DEFAULT_COMPLETION_TOKENS = 16


def _check_text(text: str) -> str:
    # JSON can escape half a surrogate pair; no tokenizer can read that.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("text", "text must be valid Unicode") from error
    return text


Text = Annotated[str, AfterValidator(_check_text)]


class StreamOptions(BaseModel):
    """`include_usage` adds a last event that counts tokens."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    include_usage: bool = False


class Body(BaseModel):
    """What both endpoints take. Ranges are checked once, by SamplingParams."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: Text | list[Text] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _settle_fields(cls, data: Any) -> Any:
        """Drop what asks for nothing and refuse what cannot be honoured."""
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name in cls.neutral:
                if not _is_one_of(value, cls.neutral[name]):
                    raise _field_error(name, f"{name} is not supported by this server: leave it out")
            elif name not in HARMLESS:
                known = [*cls.model_fields, *cls.neutral, *HARMLESS]
                raise _field_error(name, f"unknown field {name}: {did_you_mean(name, known)}")
        if kept.get("stream_options") is not None and not kept.get("stream"):
            raise _field_error("stream_options", "stream_options is only allowed together with stream")
        return kept

    def sampling(self, max_tokens: int) -> SamplingParams:
        """Parameters for the engine; OpenAI's defaults. Raises RequestRefused for a value out of range."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
        )

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def _split_prompts(prompt: Any) -> Any:
    """A text, texts, token ids or lists of token ids → a list of texts and lists of ids."""
    prompts = [prompt] if isinstance(prompt, str) or _is_ids(prompt) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) or _is_ids(p) for p in prompts):
        raise PydanticCustomError("prompt", "prompt must be a text, token ids, or a list of these, and not empty")
    return prompts


class CompletionBody(Body):
    """POST /v1/completions. Several prompts give several choices, in their order."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL_COMPLETION

    prompt: Annotated[list[Text | list[int]], BeforeValidator(_split_prompts)]

    @property
    def num_tokens(self) -> int:
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens


class TextPart(BaseModel):
    """A part of a message; this server reads text only."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One message. Text parts are joined by line breaks, because chat templates expect one text."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        """Clients send their own answers back with fields that are null, such as `refusal`."""
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data

    def for_template(self) -> dict[str, str]:
        """The message as chat templates know it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        return {"role": self.role, "content": text} | ({"name": self.name} if self.name is not None else {})


class ChatBody(Body):
    """POST /v1/chat/completions."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL_CHAT

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None

    @model_validator(mode="after")
    def _agree_on_length(self) -> ChatBody:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise _field_error("max_tokens", "max_tokens and max_completion_tokens contradict each other")
        return self

    @property
    def num_tokens(self) -> int | None:
        """The limit asked for; None for as many as there is room."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    # In Python True equals 1; in JSON it does not.
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)


def _field_error(field: str, message: str) -> PydanticCustomError:
    # pydantic fails on a name that UTF-8 cannot write.
    shown = {"field": field, "message": message}
    return PydanticCustomError(
        "field", "{message}", {k: v.encode(errors="backslashreplace").decode() for k, v in shown.items()}
    )
