"""Any other URL that fsspec has a driver for: s3://, gs://, az://, http://, memory:// …

Files are pinned by what the server says of them: a checksum or etag, else a modification time. Where it says nothing
of the kind the contents are read while planning, which is slow but cannot be wrong. Credentials are the driver's
business: it reads its own environment variables and files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trtx.errors import EnvironmentProblem, TrtxError, UsageProblem, VerificationFailed, did_you_mean
from trtx.files import CHUNK_BYTES
from trtx.models.sources.base import SOURCES, Progress, Request, Resolved, is_offline
from trtx.models.sources.quantized import read_quantized
from trtx.models.sources.select import data_files, model_files
from trtx.models.sources.transfer import check_shards, copy_stream, require_space, tree_digest

# What drivers call a version of a file, best first.
VERSION_FIELDS = ("sha256", "ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "checksum", "VersionId", "ino")
TIME_FIELDS = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


@dataclass(frozen=True)
class Listing:
    """The files that count: relative name → what the server says of it."""

    fs: Any
    root: str
    files: Mapping[str, Mapping[str, Any]]


def resolve(request: Request) -> Resolved:
    """Pin the folder (or one data file) by the versions of its files."""
    with driver_errors(request.url):
        listing = list_files(request)
        identity = read_identity(listing)
        if request.kind == "dataset":
            return Resolved(request.url, identity, {})
        config = read_config(request, listing)
        quantized = read_quantized(config, listing.files, request.url, partial(_read_range, listing))
    return Resolved(request.url, identity, config, quantized=quantized)


def is_at_hand(request: Request, identity: str) -> bool:
    """Never: drivers that keep files here cannot be told from others."""
    return False


def fetch(request: Request, identity: str, output: Path, progress: Progress) -> None:
    """Copy the files; the server is asked before and after, so that no mixture of two versions is kept."""
    with driver_errors(request.url):
        listing = list_files(request)
        check_identity(request, listing, identity)
        total = sum(info["size"] for info in listing.files.values())
        require_space(output, total)
        done = 0

        def advance(chunk: bytes) -> None:
            nonlocal done
            done += len(chunk)
            progress(done, total, "bytes")

        for name in listing.files:
            with listing.fs.open(_join(listing.root, name), "rb") as stream:
                copy_stream(stream, output / name, advance)
        check_identity(request, list_files(request), identity)
    short = [name for name, info in listing.files.items() if (output / name).stat().st_size != info["size"]]
    if short:
        raise VerificationFailed(f"{short[0]} of {request.url} is not as long as the server says", fix="run again")
    if request.kind == "model":
        check_shards(output, request.url)


def list_files(request: Request) -> Listing:
    """Ask the server; raises UsageProblem when nothing of use is there."""
    from fsspec.core import url_to_fs

    if request.revision not in (None, "main"):  # "main" is the recipe's default for every source
        raise UsageProblem(f"{request.url} has no revisions", fix="remove `revision`")
    if is_offline(request.environ):
        raise EnvironmentProblem(
            f"{request.url} cannot be asked: the network may not be used",
            why="TRTX_OFFLINE or HF_HUB_OFFLINE is set, or --offline was given",
            fix="run once with a network",
        )
    fs, root = url_to_fs(request.url)
    fs.invalidate_cache()
    if fs.isfile(root) and request.kind == "dataset":
        folder, _, name = root.rpartition("/")
        data_files([name], request.url, None)
        return Listing(fs, folder, {name: fs.info(root)})
    found = {path[len(root) :].strip("/"): info for path, info in fs.find(root, detail=True).items()}
    if not found:
        fs.ls(root)  # `find` leaves out what it cannot list; this says why.
        raise UsageProblem(f"{request.url} does not exist or is empty", fix="check the spelling")
    if request.kind == "model":
        names = model_files(found, request.url, allow_pickle=request.allow_pickle)
    else:
        data_files(found, request.url, request.split)  # says so now if there is no such split
        names = data_files(found, request.url, None)
    return Listing(fs, root, {name: _describe(fs, _join(root, name), found[name]) for name in names})


def _describe(fs: Any, path: str, info: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a server says of a file; drivers such as http list names only and must be asked file by file."""
    says_enough = info.get("size") is not None and any(info.get(name) for name in (*VERSION_FIELDS, *TIME_FIELDS))
    return info if says_enough else {**info, **fs.info(path)}


def read_identity(listing: Listing) -> str:
    """One digest over names, sizes and versions."""
    return tree_digest([(name, info["size"], _version(listing, name, info)) for name, info in listing.files.items()])


def check_identity(request: Request, listing: Listing, identity: str) -> None:
    if read_identity(listing) != identity:
        raise VerificationFailed(
            f"{request.url} has changed since it was pinned",
            why="the versions of its files are not the planned ones",
            fix="run again: `trtx apply` plans anew; what a lock pins is moved by `trtx lock RECIPE --upgrade all`",
        )


def read_config(request: Request, listing: Listing) -> dict[str, Any]:
    """config.json as a dictionary. Raises UsageProblem when it is not one."""
    try:
        config = json.loads(listing.fs.cat_file(_join(listing.root, "config.json")))
    except ValueError as error:
        raise UsageProblem(f"config.json of {request.url} is not JSON", why=str(error)) from error
    if not isinstance(config, dict):
        raise UsageProblem(f"config.json of {request.url} is not a JSON object")
    return config


@contextmanager
def driver_errors(url: str) -> Iterator[None]:
    """Turn whatever a driver raises into a message; drivers have no common error class."""
    from fsspec.registry import known_implementations

    scheme = url.partition("://")[0]
    if scheme not in known_implementations:
        raise UsageProblem(f"unknown kind of source '{scheme}://'", fix=did_you_mean(scheme, [*SOURCES, "s3", "http"]))
    try:
        yield
    except TrtxError:
        raise
    except FileNotFoundError as error:
        raise UsageProblem(f"{url} does not exist", why=str(error), fix="check the spelling") from error
    except ImportError as error:
        raise EnvironmentProblem(
            f"{scheme}:// needs a driver that is not installed",
            why=str(error),
            fix=f"pip install 'fsspec[{'http' if scheme == 'https' else scheme}]'",
        ) from error
    except PermissionError as error:
        raise UsageProblem(f"{url} may not be read", why=str(error), fix="check the driver's credentials") from error
    except Exception as error:
        raise EnvironmentProblem(
            f"cannot reach {url}",
            why=f"{type(error).__name__}: {error}",
            fix="check the network and the driver's settings",
        ) from error


def _version(listing: Listing, name: str, info: Mapping[str, Any]) -> str:
    for field in (*VERSION_FIELDS, *TIME_FIELDS):
        if info.get(field) is not None:
            return f"{field}={info[field]}"
    digest = hashlib.sha256()
    with listing.fs.open(_join(listing.root, name), "rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return f"read={digest.hexdigest()}"


def _read_range(listing: Listing, name: str, start: int, stop: int | None) -> bytes:
    with listing.fs.open(_join(listing.root, name), "rb") as stream:
        stream.seek(start)
        data: bytes = stream.read() if stop is None else stream.read(stop - start)
    return data


def _join(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}"
