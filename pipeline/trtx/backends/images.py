"""Container image names: which are well formed, which are pinned, and what a deployment's own is called.

Grammar: https://pkg.go.dev/github.com/distribution/reference. Imports no torch.
"""

from __future__ import annotations

import re

from trtx.errors import UsageProblem

_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_HOST_PART = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_NAME = rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*(?::[0-9]{{1,5}})?/)?{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"sha256:[0-9a-f]{64}"
_REFERENCE = re.compile(rf"(?P<name>{_NAME})(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?", re.ASCII)

# Tags that mean something else tomorrow.
MOVING_TAGS = frozenset({"latest", "main", "master", "edge", "nightly", "stable"})
MAX_REFERENCE = 255


def is_file(container: str) -> bool:
    """Whether a container is a file (.sif, .sqsh) and no name in a registry."""
    return container.startswith("/")


def is_pinned(reference: str) -> bool:
    """Whether a well-formed name has a digest, or a tag that stays."""
    match = _REFERENCE.fullmatch(reference)
    return match is not None and (match["digest"] or match["tag"] or "latest") not in MOVING_TAGS


def check_base(reference: str, setting: str = "package.base") -> str:
    """The base image of a deployment, unchanged; `setting` is where the recipe names it.

    Raises UsageProblem when it is malformed, or names neither a digest nor a tag that stays.
    """
    match = _match(reference, setting)
    if not is_pinned(reference):
        raise UsageProblem(
            f"the base image {reference} is not pinned",
            why=f"the tag '{match['tag']}' moves" if match["tag"] else "it has neither a tag nor a digest",
            fix=f"name a release in {setting}, best by digest: python:3.12-slim-bookworm@sha256:…",
        )
    return reference


def make_image(name: str | None, recipe: str, cell: str, version: str) -> str:
    """The image's own full name: `name`, or `trtx/<recipe>`, tagged `<cell>-<version>`.

    Raises UsageProblem when `name` is malformed or already has a tag or a digest: every cell needs its own.
    """
    base = name or f"trtx/{_slug(recipe)}"
    match = _match(base, "package.image")
    if match["tag"] or match["digest"]:
        raise UsageProblem(
            f"the image name {base} has a tag already",
            why="trtx tags each image with its cell and the version of its engine and weights",
            fix=f"write package.image: {match['name']}",
        )
    return f"{base}:{_slug(cell)[:100]}-{version}"


def _match(reference: str, field: str) -> re.Match[str]:
    match = _REFERENCE.fullmatch(reference) if len(reference) <= MAX_REFERENCE else None
    if match is None:
        raise UsageProblem(
            f"{reference!r} is not the name of a container image",
            why=f"{field} must look like registry.example.com/folder/name:tag, in lower case",
            fix=f"correct {field} in the recipe",
        )
    return match


def _slug(text: str) -> str:
    """Lower-case letters, digits and single hyphens, never empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "engine"
