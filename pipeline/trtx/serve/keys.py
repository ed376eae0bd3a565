"""API keys, from a file or the environment and never from a command line, which every user of a machine can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trtx.errors import UsageProblem


def read_api_keys(file: Path | None, variable: str | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The keys of a file, one a line with empty lines and comments left out, and that of an environment variable.

    Raises UsageProblem when one of them was named and has none: a server without keys is open to everybody.
    """
    keys: list[str] = []
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageProblem(f"cannot read the API keys of {file}", why=str(error)) from error
        keys += [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise UsageProblem(f"{file} has no API keys", fix="write one key a line")
    if variable is not None:
        if not environ.get(variable, "").strip():
            raise UsageProblem(f"the environment variable {variable} has no API key", fix=f"set {variable}")
        keys.append(environ[variable].strip())
    return tuple(keys)
