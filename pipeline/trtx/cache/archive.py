"""One file with entries, for sites without a network.

A tar archive, gzip-compressed where its name ends in .gz or .tgz. The same entries give the same bytes.

    trtx-export.json      what is in it: the manifests of all entries, their signatures, which files are executable
    files/<sha256>        every content once, in the order in which the manifests name them

Names in the archive say nothing about paths; those stand in the manifests and are checked like those of any foreign
entry. What is declared bounds what is read: sizes, counts and the order of the members are known before the first one.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trtx.cache.foreign import MAX_MANIFEST_BYTES, EntryRefused, expect_files, plain, read_foreign_manifest
from trtx.cache.manifest import Manifest, manifest_digest
from trtx.cache.origin import Origin, Vouched, vouch
from trtx.cache.remote import Progress
from trtx.cache.signing import Keyring, Signer, read_signatures
from trtx.cache.store import Store
from trtx.errors import EnvironmentProblem, UsageProblem, VerificationFailed
from trtx.files import CHUNK_BYTES, disk_errors, free_bytes

SCHEMA = "trtx.export/v1"
INDEX = "trtx-export.json"
# The most for the texts of all manifests together; it is read whole, and each is looked at before it is parsed.
MAX_INDEX_BYTES = 64 << 20
MAX_ENTRIES = 100_000
MAX_FILES = 1_000_000
BLOCK = 512
GZIP_MAGIC = b"\x1f\x8b"
# Room that importing leaves on the disk.
SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class Bundle:
    """The index of an archive: its entries, and by key the JSON of each one's signatures and its executable files."""

    manifests: tuple[Manifest, ...]
    signatures: dict[str, Any]
    executables: dict[str, frozenset[str]]

    def contents(self) -> dict[str, int]:
        """SHA-256 → size of every content, in the order of the archive."""
        return _contents(self.manifests)

    @property
    def total_bytes(self) -> int:
        return sum(self.contents().values())


def _contents(manifests: Iterable[Manifest]) -> dict[str, int]:
    return {record.sha256: record.size for manifest in manifests for record in manifest.files}


def export_entries(
    store: Store,
    manifests: Sequence[Manifest],
    target: Path,
    signer: Signer | None,
    progress: Progress,
    keyring: Keyring | None = None,
) -> dict[str, str]:
    """Write entries to an archive, which appears whole or not at all.

    Returns the keys of those without a signature that this site trusts (by its signer or its keyring), and why.
    Raises VerificationFailed when a file is not what its manifest says, UsageProblem for a target that cannot be a
    file, EnvironmentProblem for a full disk.
    """
    _check_target(target)
    ordered = tuple(sorted(manifests, key=lambda manifest: manifest.key))
    sources = {
        record.sha256: store.output(manifest.key) / record.path for manifest in ordered for record in manifest.files
    }
    vouched = {manifest.key: _vouch(store, manifest, keyring, signer) for manifest in ordered}
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    contents = _contents(ordered)
    total, done = sum(contents.values()), 0
    try:
        with disk_errors(target), _open_for_writing(temporary, target.name) as stream:
            _write_member(stream, INDEX, _index_text(store, ordered, vouched))
            for sha256, size in contents.items():
                for count in _write_file(stream, sources[sha256], sha256, size):
                    done += count
                    progress(done, total)
            stream.write(bytes(2 * BLOCK))  # The end of a tar archive.
        with disk_errors(target):
            temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return {key: each.doubt for key, each in vouched.items() if each.doubt}


def _vouch(store: Store, manifest: Manifest, keyring: Keyring | None, signer: Signer | None) -> Vouched:
    try:
        return vouch(store, manifest, keyring, signer)
    except EntryRefused as error:
        what = f"the entry {manifest.key} cannot be exported"
        raise VerificationFailed(what, why=str(error), fix="run the same command again") from error


def _check_target(target: Path) -> None:
    """Raises UsageProblem, before anything is packed, and before a device would be replaced by a file."""
    with disk_errors(target):
        if not target.name or target.is_dir():
            why = "it is a folder"
        elif not target.parent.is_dir():
            why = f"there is no folder {target.parent}"
        else:
            why = "it is no plain file" if target.exists() and not target.is_file() else ""
    if why:
        raise UsageProblem(f"cannot write an archive to {target}", why=why, fix="name a file, such as cache.tar.gz")


def _index_text(store: Store, manifests: Iterable[Manifest], vouched: Mapping[str, Vouched]) -> bytes:
    rows = []
    for manifest in manifests:
        said = manifest.dump()
        if len(said.encode()) > MAX_MANIFEST_BYTES:
            what = f"{manifest.step} ({manifest.key}) has too many files for an archive"
            raise UsageProblem(what, why=f"its manifest is larger than {MAX_MANIFEST_BYTES >> 20} MiB")
        signatures = [signature.to_json() for signature in vouched[manifest.key].signatures]
        root = store.output(manifest.key)
        executables = [record.path for record in manifest.files if os.access(root / record.path, os.X_OK)]
        row = {"key": manifest.key, "manifest": said, "signatures": signatures, "executables": executables}
        rows.append(row)
    text = json.dumps({"schema": SCHEMA, "entries": rows}, indent=1, sort_keys=True, ensure_ascii=False).encode()
    if len(text) > MAX_INDEX_BYTES or len(rows) > MAX_ENTRIES:
        raise UsageProblem("these are too many entries for one archive", fix="export them in several parts")
    return text


@contextmanager
def _open_for_writing(path: Path, name: str) -> Iterator[IO[bytes]]:
    with path.open("xb") as raw:
        if name.endswith((".gz", ".tgz")):
            # Without a name and a date, so that the bytes depend on the content only.
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed:
                yield packed  # type: ignore[misc]
        else:
            yield raw
        raw.flush()
        os.fsync(raw.fileno())


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.GNU_FORMAT)  # Its sizes have no limit.


def _padding(size: int) -> int:
    return -size % BLOCK


def _write_member(stream: IO[bytes], name: str, content: bytes) -> None:
    stream.write(_header(name, len(content)) + content + bytes(_padding(len(content))))


def _write_file(stream: IO[bytes], path: Path, sha256: str, size: int) -> Iterator[int]:
    """Copy one content; yields the size of each part. Raises VerificationFailed."""
    digest, written = hashlib.sha256(), 0
    stream.write(_header(f"files/{sha256}", size))
    with path.open("rb") as source:
        while written < size and (chunk := source.read(min(CHUNK_BYTES, size - written))):
            digest.update(chunk)
            stream.write(chunk)
            written += len(chunk)
            yield len(chunk)
    if written != size or digest.hexdigest() != sha256:
        raise VerificationFailed(f"{path} does not have its recorded SHA-256", fix="run `trtx cache verify`")
    stream.write(bytes(_padding(size)))


def import_entries(
    path: Path, store: Store, keyring: Keyring | None, progress: Progress
) -> tuple[list[Manifest], list[Manifest]]:
    """Bring the entries of an archive into the store; returns all, and those that were not there before.

    Everything is read and verified before the first entry becomes visible. With a keyring every entry must be signed by
    one of its keys. Raises VerificationFailed when the archive is not what it claims to be, UsageProblem when it is no
    export, EnvironmentProblem when the disk cannot hold it.
    """
    try:
        with _open_for_reading(path) as stream:
            bundle = _read_index(stream, path)
            _check(bundle, keyring)
            _check_room(bundle, store)
            return _import(bundle, stream, store, f"archive {path.name}", progress)
    except EntryRefused as error:
        fix = "export it again, and bring it over whole"
        raise VerificationFailed(f"{path} was refused; nothing was imported", why=str(error), fix=fix) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VerificationFailed(f"{path} is damaged; nothing was imported", why=str(error)) from error


@contextmanager
def _open_for_reading(path: Path) -> Iterator[IO[bytes]]:
    try:
        raw = path.open("rb")
    except OSError as error:
        raise UsageProblem(f"cannot read {path}", why=error.strerror or "") from error
    with raw:
        if not raw.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC):  # Without seeking: it may be a pipe.
            yield raw
            return
        with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked, io.BufferedReader(unpacked, CHUNK_BYTES) as stream:
            yield stream


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    """Raises EntryRefused when the archive ends before."""
    data = stream.read(size)
    if len(data) != size:
        raise EntryRefused("the archive ends too early")
    return data


def _next_member(stream: IO[bytes], name: str, size: int | None, limit: int) -> int:
    """Read a header, which must be that of the plain file `name`; returns its size. Raises EntryRefused."""
    try:
        member = tarfile.TarInfo.frombuf(_read_exactly(stream, BLOCK), "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise EntryRefused(f"where {name} should be there is no member of a tar archive ({error})") from error
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise EntryRefused(f"the member {member.name[:200]!r} is not a plain file (type {member.type!r})")
    if member.name != name:
        raise EntryRefused(f"the member {member.name[:200]!r} does not belong there; {name} does")
    if size is not None and member.size != size:
        raise EntryRefused(f"{name} has {member.size} bytes, and {size} are declared")
    if not 0 <= member.size <= limit:
        raise EntryRefused(f"{name} has {member.size} bytes, and {limit} are the most")
    return member.size


def _read_index(stream: IO[bytes], path: Path) -> Bundle:
    try:
        size = _next_member(stream, INDEX, None, MAX_INDEX_BYTES)
    except EntryRefused as error:
        fix = "give a file that `trtx cache export` wrote"
        raise UsageProblem(f"{path} is not an export of a trtx cache", why=str(error), fix=fix) from error
    text = _read_exactly(stream, size)
    _read_exactly(stream, _padding(size))
    try:
        body = json.loads(text)
        schema, rows = body["schema"], [_read_row(row) for row in body["entries"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise EntryRefused("its list of entries cannot be read") from None
    if schema != SCHEMA:
        raise EntryRefused(f"its schema is {plain(schema)}, not {SCHEMA}")
    if len(rows) > MAX_ENTRIES:
        raise EntryRefused(f"it has more than {MAX_ENTRIES} entries")
    manifests = tuple(read_foreign_manifest(said.encode(errors="replace"), key) for key, said, _, _ in rows)
    executables = {key: names for key, _, _, names in rows}
    return Bundle(manifests, {key: signatures for key, _, signatures, _ in rows}, executables)


def _read_row(row: dict[str, Any]) -> tuple[str, str, Any, frozenset[str]]:
    """Key, text of the manifest, signatures and executable files. Raises KeyError, TypeError, AttributeError."""
    key, said, names = row["key"], row["manifest"], row.get("executables", [])
    if not isinstance(key, str) or not isinstance(said, str) or not isinstance(names, list):
        raise TypeError
    return key, said, row["signatures"], frozenset(map(str, names))


def _check(bundle: Bundle, keyring: Keyring | None) -> None:
    """Raises EntryRefused."""
    if len(bundle.signatures) != len(bundle.manifests):
        raise EntryRefused("it lists an entry twice")
    if sum(len(manifest.files) for manifest in bundle.manifests) > MAX_FILES:
        raise EntryRefused(f"it has more than {MAX_FILES} files")
    sizes = bundle.contents()
    for manifest in bundle.manifests:
        if any(record.size != sizes[record.sha256] for record in manifest.files):
            raise EntryRefused("two of its files have one SHA-256 and different sizes")
        if keyring is not None:
            signer, why = keyring.signer_of(manifest_digest(manifest), bundle.signatures[manifest.key])
            if signer is None:
                raise EntryRefused(f"{manifest.step} ({manifest.key}): {why}")


def _check_room(bundle: Bundle, store: Store) -> None:
    """Raises EnvironmentProblem."""
    total = sum(manifest.total_bytes for manifest in bundle.manifests)
    free = free_bytes(store.root)
    if total + SPARE_BYTES > free:
        raise EnvironmentProblem(
            f"{store.root} cannot hold the archive",
            why=f"it declares {total} bytes, and {free} are free",
            fix="free some space or point TRTX_CACHE_DIR at a larger disk",
        )


def _import(
    bundle: Bundle, stream: IO[bytes], store: Store, source: str, progress: Progress
) -> tuple[list[Manifest], list[Manifest]]:
    with ExitStack() as stack:
        contents = stack.enter_context(store.stage("import")) / "work"
        _extract(bundle, stream, contents, progress)
        uses = Counter(record.sha256 for manifest in bundle.manifests for record in manifest.files)
        staged = []
        for manifest in bundle.manifests:
            folder = stack.enter_context(store.stage(manifest.key))
            _place(manifest, contents, folder / "output", uses, bundle.executables[manifest.key])
            staged.append((folder, manifest))
        known = {manifest.key for manifest in bundle.manifests if store.find(manifest.key).manifest is not None}
        origins = {key: Origin(source, read_signatures(said)).dump() for key, said in bundle.signatures.items()}
        published = [
            store.publish(folder, manifest, expect_files(manifest), origin=origins[manifest.key])
            for folder, manifest in staged
        ]
    return published, [manifest for manifest in published if manifest.key not in known]


def _extract(bundle: Bundle, stream: IO[bytes], contents: Path, progress: Progress) -> None:
    """Write every content to a file named by its SHA-256. Raises EntryRefused."""
    done, total = 0, bundle.total_bytes
    for sha256, size in bundle.contents().items():
        _next_member(stream, f"files/{sha256}", size, size)
        digest, left = hashlib.sha256(), size
        with disk_errors(contents), (contents / sha256).open("xb") as target:
            while left:
                chunk = _read_exactly(stream, min(CHUNK_BYTES, left))
                digest.update(chunk)
                target.write(chunk)
                left -= len(chunk)
                done += len(chunk)
                progress(done, total)
        if digest.hexdigest() != sha256:
            raise EntryRefused(f"files/{sha256} does not have that SHA-256")
        _read_exactly(stream, _padding(size))
    if _read_exactly(stream, BLOCK).strip(b"\0"):
        raise EntryRefused("it has members that its list does not name")


def _place(manifest: Manifest, contents: Path, output: Path, uses: Counter[str], executables: frozenset[str]) -> None:
    """Put an entry's files in place: the last use of a content takes it, others copy it."""
    for record in manifest.files:
        target = output / record.path
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            uses[record.sha256] -= 1
            if uses[record.sha256]:
                shutil.copyfile(contents / record.sha256, target)
            else:
                (contents / record.sha256).rename(target)
            if record.path in executables:
                target.chmod(0o755)
