"""hf://: models and datasets of the Hugging Face hub, pinned to a commit.

`hf://owner/name` or `hf://owner/name/folder/inside`. Obeys HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME,
HF_HUB_CACHE, HF_HUB_OFFLINE and TRTX_OFFLINE. Offline, the local hub cache answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from trtx.errors import EnvironmentProblem, TrtxError, UsageProblem, VerificationFailed
from trtx.files import canonical_json, read_json, sha256_bytes, write_json
from trtx.models.sources.base import Progress, Request, Resolved, is_commit
from trtx.models.sources.hub import (
    Hub,
    RemoteFile,
    download,
    download_range,
    list_cached,
    list_remote,
    read_hub,
    remember_commit,
)
from trtx.models.sources.local import read_config
from trtx.models.sources.quantized import QuantizedFiles, read_quantized
from trtx.models.sources.select import data_files, held_out_files, model_files, names_one_file
from trtx.models.sources.transfer import check_shards, copy_stream, require_space
from trtx.paths import cache_dir

# Raised when a memo of what a commit resolves to has other content.
MEMO_FORM = 2


def resolve(request: Request) -> Resolved:
    """Pin a branch, tag or commit to the commit it names now.

    What was once resolved for a commit is remembered: it cannot change, so planning needs neither network nor library.
    """
    hub = read_hub(request, request.revision or "main")
    if is_commit(hub.revision) and (known := _recall(request, hub)) is not None:
        return known
    resolved = _resolve(request, hub)
    with suppress(OSError, TrtxError):  # a read-only cache folder makes planning slower, not wrong
        quantized = resolved.quantized.to_data() if resolved.quantized else None
        memo = {"config": resolved.config, "quantized": quantized}
        write_json(_memo_path(request, hub, resolved.identity), memo)
    return resolved


def is_at_hand(request: Request, identity: str) -> bool:
    """Whether the local hub cache holds all that `fetch` would take from a commit."""
    hub = read_hub(replace(request, environ={**request.environ, "HF_HUB_OFFLINE": "1"}), identity)
    try:
        _, files = list_cached(hub)
        _select(request, hub, files)
    except TrtxError:
        return False
    return True


def _resolve(request: Request, hub: Hub) -> Resolved:
    commit, files = list_cached(hub) if hub.offline else list_remote(hub)
    chosen = _select(request, hub, files)
    if not hub.offline:
        remember_commit(hub, commit)
    if request.kind == "dataset":
        return Resolved(request.url, commit, {})
    config = read_config(download(hub, commit, hub.folder + "config.json"), request.url)
    names = [file.name.removeprefix(hub.folder) for file in chosen]
    read = partial(_read_range, hub, commit)
    return Resolved(request.url, commit, config, quantized=read_quantized(config, names, request.url, read))


def fetch(request: Request, identity: str, output: Path, progress: Progress) -> None:
    """Download the needed files of a commit through the hub cache and copy them out, digests checked."""
    hub = read_hub(request, identity)
    _, files = list_cached(hub) if hub.offline else list_remote(hub)
    chosen = _select(request, hub, files)
    total = sum(file.size for file in chosen)
    require_space(output, total)
    if not hub.offline:
        hub.cache.mkdir(parents=True, exist_ok=True)
        require_space(hub.cache, total - sum(file.size for file in chosen if _snapshot(hub, identity, file).exists()))
    done = 0
    for file in chosen:
        path = download(hub, identity, file.name, _offset(progress, done, total))
        copy_checked(hub, file, path, output / file.name.removeprefix(hub.folder))
        done += file.size
        progress(done, total, "bytes")
    check_shards(output, request.url)


def copy_checked(hub: Hub, file: RemoteFile, source: Path, target: Path) -> None:
    """Copy out of the hub cache; a file that is not what the hub says is removed there.

    Raises VerificationFailed.
    """
    git_sha1 = hashlib.sha1(f"blob {source.stat().st_size}\0".encode(), usedforsecurity=False)
    with source.open("rb") as stream:
        sha256 = copy_stream(stream, target, git_sha1.update)
    size = target.stat().st_size
    wanted, found = (file.sha256, sha256) if file.sha256 else (file.git_sha1, git_sha1.hexdigest())
    if size == file.size and (wanted is None or wanted == found):
        return
    target.unlink()
    source.resolve().unlink()
    raise VerificationFailed(
        f"{file.name} of {hub.repo} is damaged",
        why=f"the hub says {file.size} bytes, digest {wanted}; the download has {size} bytes, digest {found}",
        fix="run again: the damaged copy was removed from the hub cache",
    )


def _select(request: Request, hub: Hub, files: list[RemoteFile]) -> list[RemoteFile]:
    """The files to download; their names still start with the folder."""
    inside = {file.name.removeprefix(hub.folder): file for file in files if file.name.startswith(hub.folder)}
    if not inside and names_one_file(request.url):
        inside = {file.name: file for file in files if file.name + "/" == hub.folder}
    if not inside:
        raise UsageProblem(f"{hub.repo} has no '{hub.folder.strip('/')}'", fix=f"see {hub.asked.page}/tree/main")
    try:
        if request.kind == "model":
            names = model_files(inside, request.url, allow_pickle=request.allow_pickle)
        else:
            names = _data_names(request, list(inside))
    except UsageProblem as error:
        if not hub.offline:
            raise
        raise EnvironmentProblem(
            f"the local hub cache may hold only a part of {hub.repo}",
            why=f"{error.what}, and the network may not be used",
            fix=f"run once with a network, or `hf download {hub.repo}`",
        ) from error
    return [inside[name] for name in names]


def _data_names(request: Request, inside: list[str]) -> tuple[str, ...]:
    """The files of the split, and of the validation split beside it, from which held-out rows are drawn."""
    if request.split is None or names_one_file(request.url):
        return data_files(inside, request.url, None)
    names = data_files(inside, request.url, request.split)
    folders = sorted({name.rpartition("/")[0] for name in names})
    if len(folders) > 1:
        raise UsageProblem(
            f"{request.url} has several parts with a split '{request.split}'",
            why=f"folders: {', '.join(folders)}",
            fix=f"name one, such as {request.url}/{folders[-1]}",
        )
    return tuple(sorted({*names, *held_out_files(inside, request.split)}))


def _memo_path(request: Request, hub: Hub, commit: str) -> Path:
    """Where it is noted what a commit resolves to; everything that decides it is in the name."""
    facts = [hub.endpoint, hub.kind, hub.repo, hub.folder, commit, [request.allow_pickle, request.split], MEMO_FORM]
    return cache_dir(request.environ) / "memo" / f"hub-{sha256_bytes(canonical_json(facts))}.json"


def _recall(request: Request, hub: Hub) -> Resolved | None:
    try:
        memo = read_json(_memo_path(request, hub, hub.revision))
        quantized = QuantizedFiles.from_data(memo["quantized"]) if memo["quantized"] else None
        return Resolved(request.url, hub.revision, dict(memo["config"]), quantized=quantized)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_range(hub: Hub, commit: str, name: str, start: int, stop: int | None) -> bytes:
    """Bytes of a file of a commit, of the hub cache where it is there; a small file is fetched whole."""
    path = hub.cached / "snapshots" / commit / (hub.folder + name)
    if not path.exists() and stop is not None and not hub.offline:
        return download_range(hub, commit, hub.folder + name, start, stop)
    with download(hub, commit, hub.folder + name).open("rb") as stream:
        stream.seek(start)
        return stream.read(-1 if stop is None else stop - start)


def _offset(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    """Progress within one file as progress of the whole download."""
    return lambda count: progress(before + count, total, "bytes")


def _snapshot(hub: Hub, commit: str, file: RemoteFile) -> Path:
    return hub.cached / "snapshots" / commit / file.name
