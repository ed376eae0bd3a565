"""A login node on this machine: an sshd on a free port, with keys of its own, whose logins see a cluster."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from support.slurm import wait_until


@contextlib.contextmanager
def login_node(folder: Path, environ: Mapping[str, str]) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Host, port and the words that start ssh; logins have `environ` set."""
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
    program = shutil.which("sshd", path="/usr/sbin:/usr/bin") or "sshd"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        wait_until(lambda: "listening" in (folder / "log").read_text(), "sshd listens")
        yield "127.0.0.1", port, ("ssh", "-F", str(folder / "config"))
    finally:
        process.terminate()
        process.wait()
        if made:
            with contextlib.suppress(OSError):
                Path("/run/sshd").rmdir()
