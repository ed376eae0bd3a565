"""Objects at a URL: read, create, replace, remove. One class for folders, one for every other driver of fsspec.

How "create only if it is not there" is done: S3 by `If-None-Match: *`, Google Cloud Storage by a generation match (both
behind fsspec's mode="create"), folders by a hard link of a finished file. Drivers that have nothing of the kind look
first; whoever needs to know who won reads back.

Credentials are the drivers' business: they read their own environment variables and files.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import threading
import uuid
from pathlib import Path
from typing import Any, Protocol

from trtx.files import sha256_bytes

# Servers with conditional writes reject one that they do not implement with these codes.
NO_CONDITION_CODES = frozenset({"NotImplemented", "InvalidRequest", "InvalidArgument"})


class BlobDamaged(OSError):
    """What arrived at the other side is not what was sent."""


class Blobs(Protocol):
    """Objects below one URL; names are relative, with slashes. Methods raise OSError when the other side fails."""

    def read(self, name: str, limit: int) -> bytes | None:
        """The first `limit` bytes of an object, or None when there is none."""
        ...

    def size(self, name: str) -> int | None:
        """Size in bytes, or None when there is no such object."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write an object that is not there yet; False when there is one."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write or replace an object. Raises BlobDamaged when the other side has something else afterwards."""
        ...

    def remove(self, name: str) -> None:
        """Delete an object; none is no error."""
        ...


class FolderBlobs:
    """Objects as files of a folder (local, NFS): readers see whole files, because all appear by link or rename.

    With `may_create` a missing folder is made; without, it is reported: it is likely a share that is not mounted.
    """

    def __init__(self, root: Path, *, may_create: bool) -> None:
        self._root = root
        self._may_create = may_create

    def read(self, name: str, limit: int) -> bytes | None:
        try:
            with self._path(name).open("rb") as stream:
                return stream.read(limit)
        except FileNotFoundError:
            self._check_root()
            return None

    def size(self, name: str) -> int | None:
        try:
            return self._path(name).stat().st_size
        except FileNotFoundError:
            self._check_root()
            return None

    def create(self, name: str, data: bytes) -> bool:
        path, temporary = self._path(name), self._write_temporary(name, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # A file system without hard links.
            return self._create_exclusively(path, data)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def write(self, name: str, data: bytes) -> None:
        temporary = self._write_temporary(name, data)
        try:
            if sha256_bytes(temporary.read_bytes()) != sha256_bytes(data):
                raise BlobDamaged(f"{name} was not written as it was sent")
            temporary.replace(self._path(name))
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._root / name

    def _check_root(self) -> None:
        """What is absent from a folder that is absent is a problem."""
        if not self._may_create and not self._root.is_dir():
            raise NotADirectoryError(f"there is no folder {self._root}")

    def _write_temporary(self, name: str, data: bytes) -> Path:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        return temporary

    def _create_exclusively(self, path: Path, data: bytes) -> bool:
        try:
            with path.open("xb") as stream:
                stream.write(data)
        except FileExistsError:
            return False
        return True


class DriverBlobs:
    """Objects of any other driver of fsspec: s3://, gs://, memory:// …"""

    _creating = threading.Lock()  # Drivers without conditional writes look before they write.

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root.rstrip("/")
        self._protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)

    def read(self, name: str, limit: int) -> bytes | None:
        try:
            data: bytes = self._fs.cat_file(self._path(name), start=0, end=limit)
        except FileNotFoundError as error:
            _check_bucket(error)
            return None
        except OSError as error:
            if _code(error) == "InvalidRange":  # S3's answer for a range of an empty object.
                return b""
            raise
        return data[:limit]

    def size(self, name: str) -> int | None:
        try:
            return int(self._fs.info(self._path(name), refresh=True)["size"])
        except FileNotFoundError as error:
            _check_bucket(error)
            return None

    def create(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        try:
            if self._protocols & {"s3", "gs"}:
                self._fs.pipe_file(path, data, mode="create")
                return True
        except FileExistsError:
            return False
        except OSError as error:
            if _code(error) not in NO_CONDITION_CODES:
                raise
        with self._creating:
            if self.size(name) is not None:
                return False
            self._fs.pipe_file(path, data)
        return True

    def write(self, name: str, data: bytes) -> None:
        """Verified by the other side's own SHA-256 or MD5 of the object, where it tells one; else by reading back."""
        path, digest = self._path(name), hashlib.sha256(data).digest()
        stated: Any = None
        if "s3" in self._protocols:
            # S3 refuses content that does not have the stated checksum.
            stated = self._fs.pipe_file(path, data, ChecksumSHA256=base64.b64encode(digest).decode())
        else:
            self._fs.pipe_file(path, data)
        if isinstance(stated, dict) and _states(stated, data, digest):
            return
        if self.read(name, len(data) + 1) != data:
            raise BlobDamaged(f"{name} did not arrive as it was sent")

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _states(answer: dict[str, Any], data: bytes, digest: bytes) -> bool:
    """Whether S3's answer to a PUT proves what it stored (an ETag is an MD5 for objects that it does not encrypt)."""
    if answer.get("ChecksumSHA256") == base64.b64encode(digest).decode():
        return True
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return str(answer.get("ETag", "")).strip('"') == md5


def _code(error: BaseException) -> str:
    """The error code of S3 behind an OSError of its driver."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _check_bucket(error: FileNotFoundError) -> None:
    """An object that is not there is none; a bucket that is not there is a problem."""
    if _code(error) == "NoSuchBucket":
        raise NotADirectoryError("the bucket does not exist") from error


def open_blobs(url: str, *, endpoint: str | None, timeout_s: float, may_create: bool) -> Blobs:
    """The objects at a URL. Raises ImportError when the driver of its scheme is not installed."""
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        return FolderBlobs(Path(rest), may_create=may_create)
    import fsspec

    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a"):
        # trtx repeats calls itself, within its deadline.
        config = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": {"total_max_attempts": 1}}
        options = {"endpoint_url": endpoint, "config_kwargs": config, "use_listings_cache": False}
    fs, root = fsspec.core.url_to_fs(url, **options)
    if "config_kwargs" in options:
        fs.retries = 1
    return DriverBlobs(fs, root)
