"""A cache at a URL that machines share: look entries up and take them over, verified.

Layout below the URL:

    v1/entries/ab/<key>.json    one entry: its manifest, the blobs of each file, signatures; it exists when this does
    v1/blobs/ab/<sha256>        content; files are cut into pieces of CHUNK_BYTES, each named by its SHA-256
    v1/leases/ab/<key>.json     who makes an entry right now (trtx.cache.remote_lease)

The manifest of an entry and what belongs to it are one object, written last, so nothing is ever half there. Blobs are
named by their content, so two writers of one entry cannot mix, and an interrupted upload goes on where it was.
Whatever comes from a remote is checked before it becomes visible; one that is down, slow or wrong is an EntryRefused or
a RemoteTrouble, and the caller goes on without it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from trtx.cache.background import DaemonPool
from trtx.cache.blobs import Blobs, open_blobs
from trtx.cache.foreign import MAX_MANIFEST_BYTES, SHA256, EntryRefused, expect_files, plain, read_foreign_manifest
from trtx.cache.manifest import FileRecord, Manifest, manifest_digest
from trtx.cache.origin import Origin
from trtx.cache.signing import Keyring, Signature, read_signatures
from trtx.cache.store import Store
from trtx.files import disk_errors

SCHEMA = "trtx.remote/v1"
CHUNK_BYTES = 16 << 20
# Smaller pieces would make a remote's list of them, and the requests for them, as long as it likes.
MIN_CHUNK_BYTES = 1 << 20
# An entry's object also lists 64 bytes for each piece.
MAX_ENTRY_BYTES = 2 * MAX_MANIFEST_BYTES
# Pieces in flight for one entry, and so the memory it takes: WINDOW * CHUNK_BYTES.
WINDOW = 4
THREADS = 16
# The objects of entries that are asked for together: as many are on their way at once as there are threads, and all
# that arrive may have so many bytes together.
MAX_FOUND_BYTES = 256 << 20
ATTEMPTS = 3
BACKOFF_S = 0.2
# A remote that is slower than this, over a whole piece, counts as one that does not answer.
MIN_BYTES_PER_S = 1 << 20

# A share of the deadline for each of many questions asked at once.
FIND_S = 0.05
# How long a remote that failed is left alone.
RECOVERY_S = 60.0

Kind = Literal["read", "write"]
Trust = Literal["digest", "signed"]
Progress = Callable[[int, int], None]  # bytes done, bytes in all
Result = TypeVar("Result")


class RemoteTrouble(Exception):
    """A remote did not do what was asked: it is down, slow, or refuses; the text says why."""


@dataclass(frozen=True)
class RemoteSpec:
    """What is configured of a remote. `timeout_s` is how long it may take to answer before it is skipped."""

    name: str
    url: str
    writable: bool = False
    trust: Trust = "digest"
    endpoint: str | None = None
    timeout_s: float = 10.0


@dataclass(frozen=True)
class Offer:
    """An entry that a remote has. `chunks` are the SHA-256 of each file's pieces, in the order of the manifest's files.

    `signer` is the name of the trusted key that signed it, where signatures are asked for; `signatures` are all it has.
    """

    remote: str
    manifest: Manifest
    chunks: tuple[tuple[str, ...], ...]
    chunk_bytes: int
    executables: frozenset[str]
    signer: str | None = None
    signatures: tuple[Signature, ...] = ()


def entry_name(key: str) -> str:
    return f"v1/entries/{key[:2]}/{key}.json"


def blob_name(sha256: str) -> str:
    return f"v1/blobs/{sha256[:2]}/{sha256}"


class Remote:
    """A remote to read from: it has no method that writes. Calls may come from several threads."""

    def __init__(self, spec: RemoteSpec, keyring: Keyring | None = None) -> None:
        self.spec = spec
        # Why reading and writing were given up, and when; one may work where the other does not.
        self._troubles: dict[str, tuple[str, float]] = {}
        self._keyring = keyring
        self._pool = DaemonPool(THREADS, f"remote-{spec.name}")
        self._opened: Blobs | None = None
        self._opening = threading.Lock()

    @property
    def name(self) -> str:
        return self.spec.name

    def find(self, key: str) -> Offer | None:
        """The entry of a key, checked but for its content; None when there is none.

        Raises EntryRefused when there is one that cannot be trusted, RemoteTrouble.
        """
        text = self._call(_read_entry(key))
        return None if text is None else self._read_offer(text, key)

    def find_many(self, keys: Iterable[str]) -> tuple[dict[str, Offer], dict[str, str]]:
        """The entries among many keys, asked for side by side, and why others were refused, by key.

        Raises RemoteTrouble when not all answers came in time, or more than MAX_FOUND_BYTES.
        """
        todo = deque(dict.fromkeys(keys))
        seconds, num_bytes = self.spec.timeout_s + len(todo) * FIND_S, 0
        ends = time.monotonic() + seconds
        ahead: deque[tuple[str, Future[bytes | None]]] = deque()
        offers, refused = {}, {}
        while todo or ahead:
            while todo and len(ahead) < THREADS:
                key = todo.popleft()
                ahead.append((key, self._start(_read_entry(key), max(0.0, ends - time.monotonic()))))
            key, future = ahead.popleft()
            text = self._wait(future, max(0.0, ends - time.monotonic()), said=seconds)
            num_bytes += len(text or b"")
            if num_bytes > MAX_FOUND_BYTES:
                raise self._give_up(f"its entries have more than {MAX_FOUND_BYTES >> 20} MiB without content", "read")
            try:
                if text is not None:
                    offers[key] = self._read_offer(text, key)
            except EntryRefused as error:
                refused[key] = str(error)
        return offers, refused

    def pull(self, offer: Offer, store: Store, progress: Progress, cancelled: threading.Event) -> Manifest:
        """Copy an entry into the store; it is visible there only after every file had its recorded SHA-256.

        Raises EntryRefused, RemoteTrouble, EnvironmentProblem for a full disk, CancelledError once `cancelled` is set.
        """
        manifest, done = offer.manifest, 0

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            progress(done, manifest.total_bytes)
            if cancelled.is_set():
                raise CancelledError

        with store.stage(manifest.key) as staged:
            for record, chunks in zip(manifest.files, offer.chunks, strict=True):
                target = staged / "output" / record.path
                self._fetch_file(record, chunks, offer.chunk_bytes, target, advance)
                if record.path in offer.executables:
                    target.chmod(0o755)
            origin = Origin(f"remote {self.name}", offer.signatures)
            return store.publish(staged, manifest, expect_files(manifest), origin=origin.dump())

    def _fetch_file(
        self,
        record: FileRecord,
        chunks: tuple[str, ...],
        chunk_bytes: int,
        target: Path,
        advance: Callable[[int], None],
    ) -> None:
        """Write one file from its pieces, WINDOW of them asked for ahead. Raises EntryRefused."""
        digest = hashlib.sha256()
        todo = deque(_pieces(record.size, chunks, chunk_bytes))
        ahead: deque[tuple[str, int, Future[bytes | None]]] = deque()
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as stream:
                while todo or ahead:
                    while todo and len(ahead) < WINDOW:
                        name, size = todo.popleft()
                        ahead.append((name, size, self._start_fetch(name, size)))
                    name, size, future = ahead.popleft()
                    data = self._wait(future, self._seconds_for(size))
                    if data is None:
                        raise EntryRefused(f"{record.path}: the blob {name} is missing")
                    if len(data) != size or hashlib.sha256(data).hexdigest() != name:
                        raise EntryRefused(f"{record.path}: the blob {name} is damaged")
                    digest.update(data)
                    stream.write(data)
                    advance(len(data))
        if digest.hexdigest() != record.sha256:
            raise EntryRefused(f"{record.path} does not have its recorded SHA-256")

    def _start_fetch(self, name: str, size: int) -> Future[bytes | None]:
        return self._start(lambda blobs: blobs.read(blob_name(name), size + 1), self._seconds_for(size))

    def _read_offer(self, text: bytes, key: str) -> Offer:
        """Check the object of an entry. Raises EntryRefused."""
        if len(text) > MAX_ENTRY_BYTES:
            raise EntryRefused(f"its object is larger than {MAX_ENTRY_BYTES >> 20} MiB")
        try:
            body = json.loads(text)
            schema, said = body["schema"], body["manifest"]
            chunk_bytes, chunks, executables = body["chunk_bytes"], body["chunks"], body["executables"]
            signatures = body["signatures"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EntryRefused("its object is not an entry of a trtx cache") from None
        if schema != SCHEMA or not isinstance(said, str):
            raise EntryRefused(f"its schema is {plain(schema)}, not {SCHEMA}")
        manifest = read_foreign_manifest(said.encode(errors="replace"), key)
        if type(chunk_bytes) is not int or not MIN_CHUNK_BYTES <= chunk_bytes <= CHUNK_BYTES:
            raise EntryRefused(f"its pieces have not between {MIN_CHUNK_BYTES} and {CHUNK_BYTES} bytes")
        if not _fits(chunks, manifest):
            raise EntryRefused("its list of blobs does not fit its files")
        signer = None
        if self.spec.trust == "signed":
            keyring = self._keyring or Keyring({})
            signer, why = keyring.signer_of(manifest_digest(manifest), signatures)
            if signer is None:
                raise EntryRefused(why)
        names = frozenset(map(str, executables)) if isinstance(executables, list) else frozenset()
        blobs = tuple(map(tuple, chunks))
        offer = Offer(self.name, manifest, blobs, chunk_bytes, names, signer, read_signatures(signatures))
        if any(len(row) != -(-record.size // chunk_bytes) for record, row in zip(manifest.files, blobs, strict=True)):
            raise EntryRefused("its list of blobs does not fit its files")
        return offer

    def _seconds_for(self, num_bytes: int) -> float:
        return self.spec.timeout_s + num_bytes / MIN_BYTES_PER_S

    def _call(self, operation: Callable[[Blobs], Result], num_bytes: int = 0, kind: Kind = "read") -> Result:
        """Do something with the objects, within the time that it may take. Raises RemoteTrouble."""
        seconds = self._seconds_for(num_bytes)
        return self._wait(self._start(operation, seconds, kind), seconds, kind)

    def _start(self, operation: Callable[[Blobs], Result], seconds: float, kind: Kind = "read") -> Future[Result]:
        if trouble := self.trouble(kind):
            raise RemoteTrouble(trouble)
        deadline = time.monotonic() + seconds
        return self._pool.submit(lambda: self._repeat(operation, deadline, kind))

    def _wait(self, future: Future[Result], seconds: float, kind: Kind = "read", said: float | None = None) -> Result:
        try:
            return future.result(seconds)
        except TimeoutError:
            raise self._give_up(f"it did not answer within {said or seconds:.3g} s", kind) from None

    def trouble(self, kind: Kind = "read") -> str | None:
        """Why the remote is not asked at the moment; after RECOVERY_S it is tried again."""
        reason, since = self._troubles.get(kind, (None, 0.0))
        return reason if time.monotonic() - since < RECOVERY_S else None

    def _give_up(self, reason: str, kind: Kind) -> RemoteTrouble:
        self._troubles[kind] = (reason, time.monotonic())
        return RemoteTrouble(reason)

    def _repeat(self, operation: Callable[[Blobs], Result], deadline: float, kind: Kind) -> Result:
        """Repeat an operation that failed for a reason that may pass, with growing pauses. Raises RemoteTrouble."""
        for attempt in itertools.count(1):
            if time.monotonic() > deadline or (trouble := self.trouble(kind)):
                raise RemoteTrouble(trouble or "its time was up")
            try:
                return operation(self._blobs())
            except Exception as error:
                reason, may_pass = describe_trouble(error)
                pause_s = BACKOFF_S * 4 ** (attempt - 1) * random.uniform(0.5, 1)
                if not may_pass or attempt == ATTEMPTS or time.monotonic() + pause_s > deadline:
                    raise self._give_up(reason, kind) from error
                time.sleep(pause_s)
        raise AssertionError  # The loop has no end of its own.

    def _blobs(self) -> Blobs:
        with self._opening:
            if self._opened is None:
                spec = self.spec
                self._opened = open_blobs(
                    spec.url, endpoint=spec.endpoint, timeout_s=spec.timeout_s, may_create=spec.writable
                )
            return self._opened


def _read_entry(key: str) -> Callable[[Blobs], bytes | None]:
    return lambda blobs: blobs.read(entry_name(key), MAX_ENTRY_BYTES + 1)


def _pieces(size: int, chunks: tuple[str, ...], chunk_bytes: int) -> list[tuple[str, int]]:
    """The blobs of a file with their sizes."""
    return [(name, min(chunk_bytes, size - number * chunk_bytes)) for number, name in enumerate(chunks)]


def _fits(chunks: Any, manifest: Manifest) -> bool:
    """Whether a JSON value is one list of SHA-256 for each file."""
    return (
        isinstance(chunks, list)
        and len(chunks) == len(manifest.files)
        and all(isinstance(row, list) for row in chunks)
        and all(isinstance(name, str) and SHA256.fullmatch(name) for row in chunks for name in row)
    )


def describe_trouble(error: BaseException) -> tuple[str, bool]:
    """Why a driver failed, in one line, and whether it may work a moment later."""
    said, kind = _first_line(error), type(error).__name__
    if kind == "EndpointConnectionError":
        address = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url", "")))
        return f"cannot connect to {plain(f'{address.scheme}://{address.netloc}')}", True
    if isinstance(error, ImportError):
        extra = " (pip install 'trtx[s3]')" if "s3fs" in str(error) else ""
        said = f"its driver is not installed: {said}{extra}"
    elif isinstance(error, PermissionError):
        said = f"access denied: {said}"
    elif kind in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        said = f"no credentials: {said}"
    elif isinstance(error, TimeoutError) or "Timeout" in kind:
        said = f"it did not answer in time: {said}"
    elif not isinstance(error, NotADirectoryError | ValueError):
        return said, True
    return said, False


def _first_line(error: BaseException) -> str:
    text = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
    return plain(text[0], 200) if text else type(error).__name__
