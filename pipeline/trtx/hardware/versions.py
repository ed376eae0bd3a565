"""Versions of installed distributions, without importing them."""

from __future__ import annotations

import re

# A core metadata field: https://packaging.python.org/en/latest/specifications/core-metadata/#version
VERSION = re.compile(r"^Version: *(\S+) *$", re.MULTILINE)


def installed_version(distribution: str) -> str | None:
    """The version of a distribution by its name on the package index, local part included (`2.13.0+cpu`)."""
    from importlib import metadata

    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return None
    # Ten times as fast as `found.version`, which parses all of it as an e-mail.
    match = VERSION.search(found.read_text("METADATA") or "")
    return match[1] if match else found.version


def is_older(version: str, other: str) -> bool:
    """Whether a version of numbers with dots between them, such as a driver's, is older than another."""
    first, second = ([int(part) for part in re.findall(r"\d+", text)] for text in (version, other))
    length = max(len(first), len(second))
    return first + [0] * (length - len(first)) < second + [0] * (length - len(second))
