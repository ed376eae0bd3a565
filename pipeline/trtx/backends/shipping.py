"""What a deployment installs: trtx itself as a wheel, and an exact pin of everything it needs. Imports no torch."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import trtx
from trtx.errors import EnvironmentProblem

# What `trtx serve` imports beyond trtx's own dependencies. Quantization and compilation stay at home.
RUNTIME_DISTRIBUTIONS = (
    "fastapi",
    "jinja2",
    "numpy",
    "prometheus-client",
    "safetensors",
    "tokenizers",
    "torch",
    "uvicorn",
)

# The oldest time stamp that a zip archive can hold: the wheel's bytes must not depend on the clock.
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)

# PyTorch's own index per build: the local part of torch's version (`2.13.0+cpu`) is the folder's name.
TORCH_INDEX = "https://download.pytorch.org/whl/"

_SKIPPED_PARTS = {"__pycache__"}


def pinned_requirements(roots: tuple[str, ...] = ("trtx", *RUNTIME_DISTRIBUTIONS)) -> dict[str, str]:
    """Exact versions of `roots` and of everything they require on this machine, by canonical name, sorted.

    The versions are the installed ones: the ones that the engine was built and checked with. trtx itself is left
    out, because it travels as a wheel. Environment markers are evaluated for this interpreter.

    Raises EnvironmentProblem for a distribution that is required but not installed.
    """
    pins: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(name, frozenset()) for name in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        name = canonicalize_name(name)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found = _distribution(name)
        pins[name] = found.version
        waiting.extend(_requirements(found, extras))
    pins.pop("trtx", None)
    return dict(sorted(pins.items()))


def requirements_text(pins: Mapping[str, str]) -> str:
    """requirements.txt of exact pins; a build of torch outside the package index brings its index along."""
    lines = [f"{name}=={version}" for name, version in pins.items()]
    local = pins.get("torch", "").partition("+")[2]
    if local:
        lines.insert(0, f"--extra-index-url {TORCH_INDEX}{local}")
    return "\n".join(lines) + "\n"


def wheel_name() -> str:
    return f"trtx-{trtx.__version__}-py3-none-any.whl"


def write_wheel(folder: Path) -> Path:
    """Write trtx as it is installed here as a wheel into `folder`; same sources, same bytes.

    Works from an editable install and from an installed wheel, and needs no build tools. Format:
    https://packaging.python.org/en/latest/specifications/binary-distribution-format/. Nothing is compressed,
    so the bytes do not depend on the zlib at hand.
    """
    info = f"trtx-{trtx.__version__}.dist-info"
    members = {f"trtx/{name}": path.read_bytes() for name, path in _sources().items()}
    members |= {f"{info}/{name}": text.encode() for name, text in _dist_info().items()}
    record = [f"{name},sha256={_record_digest(data)},{len(data)}" for name, data in sorted(members.items())]
    members[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / wheel_name()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name, ZIP_EPOCH)
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data)
    return target


def _sources() -> dict[str, Path]:
    """Files of the trtx package by path inside it, sorted; the source tree's links to folders are followed."""
    root = Path(trtx.__file__).parent
    found = {path.relative_to(root).as_posix(): path for path in _walk(root)}
    return dict(sorted(found.items()))


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in _SKIPPED_PARTS or path.name.endswith((".pyc", ".lock.yaml")):
            continue
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _dist_info() -> dict[str, str]:
    """The metadata files of the wheel, from the installed distribution's headers."""
    found = _distribution("trtx")
    # The long description may be older than the sources, and an editable install has no licence files beside it.
    headers = (found.read_text("METADATA") or "").partition("\n\n")[0].splitlines()
    kept = [line for line in headers if not line.startswith(("Description-Content-Type:", "License-File:"))]
    return {
        "METADATA": "\n".join(kept) + "\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: trtx\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": found.read_text("entry_points.txt") or "",
    }


def _record_digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _distribution(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError as error:
        raise EnvironmentProblem(
            f"the Python package {name} is not installed here",
            why="a deployment pins the versions that the engine was built and checked with",
            fix="install trtx with its engine extra: pip install 'trtx[engine]'",
        ) from error


def _requirements(found: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """What a distribution with these extras requires here, each with the extras it is required with."""
    for requirement in map(Requirement, found.requires or ()):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            yield requirement.name, frozenset(requirement.extras)
