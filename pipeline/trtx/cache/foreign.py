"""Entries from elsewhere (a remote, an archive): nothing they say is believed before it is checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath

from trtx.cache.manifest import FileRecord, Manifest, ManifestCorrupt, load_manifest
from trtx.files import canonical_json, sha256_bytes

SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_MANIFEST_BYTES = 8 << 20
MAX_FILES = 100_000
# File systems' own limits, NAME_MAX and a safe part of PATH_MAX.
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1024
# What lists and plans show of an entry's provenance; all of it may be absent.
PROVENANCE_TEXTS = ("recipe", "host", "trtx")
PROVENANCE_SECONDS = ("started", "duration_s")
# In the year 5138; the C library's calendar ends somewhere after that.
MAX_SECONDS = 1e11


class EntryRefused(Exception):
    """An entry from elsewhere is not what it claims to be; the text says why."""


def read_foreign_manifest(text: bytes, key: str | None = None) -> Manifest:
    """Check a manifest from elsewhere: its own digest, its key against its factors, its paths and sizes.

    `key` is the one that was asked for. Raises EntryRefused.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise EntryRefused(f"its manifest is larger than {MAX_MANIFEST_BYTES >> 20} MiB")
    try:
        manifest = load_manifest(text)
    except ManifestCorrupt as error:
        raise EntryRefused(f"manifest: {error}") from error
    except RecursionError as error:
        raise EntryRefused("its manifest is nested without end") from error
    if key is not None and manifest.key != key:
        raise EntryRefused(f"its manifest is of the key {plain(manifest.key)}")
    if sha256_bytes(canonical_json(manifest.factors)) != manifest.key:
        raise EntryRefused("its key is not the SHA-256 of its factors")
    if not all(isinstance(part, dict) for part in (manifest.factors, manifest.provenance, manifest.summary)):
        raise EntryRefused("its factors, provenance or summary is not a mapping")
    made = manifest.provenance
    for name in (manifest.step, manifest.stage, *(made.get(field, "") for field in PROVENANCE_TEXTS)):
        # They are printed on terminals, which obey control characters.
        if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_PATH_BYTES:
            raise EntryRefused("the name of its step, stage, recipe or host is not a plain text")
    for field in PROVENANCE_SECONDS:
        value = made.get(field, 0.0)
        if not isinstance(value, int | float) or not 0 <= value <= MAX_SECONDS:
            raise EntryRefused(f"{field} of its provenance is no time")
    check_records(manifest.files)
    return manifest


def plain(value: object, limit: int = 80) -> str:
    """Something from elsewhere as it may be printed: short, and without control characters."""
    return "".join(character for character in str(value)[:limit] if character.isprintable())


def check_records(records: tuple[FileRecord, ...]) -> None:
    """Refuse records that would leave the entry's folder, collide, or say nonsense. Raises EntryRefused."""
    if not records:
        raise EntryRefused("it has no files")
    if len(records) > MAX_FILES:
        raise EntryRefused(f"it has more than {MAX_FILES} files")
    paths: set[str] = set()
    for record in records:
        fault = _path_fault(record.path)
        if fault:
            raise EntryRefused(f"the path {str(record.path)[:80]!r} {fault}")
        if type(record.size) is not int or record.size < 0:
            raise EntryRefused(f"{record.path} has no valid size")
        if not isinstance(record.sha256, str) or not SHA256.fullmatch(record.sha256):
            raise EntryRefused(f"{record.path} has no valid SHA-256")
        if record.path in paths:
            raise EntryRefused(f"{record.path} is there twice")
        paths.add(record.path)
    for path in paths:
        above = next((str(parent) for parent in PurePosixPath(path).parents if str(parent) in paths), None)
        if above:
            raise EntryRefused(f"{above} is both a file and a folder")


def expect_files(manifest: Manifest) -> Callable[[tuple[FileRecord, ...]], None]:
    """A check for Store.publish: what lies on the disk is what the manifest declares. It raises EntryRefused.

    A file system that takes two of its names for one, or that changes what was written, would else have the last word.
    """

    def check(found: tuple[FileRecord, ...]) -> None:
        if different := set(manifest.files) ^ set(found):
            path = min(record.path for record in different)
            raise EntryRefused(f"{path!r} is on the disk not what was written there")

    return check


def _path_fault(path: object) -> str | None:
    """What is wrong with a relative path; None for one like `programs/decode.pt2`."""
    if not isinstance(path, str) or not path:
        return "is not a text"
    parts = path.split("/")
    if path.startswith("/"):
        return "is absolute"
    if any(part in ("", ".", "..") for part in parts):
        return "leaves its folder or is not in its simplest form"
    # C0, DEL and C1: terminals obey them.
    if "\\" in path or any(ord(character) < 32 or 127 <= ord(character) < 160 for character in path):
        return "has control characters or backslashes"
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return "is too long" if max(sizes) > MAX_NAME_BYTES or sum(sizes) > MAX_PATH_BYTES else None
