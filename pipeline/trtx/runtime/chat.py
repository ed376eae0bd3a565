"""Chat templates: Jinja text that comes with a model and turns messages into a prompt. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trtx.errors import VerificationFailed
from trtx.runtime.request import RequestRefused


class ChatTemplate:
    """One compiled template. It is foreign code, so it runs in Jinja's sandbox and sees nothing but its variables.

    Environment and variables follow Hugging Face:
    https://huggingface.co/docs/transformers/chat_templating_writing
    Where a model has another one for conversations with tools, that is `with_tools`.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], with_tools: ChatTemplate | None = None) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationMark, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise VerificationFailed(
                "the model's chat template is not valid Jinja",
                why=f"line {error.lineno}: {error.message}",
                fix="correct chat_template.jinja of the model",
            ) from error
        self.source = source
        self.with_tools = with_tools
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt that asks for the assistant's next message; `variables` are further ones, such as `tools`.

        Raises RequestRefused when the template refuses.
        """
        if self.with_tools is not None and variables.get("tools"):
            return self.with_tools.render(messages, **variables)
        usual = {"tools": None, "documents": None, "add_generation_prompt": True, **self._special_tokens}
        try:
            return self._template.render({**usual, **variables, "messages": [dict(message) for message in messages]})
        # Templates fail in any way that Python can: on a missing key, on None + "text".
        except Exception as error:
            raise RequestRefused(
                f"the model's chat template refuses these messages: {error}",
                param="messages",
                fix="see which roles and contents the model's chat template takes",
            ) from error

    @staticmethod
    def missing() -> RequestRefused:
        return RequestRefused(
            "this model has no chat template", param="messages", fix="send the whole prompt to /v1/completions"
        )


def find_template(folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The template of a model folder: chat_template.jinja, else `chat_template` of tokenizer_config.json.

    The latter is a text or a list of named texts, of which `default` counts, and `tool_use` where there are tools.
    """
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return ChatTemplate(file.read_text(encoding="utf-8"), special_tokens)
    source = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
    named = {item["name"]: item["template"] for item in source} if isinstance(source, list) else {"default": source}
    default, tools = named.get("default"), named.get("tool_use")
    with_tools = ChatTemplate(tools, special_tokens) if isinstance(tools, str) else None
    return ChatTemplate(default, special_tokens, with_tools) if isinstance(default, str) else None


class _GenerationMark(Extension):
    """`{% generation %} … {% endgeneration %}` marks the assistant's text for training; here it is only passed on."""

    tags = {"generation"}  # noqa: RUF012 - the base class says set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
