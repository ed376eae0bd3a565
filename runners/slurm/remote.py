"""A driver on a machine without Slurm: commands through the user's own ssh, files through rsync.

The folder of the run exists twice. What the driver writes goes there before sbatch is called, what jobs write comes
back every few seconds; claims, which must be unique, are made there, by `python -m trtx.runners.slurm.remote`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from trtx.errors import EnvironmentProblem, UsageProblem
from trtx.runners.slurm.attempts import Claim, End, read_claims, take_claim, write_end
from trtx.runners.slurm.clock import Clock, RealClock
from trtx.runners.slurm.commands import COMMAND_SETTINGS, Answer, LocalShell

# ssh's own exit status when it, not the command, failed.
SSH_FAILED = 255
# Those of rsync when the connection failed or broke. Source: rsync(1), EXIT VALUES.
RSYNC_FAILED = (SSH_FAILED, 10, 12, 30, 35)
# What jobs write. All else is written here, and what is there of it may be older.
WRITTEN_THERE = ("attempts/**", "claims/*.json", "news/*", "slurm-*.out")
# Of this machine alone: copies would soon be out of date.
NOT_FOR_JOBS = ("events.jsonl", "driver.json", "attempts", "claims", "news/*")
# How long to wait for a login node that was reached before, in seconds: ten minutes in all.
PATIENCE_S = (1.0, 2.0, 5.0, 10.0, *[20.0] * 29)
MODULE = "trtx.runners.slurm.remote"


@dataclass(frozen=True)
class Ssh:
    """How a login node is reached; `words` is the user's ssh, whose configuration knows the rest."""

    host: str
    port: int | None = None
    words: tuple[str, ...] = ("ssh",)

    @property
    def argv(self) -> list[str]:
        """The words before the host. One connection serves all calls and ends a minute after the last."""
        folder = Path(tempfile.gettempdir()) / f"trtx-ssh-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise EnvironmentProblem(f"{folder} belongs to somebody else", fix="set TMPDIR to a folder of your own")
        shared = ("ControlMaster=auto", f"ControlPath={folder}/%C", "ControlPersist=60", "BatchMode=yes")
        port = ["-p", str(self.port)] if self.port else []
        return [*self.words, *port, *(word for option in shared for word in ("-o", option))]


def parse_login(url: str) -> Ssh:
    """`ssh://[user@]host[:port]`, as in `submit_from`. Raises UsageProblem for anything else."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise UsageProblem(f"'{url}' has no port that could be", why=str(error)) from error
    if parts.scheme != "ssh" or not parts.hostname or parts.hostname.startswith("-") or parts.path.strip("/"):
        raise UsageProblem(f"'{url}' names no login node", fix="write it as ssh://host or ssh://user@host:port")
    if parts.password:
        raise UsageProblem("the login node's URL holds a password", fix="use a key: ssh asks its agent for it")
    user = f"{parts.username}@" if parts.username else ""
    return Ssh(f"{user}{parts.hostname}", port)


@dataclass(frozen=True)
class SshShell:
    """Slurm's commands on a login node, in the environment that its logins have."""

    ssh: Ssh
    local: LocalShell

    def call(self, argv: Sequence[str], *, timeout_s: float, exported: Sequence[str] | None = None) -> Answer:
        settings = [f"{name}={value}" for name, value in COMMAND_SETTINGS.items()] if exported is None else []
        line = shlex.join([*(["env", *settings] if settings else []), *argv])
        answer = self.local.call([*self.ssh.argv, self.ssh.host, "--", line], timeout_s=timeout_s)
        # Whether the command ran before the connection broke is not known.
        return Answer(None, answer.out, answer.err) if answer.code == SSH_FAILED else answer


@dataclass
class SshWorkspace:
    """The run's folder here, `local`, and there, `there`; `python` is the interpreter there that has trtx."""

    shell: SshShell
    local: Path
    there: Path
    python: str = "python3"
    every_s: float = 5.0
    timeout_s: float = 300.0
    clock: Clock = field(default_factory=RealClock)
    complaint: str = ""
    _pulled: float | None = None
    _reached: bool = False
    _pushed: bool = False

    def place(self, path: Path) -> Path:
        return self.there / path.relative_to(self.local)

    def pull(self) -> None:
        now = self.clock.now()
        if self._pulled is None or now - self._pulled >= self.every_s:
            self._pulled = now
            self._fetch()

    def _fetch(self) -> None:
        """Files that do not come now come later: nothing is concluded from their absence."""
        source = f"{self.shell.ssh.host}:{self.there}/"
        words = ["--include=*/", *(f"--include={name}" for name in WRITTEN_THERE), "--exclude=*", "--prune-empty-dirs"]
        answer = self._rsync(words, source, f"{self.local}/")
        self._reached = self._reached or answer.code == 0
        self.complaint = "" if answer.code == 0 else answer.complaint

    def push(self) -> None:
        """Raises EnvironmentProblem when it cannot be done: without its files a job could not run."""
        words = ["--ignore-existing", *(f"--exclude={name}" for name in NOT_FOR_JOBS)]
        target = f"{self.shell.ssh.host}:{self.there}/"
        make_folder = ["mkdir", "-p", str(self.there)]
        answer = Answer(0)
        if not self._pushed:
            answer = self._patiently(lambda: self.shell.call(make_folder, timeout_s=self.timeout_s))
        if answer.code == 0:
            answer = self._patiently(lambda: self._rsync(words, f"{self.local}/", target))
        self._pushed = answer.code == 0
        if answer.code != 0:
            raise EnvironmentProblem(
                f"cannot copy the run's files to {self.shell.ssh.host}:{self.there}",
                why=answer.complaint,
                fix=f"see that `ssh {self.shell.ssh.host}` and rsync work without a password",
            )

    def _rsync(self, words: Sequence[str], source: str, target: str) -> Answer:
        # --protect-args: paths are not words of a shell there.
        argv = [
            "rsync",
            "--archive",
            "--protect-args",
            f"--rsh={shlex.join(self.shell.ssh.argv)}",
            *words,
            source,
            target,
        ]
        answer = self.shell.local.call(argv, timeout_s=self.timeout_s)
        return Answer(None, answer.out, answer.err) if answer.code in RSYNC_FAILED else answer

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """Repeat what a broken connection kept from being done, once there was one; all of it may be done twice."""
        answer = call()
        for wait_s in PATIENCE_S:
            if answer.code is not None or not self._reached:
                break
            self.clock.sleep(wait_s)
            answer = call()
        self._reached = self._reached or answer.code == 0
        return answer

    def revoke(self, step_folder: Path, claim: Claim) -> None:
        self._ask_there("claim", step_folder, dataclasses.asdict(claim))

    def end(self, folder: Path, end: End) -> None:
        self._ask_there("end", folder, dataclasses.asdict(end))

    def _ask_there(self, what: str, folder: Path, document: object) -> None:
        argv = [self.python, "-m", MODULE, what, str(self.place(folder)), json.dumps(document)]
        answer = self._patiently(lambda: self.shell.call(argv, timeout_s=self.timeout_s))
        if answer.code != 0:
            raise EnvironmentProblem(
                f"cannot write to {self.shell.ssh.host}:{self.place(folder)}",
                why=answer.complaint,
                fix=f"see that `{self.python} -m {MODULE}` works on {self.shell.ssh.host}, then attach to the run",
            )
        self._fetch()


def main(arguments: list[str]) -> int:
    """Write a claim or an end for a driver on another machine."""
    if len(arguments) != 3 or arguments[0] not in ("claim", "end"):
        print(f"usage: python -m {MODULE} claim|end FOLDER JSON", file=sys.stderr)
        return UsageProblem.exit_code
    what, folder, document = arguments
    if what == "claim":
        claim = Claim(**json.loads(document))
        # Where the connection broke before the answer came, this is said again.
        if not any(known.kind == claim.kind and known.token == claim.token for known in read_claims(Path(folder))):
            take_claim(Path(folder), claim)
    else:
        write_end(Path(folder), End(**json.loads(document)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
