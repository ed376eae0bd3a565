"""Which runs are under way: a note each, with all that they use or will, wherever their records are.

runs/<id>-<8 digits>.json, the digits from the folder of the run's record: ids are unique within a project only. Like
leases, notes are advice: a run whose note could not be written only risks that its later inputs are pruned.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trtx.errors import EnvironmentProblem
from trtx.files import read_json, sha256_bytes, write_json
from trtx.processes import describe_this_process, is_gone

# Of a run whose process or record cannot be looked at from here, nothing is known but its age: runs take days at most.
UNSEEN_S = 7 * 86400.0


def note_run(root: Path, record: Path, keys: Iterable[str], jobs: Sequence[tuple[Path, Path]] = ()) -> None:
    """Note that this process drives the run whose record is in the folder `record`, and that it needs `keys`.

    `jobs`: for each cluster, the file that is there once jobs were ordered, and the one that is there once all of them
    are settled. Between these the run goes on without this process.
    """
    note = {
        **describe_this_process(),
        "run": record.name,
        "record": str(record.absolute()),
        "jobs": [[str(ordered.absolute()), str(settled.absolute())] for ordered, settled in jobs],
        "keys": sorted(set(keys)),
    }
    with contextlib.suppress(OSError, EnvironmentProblem):
        write_json(_path(root, record), note)


def end_run(root: Path, record: Path) -> None:
    """Take a run's note away, unless jobs of it go on."""
    path = _path(root, record)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if _jobs_under_way(read_json(path)):
            return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def keys_of_runs(root: Path) -> dict[str, str]:
    """Key → the run that needs it, for people."""
    keys: dict[str, str] = {}
    for path in _notes(root):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note = read_json(path)
            if _is_live(path, note):
                keys |= {str(key): f"in use by run {note['run']} in {note['record']}" for key in note["keys"]}
    return keys


def forget_dead_runs(root: Path) -> None:
    """Delete the notes of runs that are over and could not do so themselves."""
    for path in _notes(root):
        try:
            dead = not _is_live(path, read_json(path))
        except (ValueError, KeyError, TypeError):
            dead = True  # Notes appear whole: this one never says anything.
        except OSError:
            continue
        if dead:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _notes(root: Path) -> Iterator[Path]:
    return (root / "runs").glob("[0-9]*.json")


def _path(root: Path, record: Path) -> Path:
    return root / "runs" / f"{record.name}-{sha256_bytes(str(record.absolute()).encode())[:8]}.json"


def _is_live(path: Path, note: dict[str, Any]) -> bool:
    """Whether a run is under way: its process is there, or its jobs are; by the note's age where nobody can tell."""
    young = time.time() - path.stat().st_mtime <= UNSEEN_S
    if not Path(note["record"]).is_dir():
        return young and bool(note["jobs"] or not is_gone(note))
    if _jobs_under_way(note):
        return True
    if _jobs_over(note) or is_gone(note):
        return False
    return young or _is_of_this_host(note)


def _is_of_this_host(note: dict[str, Any]) -> bool:
    """Whether is_gone can judge the process of a note."""
    me = describe_this_process()
    return all(note[name] == me[name] for name in ("host", "boot", "namespace"))


def _jobs_under_way(note: dict[str, Any]) -> bool:
    return any(Path(ordered).exists() and not Path(settled).exists() for ordered, settled in note["jobs"])


def _jobs_over(note: dict[str, Any]) -> bool:
    return bool(note["jobs"]) and all(Path(settled).exists() for _, settled in note["jobs"])
