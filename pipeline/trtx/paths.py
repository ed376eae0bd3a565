"""Where trtx keeps things, by the XDG base directory rules and trtx's own variables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def cache_dir(environ: Mapping[str, str]) -> Path:
    """`$TRTX_CACHE_DIR`, else `$XDG_CACHE_HOME/trtx`, else `~/.cache/trtx`; absolute."""
    if environ.get("TRTX_CACHE_DIR"):
        return Path(environ["TRTX_CACHE_DIR"]).expanduser().absolute()
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(base).expanduser() / "trtx").absolute()


def kernels_dir(environ: Mapping[str, str]) -> Path:
    """Built kernel libraries, of which every engine of an architecture takes a copy: beside the default cache."""
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(base).expanduser() / "trtx-kernels").absolute()


def runs_dir(project: Path) -> Path:
    """Run records of a project folder: the folder `trtx apply` was started in."""
    return project / ".trtx" / "runs"
