"""One repository of a Hugging Face hub: which settings apply, what it lists, how a file of it is had.

Every setting is read from the environment when called: huggingface_hub itself reads most of them once, at import.
The library is imported on first use, for it takes its time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtx.errors import EnvironmentProblem, UsageProblem
from trtx.files import disk_errors, walk_files, write_text
from trtx.models.sources.base import TRUE, Request, is_commit, is_offline

if TYPE_CHECKING:
    from trtx.models.sources.hub_errors import Asked

TIMEOUT_S = 15.0
PARTIAL_CONTENT = 206


@dataclass(frozen=True)
class RemoteFile:
    """One file at a commit. Large files have a SHA-256; the others git's blob SHA-1; in a local cache neither."""

    name: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True)
class Hub:
    """One repository and how to reach it, with every setting made explicit."""

    repo: str
    folder: str
    kind: str
    revision: str
    endpoint: str
    cache: Path
    token: str | None
    offline: bool

    def __repr__(self) -> str:
        return f"Hub({self.kind} {self.repo}@{self.revision} at {self.endpoint})"  # the token stays out of tracebacks

    @property
    def asked(self) -> Asked:
        from trtx.models.sources.hub_errors import Asked

        return Asked(self.repo, self.kind, self.revision, self.endpoint, self.token is not None)

    @property
    def cached(self) -> Path:
        """The repository's folder in the hub cache (huggingface.co/docs/huggingface_hub/guides/manage-cache)."""
        return self.cache / f"{self.kind}s--{self.repo.replace('/', '--')}"


def read_hub(request: Request, revision: str) -> Hub:
    """The repository a URL names and the settings of the environment.

    Raises UsageProblem for a URL that is not owner/name.
    """
    environ = request.environ
    parts = [part for part in request.url.removeprefix("hf://").split("/") if part]
    if len(parts) < 2 or "@" in request.url:
        raise UsageProblem(
            f"'{request.url}' does not name a repository of the hub",
            why="it has the form hf://owner/name or hf://owner/name/folder",
            fix="write the branch, tag or commit as `revision`" if "@" in request.url else "add the owner",
        )
    home = Path(environ.get("HF_HOME") or _xdg_cache(environ) / "huggingface").expanduser()
    return Hub(
        repo="/".join(parts[:2]),
        folder="".join(part + "/" for part in parts[2:]),
        kind=request.kind,
        revision=revision,
        endpoint=(environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"),
        cache=Path(environ.get("HF_HUB_CACHE") or home / "hub").expanduser(),
        token=_read_token(environ, home),
        offline=is_offline(environ),
    )


def list_remote(hub: Hub) -> tuple[str, list[RemoteFile]]:
    """The commit a revision names, and all its files, asked of the hub."""
    from huggingface_hub import HfApi

    from trtx.models.sources.hub_errors import hub_errors

    with hub_errors(hub.asked):
        api = HfApi(endpoint=hub.endpoint, token=hub.token or False)
        ask = api.model_info if hub.kind == "model" else api.dataset_info
        info = ask(hub.repo, revision=hub.revision, files_metadata=True, timeout=TIMEOUT_S)
    files = [
        RemoteFile(
            name=entry.rfilename,
            size=entry.size or 0,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            git_sha1=None if entry.lfs else entry.blob_id,
        )
        for entry in info.siblings or []
    ]
    if not info.sha:
        raise EnvironmentProblem(
            f"{hub.endpoint} does not say which commit {hub.revision} of {hub.repo} is",
            why="without one nothing is pinned",
            fix="check HF_ENDPOINT: a mirror must give `sha`",
        )
    return info.sha, files


def remember_commit(hub: Hub, commit: str) -> None:
    """Note in the hub cache which commit a branch or tag names, for times without a network, as the library does."""
    if not is_commit(hub.revision):
        write_text(hub.cached / "refs" / hub.revision, commit)


def list_cached(hub: Hub) -> tuple[str, list[RemoteFile]]:
    """The same from the local hub cache, without the network.

    Raises EnvironmentProblem when the cache does not hold that revision.
    """
    commit = hub.revision
    if not is_commit(commit):
        reference = hub.cached / "refs" / commit
        commit = reference.read_text().strip() if reference.is_file() else ""
    snapshot = hub.cached / "snapshots" / commit
    if not commit or not snapshot.is_dir():
        raise EnvironmentProblem(
            f"{hub.repo} at {hub.revision} is not in the local hub cache and the network may not be used",
            why=f"HF_HUB_OFFLINE or TRTX_OFFLINE is set and {hub.cached} does not hold it",
            fix=f"run once with a network, or `hf download {hub.repo}`",
        )
    files = []
    for path in walk_files(snapshot):
        blob = path.resolve()  # the cache names a blob by the SHA-256 (large files) or git SHA-1 of its content
        files.append(
            RemoteFile(
                name=path.relative_to(snapshot).as_posix(),
                size=blob.stat().st_size,
                sha256=blob.name if re.fullmatch(r"[0-9a-f]{64}", blob.name) else None,
                git_sha1=blob.name if is_commit(blob.name) else None,
            )
        )
    return commit, files


def download(hub: Hub, commit: str, name: str, advance: Callable[[int], None] | None = None) -> Path:
    """A file's path in the hub cache, downloaded if need be.

    The library resumes a dropped connection; after a killed process it starts that one file again.
    """
    from huggingface_hub import hf_hub_download

    from trtx.models.sources.hub_errors import hub_errors
    from trtx.models.sources.hub_progress import make_bar

    with disk_errors(hub.cache), hub_errors(hub.asked):
        return Path(
            hf_hub_download(
                hub.repo,
                name,
                repo_type=hub.kind,
                revision=commit,
                cache_dir=hub.cache,
                endpoint=hub.endpoint,
                token=hub.token or False,
                etag_timeout=TIMEOUT_S,
                local_files_only=hub.offline,
                tqdm_class=make_bar(advance or (lambda count: None)),
            )
        )


def download_range(hub: Hub, commit: str, name: str, start: int, stop: int) -> bytes:
    """Some bytes of a file, which is not kept. Raises EnvironmentProblem for a hub that sends other ones."""
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status

    from trtx.models.sources.hub_errors import hub_errors

    with hub_errors(hub.asked):
        url = hf_hub_url(hub.repo, name, repo_type=hub.kind, revision=commit, endpoint=hub.endpoint)
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        headers |= {"Authorization": f"Bearer {hub.token}"} if hub.token else {}
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as answer:
            hf_raise_for_status(answer)
            partial, found = answer.status_code == PARTIAL_CONTENT, b""
            for chunk in answer.iter_bytes() if partial else ():
                found += chunk
                if len(found) >= stop - start:
                    break
    if not partial:
        raise EnvironmentProblem(
            f"{hub.endpoint} does not send parts of {name}",
            why=f"it answered {answer.status_code} to a request for {stop - start} bytes",
            fix="check HF_ENDPOINT: a mirror must know ranges; or fetch the model first with `hf download`",
        )
    return found[: stop - start]


def _xdg_cache(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache")


def _read_token(environ: Mapping[str, str], home: Path) -> str | None:
    """HF_TOKEN, else the token `hf auth login` stored."""
    token = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN")
    if not token and environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() not in TRUE:
        path = Path(environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
        token = path.read_text() if path.is_file() else None
    return token.strip() or None if token else None
