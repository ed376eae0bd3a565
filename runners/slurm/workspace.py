"""Where the files are that driver and jobs share."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from trtx.runners.slurm.attempts import Claim, End, take_claim, write_end


class Workspace(Protocol):
    """What a driver does with files that jobs use at the same time."""

    def place(self, path: Path) -> Path:
        """Where jobs find a path of the run."""
        ...

    def pull(self) -> None:
        """See what jobs have written."""
        ...

    def push(self) -> None:
        """Let jobs see what was written here."""
        ...

    def revoke(self, step_folder: Path, claim: Claim) -> None:
        """Append to a step's claims."""
        ...

    def end(self, folder: Path, end: End) -> None:
        """Record the end of an attempt that could not do it itself; its own word stands if there is one."""
        ...


class LocalWorkspace:
    """A file system that this machine and the nodes share."""

    def place(self, path: Path) -> Path:
        return path

    def pull(self) -> None:
        return

    def push(self) -> None:
        return

    def revoke(self, step_folder: Path, claim: Claim) -> None:
        take_claim(step_folder, claim)

    def end(self, folder: Path, end: End) -> None:
        write_end(folder, end)
