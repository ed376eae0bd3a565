"""The manifest of a cache entry: what it is, every file's digest, and where it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from trtx.files import canonical_json, parse_json, sha256_bytes

SCHEMA = "trtx.entry/v1"


class ManifestCorrupt(ValueError):
    """The text is not a whole, unaltered manifest."""


@dataclass(frozen=True)
class FileRecord:
    """One file of an entry; `path` is relative to the entry's output folder, `size` in bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json.

    `factors` are exactly what the key is the digest of. `provenance` (recipe, host, times, parents) is for
    people and audits and never enters a key. `summary` is what the stage reported.
    """

    key: str
    step: str
    stage: str
    factors: dict[str, Any]
    files: tuple[FileRecord, ...]
    provenance: dict[str, Any]
    summary: dict[str, Any]

    @property
    def total_bytes(self) -> int:
        return sum(record.size for record in self.files)

    def dump(self) -> str:
        """The text of manifest.json; its last member `digest` is the SHA-256 of all others in canonical form."""
        body = {
            "schema": SCHEMA,
            "key": self.key,
            "step": self.step,
            "stage": self.stage,
            "factors": self.factors,
            "files": [[record.path, record.size, record.sha256] for record in self.files],
            "provenance": self.provenance,
            "summary": self.summary,
        }
        return _render(body | {"digest": sha256_bytes(canonical_json(body))})


def manifest_digest(manifest: Manifest) -> str:
    """The digest that stands in a manifest's own text."""
    return str(json.loads(manifest.dump())["digest"])


def _render(body: dict[str, Any]) -> str:
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


def load_manifest(text: bytes) -> Manifest:
    """Read manifest.json.

    Raises ManifestCorrupt when it was truncated, altered or written by another version.
    """
    try:
        body = parse_json(text)
        # The digest is of the values. Two texts can have the same, such as numbers that differ in their last digit.
        is_as_written = _render(body).encode() == text
        digest = body.pop("digest")
        if body["schema"] != SCHEMA:
            raise ManifestCorrupt(f"its schema is {body['schema']}, not {SCHEMA}")
        if sha256_bytes(canonical_json(body)) != digest:
            raise ManifestCorrupt("its own digest does not match")
        if not is_as_written:
            raise ManifestCorrupt("its text was altered")
        return _from_body(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ManifestCorrupt):
            raise
        raise ManifestCorrupt(f"it is not a whole manifest ({type(error).__name__})") from error


def peek_manifest(text: bytes) -> Manifest | None:
    """Read manifest.json without checking its digest, for lists; None when it is no manifest of this version."""
    try:
        body = parse_json(text)
        return _from_body(body) if body["schema"] == SCHEMA else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _from_body(body: dict[str, Any]) -> Manifest:
    return Manifest(
        key=body["key"],
        step=body["step"],
        stage=body["stage"],
        factors=body["factors"],
        files=tuple(FileRecord(*row) for row in body["files"]),
        provenance=body["provenance"],
        summary=body["summary"],
    )
