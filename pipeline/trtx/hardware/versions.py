"""Versions of installed distributions, without importing them."""

from __future__ import annotations

import platform
from collections.abc import Iterable


def installed_version(distribution: str) -> str | None:
    """The version of a distribution by its name on the package index, local part included (`2.13.0+cpu`)."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def toolchain(distributions: Iterable[str]) -> dict[str, str]:
    """Versions by name, `absent` for what is not installed, and Python's own: what a step's key can hold."""
    found = {name: installed_version(name) or "absent" for name in distributions}
    return {"python": platform.python_version(), **dict(sorted(found.items()))}
