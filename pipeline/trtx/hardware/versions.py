"""Versions of installed distributions, without importing them."""

from __future__ import annotations


def installed_version(distribution: str) -> str | None:
    """The version of a distribution by its name on the package index, local part included (`2.13.0+cpu`)."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
