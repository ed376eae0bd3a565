"""Reads the shipped tables. Rows stand in pools that all releases share; a release's file holds their numbers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from trtx.backends.tensorrt_llm.surface import (
    MAPS,
    Confidence,
    Option,
    Surface,
    make_surface,
    option_from_json,
    schema_from_json,
    tool_from_json,
)
from trtx.files import parse_json, read_file

DATA = Path(__file__).with_name("data")


@functools.cache
def read_table(name: str) -> Any:
    """A table of the package as JSON; it is parsed once and must not be changed."""
    return parse_json(read_file(DATA / f"{name}.json"))


def known_releases() -> tuple[str, ...]:
    """Every release with a table, oldest first."""
    return tuple(read_table("releases")["order"])


@functools.cache
def _option(number: int, confidence: Confidence = "exact", evidence: str = "") -> Option:
    row = read_table("options")[number]
    return option_from_json({**row, "confidence": confidence, "evidence": evidence})


@functools.cache
def load_surface(version: str) -> Surface:
    """The shipped surface of a release of `known_releases`."""
    packed = read_table(f"surface-{version}")
    grades = packed["grades"]
    tools = {}
    for key, tool in packed["tools"].items():
        options = tuple(
            _option(number) if isinstance(number, int) else _option(number[0], *grades[number[1]])
            for number in tool["options"]
        )
        tools[key] = tool_from_json(key, tool, options)
    exact = packed["confidence"] == "exact"
    pool = read_table("schemas")
    schemas = {}
    for name, (number, *rest) in packed["schemas"].items():
        confidence, sure = rest or ("exact", {})
        schemas[name] = schema_from_json(name, {**pool[number], "confidence": confidence}, sure)
    maps = {key: {name: confidence for confidence, names in packed[key].items() for name in names} for key in MAPS}
    triton = {name: pool[number] for name, number in packed["triton_models"].items()}
    return make_surface(version, tools, schemas, maps, triton, "exact" if exact else "unknown")
