"""Values with units: sizes (`2GiB`), durations (`400ms`) and percentages (`2%`). A bare number is an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

# IEC 80000-13 for the binary prefixes, SI for the decimal ones.
SIZES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
DURATIONS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
PERCENT = {"%": 0.01}

NUMBER = r"(\d+(?:\.\d+)?)"


class BadUnit(ValueError):
    """A text that is not a number with one of the known units; `fix` says how to write it."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


def parse_bytes(text: str) -> int:
    """Bytes of `2GiB`, `512MiB`, `80GB`. Raises BadUnit."""
    return round(_parse(text, SIZES, "a size", "2GiB"))


def parse_seconds(text: str) -> float:
    """Seconds of `400ms`, `2h`, `1.5s`. Raises BadUnit."""
    return _parse(text, DURATIONS, "a duration", "400ms")


def parse_percent(text: str) -> float:
    """The fraction of `2%`: 0.02. Raises BadUnit."""
    return _parse(text, PERCENT, "a percentage", "2%")


def format_bytes(num_bytes: float) -> str:
    """Bytes for people: the largest binary unit with a value of at least one, such as `1.5 GiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if abs(num_bytes) >= SIZES[unit]:
            return f"{num_bytes / SIZES[unit]:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def _parse(text: object, units: Mapping[str, float], kind: str, example: str) -> float:
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise BadUnit(f"expected {kind}", f"write a number and a unit, such as {example}")
    if not isinstance(text, str) or re.fullmatch(NUMBER, text.strip()):
        shown = next(iter(units)) if len(units) == 1 else "one of " + ", ".join(units)
        raise BadUnit(f"{kind} needs a unit, and {text} has none", f"add {shown}, such as {example}")
    match = re.fullmatch(rf"{NUMBER} ?([A-Za-z%]+)", text.strip())
    if match is None:
        raise BadUnit(f"'{text}' is not {kind}", f"write a number and a unit, such as {example}")
    number, unit = match.groups()
    if unit not in units:
        folded = {known.lower(): known for known in units}
        hint = folded.get(unit.lower()) or folded.get(f"{unit.lower()}b")
        fix = f"did you mean '{number}{hint}'?" if hint else f"known units: {', '.join(units)}"
        raise BadUnit(f"'{unit}' is not a unit of {kind}", fix)
    return float(number) * units[unit]


def _validator(parse: Callable[[str], Any]) -> BeforeValidator:
    def validate(value: Any) -> Any:
        try:
            return parse(value)
        except BadUnit as error:
            raise PydanticCustomError("unit", "{message}", {"message": str(error), "fix": error.fix}) from error

    return BeforeValidator(validate)


def _json_schema(units: Mapping[str, float], example: str, *, positive: bool = False) -> WithJsonSchema:
    """A pattern with the same language as the parser; `positive` wants a digit other than 0."""
    pattern = rf"^{'(?=[^1-9]*[1-9])' if positive else ''}\s*{NUMBER} ?({'|'.join(units)})\s*$"
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


ByteSize = Annotated[int, _validator(parse_bytes), Field(ge=1), _json_schema(SIZES, "2GiB", positive=True)]
Duration = Annotated[float, _validator(parse_seconds), Field(ge=0), _json_schema(DURATIONS, "400ms")]
TimeLimit = Annotated[float, _validator(parse_seconds), Field(gt=0), _json_schema(DURATIONS, "2h", positive=True)]
Percent = Annotated[float, _validator(parse_percent), Field(ge=0), _json_schema(PERCENT, "2%")]
