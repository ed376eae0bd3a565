"""What every model and dataset source offers, and the table of them. Imports no torch.

`resolve` runs in the control plane, while planning; `fetch` runs in the download step.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from trtx.errors import UsageProblem, VerificationFailed, did_you_mean
from trtx.models.sources.quantized import QuantizedFiles

Kind = Literal["model", "dataset"]
Progress = Callable[[int, int, str], None]  # done, total, unit

# URL scheme → module. Any other scheme goes to fsspec.
SOURCES = {
    "hf": "trtx.models.sources.hf",
    "file": "trtx.models.sources.local",
    "demo": "trtx.models.sources.demo",
    "random": "trtx.models.sources.random",
}
ANY_OTHER = "trtx.models.sources.remote"
# Sources that need no network.
LOCAL = ("file://", "demo://", "random://")
COMMIT = re.compile(r"[0-9a-f]{40}")
TRUE = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads flags


@dataclass(frozen=True)
class Request:
    """What a recipe says about one model or dataset.

    `allow_pickle` lets *.bin weights through; `split` limits a dataset to one part (None: all of it);
    `environ` is where tokens, endpoints and cache folders are read from.
    """

    url: str
    kind: Kind
    revision: str | None = None
    allow_pickle: bool = False
    split: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Resolved:
    """A source pinned: `identity` changes whenever the bytes could.

    `url` is the canonical form to plan with (a relative file:// path made absolute). `identity` is a commit
    for hf://, a digest of the tree for files, the generator's parameters for demo:// and random://.
    `config` is the parsed config.json of a model, `{}` for a dataset. `toolchain` names the
    distributions whose versions influence the bytes (only generated models have any). `quantized` is what else the
    files of a model say that is quantized already; None for all others.
    """

    url: str
    identity: str
    config: Mapping[str, Any]
    toolchain: tuple[str, ...] = ()
    quantized: QuantizedFiles | None = None


class Source(Protocol):
    """Interface of a source module."""

    def resolve(self, request: Request) -> Resolved:
        """Pin the source; reads little (metadata, config.json).

        Raises UsageProblem when the URL is wrong or names nothing, EnvironmentProblem when it cannot be reached.
        """
        ...

    def is_at_hand(self, request: Request, identity: str) -> bool:
        """Whether `fetch` of that identity would need no network."""
        ...

    def fetch(self, request: Request, identity: str, output: Path, progress: Progress) -> None:
        """Write all files of exactly `identity` into the empty folder `output`.

        Raises VerificationFailed when the source no longer has those bytes.
        """
        ...


def is_local(url: str) -> bool:
    """Whether a source needs no network."""
    return url.startswith(LOCAL)


def on_hub(url: str) -> bool:
    """Whether a source is pinned by commits, which name their content."""
    return url.startswith("hf://")


def is_commit(revision: str | None) -> bool:
    """Whether a revision of the hub is one that cannot move."""
    return revision is not None and COMMIT.fullmatch(revision) is not None


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether the network may not be used: HF_HUB_OFFLINE and TRTX_OFFLINE mean the same."""
    return any(environ.get(name, "").upper() in TRUE for name in ("HF_HUB_OFFLINE", "TRTX_OFFLINE"))


def find_source(url: str) -> Source:
    """The module that serves a URL such as `hf://owner/name`."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise UsageProblem(
            f"'{url}' is not a source",
            why="there is no scheme",
            fix=f"write hf://{url} for the hub or file://{url}",
        )
    return cast(Source, importlib.import_module(SOURCES.get(scheme, ANY_OTHER)))


def unknown_name(kind: str, name: str, known: list[str]) -> UsageProblem:
    """The error for a name that a generator source does not have."""
    return UsageProblem(f"there is no {kind} '{name}'", fix=did_you_mean(name, known))


def check_identity(request: Request, planned: str, makes: str, maker: str) -> None:
    """Raise VerificationFailed where a generator source, on this `maker`, makes other bytes than were planned."""
    if makes != planned:
        raise VerificationFailed(
            f"{request.url} is not what was planned",
            why=f"planned {planned}, but this {maker} makes {makes}",
            fix=f"plan and run with the same {maker}",
        )
