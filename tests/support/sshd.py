"""A login node on this machine: an sshd on a free port, with keys of its own, whose logins see a cluster."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from support.slurm import kill_tree, wait_until


@dataclass
class LoginNode:
    """Host, port and the words that start ssh."""

    folder: Path
    port: int
    host: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = None

    @property
    def words(self) -> tuple[str, ...]:
        return ("ssh", "-F", str(self.folder / "config"))

    def start(self) -> None:
        program = shutil.which("sshd", path="/usr/sbin:/usr/bin") or "sshd"
        with (self.folder / "log").open("wb") as log:
            argv = [program, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self.process = subprocess.Popen(argv, stderr=log)
        wait_until(lambda: "listening" in (self.folder / "log").read_text(), "sshd listens")

    def stop(self) -> None:
        """End it, and all connections to it at once."""
        if self.process is not None:
            for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
                kill_tree(int(pid))
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def login_node(folder: Path, environ: Mapping[str, str]) -> Iterator[LoginNode]:
    """A login node whose logins have `environ` set."""
    folder.mkdir(parents=True)
    for name in ("host", "user"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(argv, check=True)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PidFile": folder / "pid",
        "StrictModes": "no",
        "UsePAM": "no",
        "PermitRootLogin": "yes",
        "SetEnv": " ".join(f"{name}={value}" for name, value in environ.items()),
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    known = f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}"
    (folder / "known_hosts").write_text(known)
    options = {"IdentityFile": folder / "user", "UserKnownHostsFile": folder / "known_hosts", "IdentitiesOnly": "yes"}
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    made = not Path("/run/sshd").exists()
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd refuses to start without it.
    node = LoginNode(folder, port)
    try:
        node.start()
        yield node
    finally:
        node.stop()
        if made:
            with contextlib.suppress(OSError):
                Path("/run/sshd").rmdir()
