"""Bodies of the OpenAI API: https://platform.openai.com/docs/api-reference. Nothing in them is ignored silently.

A field is either honoured, or accepted only with the value that means "as usual" (NEUTRAL), or one of those that
cannot change an answer (HARMLESS), or refused by name. Fields that OpenAI does not have are named as in vLLM: `top_k`,
`min_p`, `repetition_penalty`, `min_tokens`, `stop_token_ids`, `ignore_eos`, `include_stop_str_in_output`,
`skip_special_tokens`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from trtx.errors import did_you_mean
from trtx.runtime.request import RequestRefused, SamplingParams
from trtx.serve.messages import Message, Text

# Fields that say who asks and why, or how to bill; they cannot change the answer of this server.
HARMLESS = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
)

# Field → the values that ask for nothing. Any other value is refused: this server cannot do it.
NEUTRAL_COMPLETION: dict[str, tuple[Any, ...]] = {"suffix": (None, "")}
NEUTRAL_CHAT: dict[str, tuple[Any, ...]] = {
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "moderation": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
}

# OpenAI's own limits.
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_BIAS = 100

# OpenAI gives completions 16 tokens when nothing is said; a chat may fill the context.
DEFAULT_COMPLETION_TOKENS = 16


def _refuse_strict(strict: bool | None) -> bool | None:
    if strict:
        raise PydanticCustomError("strict", "strict arguments cannot be guaranteed by this server: leave strict out")
    return strict


def _check_bias(bias: dict[str, float] | None) -> dict[str, float] | None:
    """Token ids are texts in JSON."""
    if bias is not None and not all(token.isascii() and token.isdigit() for token in bias):
        raise PydanticCustomError("logit_bias", "logit_bias must have token ids as its keys")
    if bias is not None and not all(abs(value) <= MAX_BIAS for value in bias.values()):
        raise PydanticCustomError("logit_bias", f"logit_bias must have values from {-MAX_BIAS} to {MAX_BIAS}")
    return bias


class StreamOptions(BaseModel):
    """`include_usage` adds a last event that counts tokens."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    include_usage: bool = False


class Body(BaseModel):
    """What both endpoints take. Ranges are checked once, by SamplingParams."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: Annotated[int, Field(le=MAX_CHOICES)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Annotated[dict[str, float] | None, AfterValidator(_check_bias)] = None
    seed: int | None = None
    stop: Text | list[Text] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
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
            if name in cls.neutral and not _is_one_of(value, cls.neutral[name]):
                raise _field_error(name, f"{name} is not supported by this server: leave it out")
            if name in cls.model_fields:
                kept[name] = value
            elif name not in cls.neutral and name not in HARMLESS:
                known = [*cls.model_fields, *cls.neutral, *HARMLESS]
                raise _field_error(name, f"unknown field {name}: {did_you_mean(name, known)}")
        if kept.get("stream_options") is not None and not kept.get("stream"):
            raise _field_error("stream_options", "stream_options is only allowed together with stream")
        return kept

    def sampling(self, max_tokens: int) -> SamplingParams:
        """Parameters for the engine; OpenAI's defaults. Raises RequestRefused for a value out of range."""
        given = {name: value for name in SAMPLED if (value := getattr(self, name)) is not None}
        if self.logit_bias:
            given["logit_bias"] = {int(token): value for token, value in self.logit_bias.items()}
        return SamplingParams(
            max_tokens=max_tokens, logprobs=self.num_logprobs, prompt_logprobs=self.num_prompt_logprobs, **given
        )

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Most likely tokens to list beside each chosen one; None for no logprobs at all."""

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The same for the tokens of the prompt."""
        return None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


# Fields that have the name and the meaning of a sampling parameter.
SAMPLED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
)


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
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: int | None = None

    def sampling(self, max_tokens: int) -> SamplingParams:
        if self.best_of not in (None, self.n or 1):
            raise RequestRefused("best_of is not supported: ask for choices with n", param="best_of")
        return super().sampling(max_tokens)

    @property
    def num_prompt_logprobs(self) -> int | None:
        # A prompt that is echoed may be all that is asked for.
        return (self.logprobs or 0) if self.echo and (self.logprobs is not None or self.num_tokens == 0) else None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_tokens(self) -> int:
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens


class Function(BaseModel):
    """A function that the model may ask to be called. `strict` would need the output to be guided by `parameters`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[Text, Field(min_length=1)]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[bool | None, AfterValidator(_refuse_strict)] = None


class Tool(BaseModel):
    """A tool; functions are the only ones."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """As it was sent."""
        return self.model_dump(exclude_unset=True)


def _check_tool_choice(choice: Any) -> Any:
    if choice in (None, "none", "auto"):
        return choice
    asked = choice if isinstance(choice, str) else "a certain function"
    raise PydanticCustomError(
        "tool_choice",
        "tool_choice must be auto or none: that the model calls a tool ({asked}) cannot be guaranteed, "
        "because this server does not guide its output",
        {"asked": asked[:64].encode(errors="backslashreplace").decode()},
    )


class ChatBody(Body):
    """POST /v1/chat/completions."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL_CHAT

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Annotated[str | None, BeforeValidator(_check_tool_choice)] = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise _field_error("top_logprobs", "top_logprobs is only allowed together with logprobs")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the chat template gets beside the messages."""
        return {"tools": [tool.for_template() for tool in self.offered]} if self.offered else {}

    @property
    def offered(self) -> list[Tool]:
        """The tools that the model may call."""
        return [] if self.tool_choice == "none" else self.tools or []

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
