"""Versions of installed distributions, read from their metadata: nothing is imported."""

from __future__ import annotations

from importlib import metadata


def read_version(distribution: str) -> str | None:
    """The installed version of a distribution such as `nvidia-modelopt`, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
