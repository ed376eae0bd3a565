"""The one Jinja2 environment: an undefined name is an error, and values are quoted by filters, never by hand."""

from __future__ import annotations

import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


@cache
def environment() -> jinja2.Environment:
    """Templates under trtx/templates, named by relative path such as `package/Dockerfile.j2`.

    Autoescape is off because no template is HTML. Instead every value from a recipe passes a filter:
    `shell` in scripts, `tojson` in JSON, `toyaml` in YAML, `dockerfile` in Dockerfiles, `pbtxt` in Triton's
    configurations, `comment` in comments.
    """
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(
        shell=quote_shell,
        tojson=quote_json,
        toyaml=quote_yaml,
        dockerfile=quote_dockerfile,
        pbtxt=quote_pbtxt,
        comment=quote_comment,
    )
    return made


def render(template_name: str, **values: Any) -> str:
    """Fill a template. Raises jinja2.UndefinedError for a name the template uses and the caller did not give."""
    return environment().get_template(template_name).render(**values)


def quote_shell(value: Any) -> str:
    """One word for a POSIX shell; a list becomes several words."""
    if isinstance(value, list | tuple):
        return shlex.join(str(item) for item in value)
    return shlex.quote(str(value))


def quote_json(value: Any, indent: int | None = None) -> str:
    """JSON with sorted keys and UTF-8 text."""
    return json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False, default=_no_json)


def quote_yaml(value: Any) -> str:
    """One YAML flow value on one line. JSON in ASCII is YAML 1.2, so a value cannot end its line or its quotes."""
    return json.dumps(value, sort_keys=True, default=_no_json)


def _no_json(value: Any) -> NoReturn:
    """Called by json for what it cannot write: an undefined name says so, as it does everywhere else."""
    str(value)
    raise TypeError(f"a template cannot write {type(value).__name__} as JSON")


def quote_dockerfile(value: Any) -> str:
    """One double-quoted Dockerfile word: no variable is expanded and no line is continued.

    Raises ValueError for line breaks and control characters, which a Dockerfile word cannot hold.
    """
    text = str(value)
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError(f"a Dockerfile word cannot hold control characters: {text!r}")
    return '"' + re.sub(r'([\\"$])', r"\\\1", text) + '"'


def quote_pbtxt(value: Any) -> str:
    """A string of protobuf's text format: quotes and backslashes escaped, all but printable ASCII as octal bytes."""
    escaped = (
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in str(value).encode()
    )
    return '"' + "".join(escaped) + '"'


def quote_comment(value: Any) -> str:
    """Text for a one-line comment: line breaks and control characters become spaces."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", str(value)).strip()
