"""Putting entries on a remote. Only remotes that are configured `read-write` are of this class."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path

from trtx.cache import remote
from trtx.cache.blobs import Blobs
from trtx.cache.foreign import EntryRefused
from trtx.cache.manifest import FileRecord, Manifest
from trtx.cache.origin import EntryUntrusted, Vouched, vouch
from trtx.cache.remote import SCHEMA, WINDOW, Progress, Remote, RemoteSpec, blob_name, entry_name
from trtx.cache.signing import Keyring, Signer
from trtx.cache.store import Store


class WritableRemote(Remote):
    """A remote to read from and to write to. `signer` signs what is put there and may be signed: trtx.cache.origin."""

    def __init__(self, spec: RemoteSpec, keyring: Keyring | None = None, signer: Signer | None = None) -> None:
        super().__init__(spec, keyring)
        self._signer = signer

    def push(
        self,
        manifest: Manifest,
        store: Store,
        progress: Progress,
        cancelled: threading.Event,
        *,
        replace: bool = False,
    ) -> bool:
        """Put an entry of the store there; False when a good one was there already.

        Blobs that are there with their size are not sent again; the entry's own object comes last, and only if there
        is none (S3: `If-None-Match: *`), so that of two writers one wins whole. What was sent is verified: see
        trtx.cache.blobs. With `replace` nothing that is there is believed: blobs are read back and compared, and the
        entry is written anew. Raises EntryRefused when the files are not those of the manifest, EntryUntrusted when the
        remote is for signed entries and no trusted key vouches for this one, RemoteTrouble, CancelledError once
        `cancelled` is set.
        """
        if not replace and self._has_good(manifest.key):
            return False
        vouched = vouch(store, manifest, self._keyring, self._signer)
        if vouched.doubt and self.spec.trust == "signed":
            raise EntryUntrusted(f"its entries must be signed; {vouched.doubt}")
        total, done = manifest.total_bytes, 0
        chunks: list[list[str]] = []
        root = store.output(manifest.key)
        for record in manifest.files:
            names = []
            for name, size in self._send_file(root, record, replace):
                done += size
                names.append(name)
                progress(done, total)
                if cancelled.is_set():
                    raise CancelledError
            chunks.append(names)
        return self._publish(manifest, self._entry_text(manifest, chunks, root, vouched), replace)

    def _has_good(self, key: str) -> bool:
        """Whether the remote has an entry that this machine would take; a bad one is replaced."""
        try:
            return self.find(key) is not None
        except EntryRefused:
            return False

    def _send_file(self, root: Path, record: FileRecord, thorough: bool) -> Iterator[tuple[str, int]]:
        """Send a file's pieces, WINDOW at a time; yields each one's SHA-256 and size once it is there."""
        digest = hashlib.sha256()
        ahead: deque[tuple[str, int, Future[None]]] = deque()
        for data in _read_pieces(root / record.path):
            digest.update(data)
            name = hashlib.sha256(data).hexdigest()
            ahead.append((name, len(data), self._start_send(name, data, thorough)))
            if len(ahead) == WINDOW:
                yield self._finish_send(ahead)
        while ahead:
            yield self._finish_send(ahead)
        if digest.hexdigest() != record.sha256:
            raise EntryRefused(f"{record.path} of this cache does not have its recorded SHA-256")

    def _start_send(self, name: str, data: bytes, thorough: bool) -> Future[None]:
        def send(blobs: Blobs) -> None:
            if thorough:
                is_there = blobs.read(blob_name(name), len(data) + 1) == data
            else:
                is_there = blobs.size(blob_name(name)) == len(data)
            if not is_there:
                blobs.write(blob_name(name), data)

        return self._start(send, self._seconds_for(2 * len(data)), "write")

    def _finish_send(self, ahead: deque[tuple[str, int, Future[None]]]) -> tuple[str, int]:
        name, size, future = ahead.popleft()
        self._wait(future, self._seconds_for(2 * WINDOW * size), "write")
        return name, size

    def _entry_text(self, manifest: Manifest, chunks: list[list[str]], root: Path, vouched: Vouched) -> bytes:
        body = {
            "schema": SCHEMA,
            "manifest": manifest.dump(),
            "chunk_bytes": remote.CHUNK_BYTES,
            "chunks": chunks,
            "executables": [record.path for record in manifest.files if os.access(root / record.path, os.X_OK)],
            "signatures": [signature.to_json() for signature in vouched.signatures],
        }
        return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False).encode()

    def _publish(self, manifest: Manifest, text: bytes, replace: bool) -> bool:
        name = entry_name(manifest.key)
        if not replace:
            if self._call(lambda blobs: blobs.create(name, text), len(text), "write"):
                return True
            if self._has_good(manifest.key):
                return False
        self._call(lambda blobs: blobs.write(name, text), 2 * len(text), "write")
        return True

    def write_object(self, operation: Callable[[Blobs], remote.Result]) -> remote.Result:
        """Do something small with the remote's objects. Raises RemoteTrouble."""
        return self._call(operation, kind="write")


def _read_pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while data := stream.read(remote.CHUNK_BYTES):
            yield data
