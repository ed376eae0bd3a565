"""The one function that makes keys, and the one list of what may enter them.

A key is the SHA-256 of the canonical JSON of a step's factors. What is not a factor cannot move a key: runner,
environment, names of cells, notification and report settings, witness inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtx.files import canonical_json, sha256_bytes
from trtx.stages.params import Params

SCHEMA = "trtx.key/v1"


def make_factors(
    params: Params, *, inputs: Mapping[str, str], toolchain: Mapping[str, str], machine: Mapping[str, str]
) -> dict[str, Any]:
    """All that a step's bytes depend on.

    `inputs` are the keys of its (non-witness) inputs, `toolchain` versions by name, `machine` the facts of the
    hardware for stages that measure; what a stage compiles for is one of its parameters.
    """
    return {
        "schema": SCHEMA,
        "stage": params.stage,
        "code": params.code_version,
        "params": params.model_dump(mode="json"),
        "inputs": dict(inputs),
        "toolchain": dict(toolchain),
        "machine": dict(machine),
    }


def make_key(factors: Mapping[str, Any]) -> str:
    """Full hex SHA-256; never shortened where it identifies anything."""
    return sha256_bytes(canonical_json(factors))


def changed_factors(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences between two steps' factors, as `path: old → new`, inputs last because they only follow others."""
    before, after = _flatten(old), _flatten(new)
    paths = sorted(before.keys() | after.keys(), key=lambda path: (path.startswith("inputs."), path))
    return [
        f"{path}: {_short(before.get(path))} → {_short(after.get(path))}"
        for path in paths
        if before.get(path) != after.get(path)
    ]


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    flat: dict[str, Any] = {}
    for name, member in value.items():
        flat |= _flatten(member, f"{path}.{name}" if path else name)
    return flat


def _short(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= 40 else text[:12] + "…"
