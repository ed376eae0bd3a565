"""A private, real Slurm cluster on this machine: own munge, slurmctld, slurmd per node, typed GPUs that do not exist.

Everything lies in one folder and listens on 127.0.0.1, so clusters run side by side and leave nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.slurm_config import (
    NODES,
    Node,
    cgroup_conf,
    gres_conf,
    make_devices,
    reserve_ports,
    slurm_conf,
    slurmdbd_conf,
)

SBIN = "/usr/sbin:/usr/bin:/sbin:/bin"
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


def missing_programs() -> str:
    """Why no cluster can be started here; empty when one can."""
    if os.geteuid() != 0:
        return "a private Slurm cluster needs root (slurmd refuses other users)"
    absent = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if not shutil.which(name, path=SBIN)]
    return f"{', '.join(absent)} cannot be found: run tests/install" if absent else ""


def wait_until(check: Callable[[], object], what: str, *, seconds: float = 30.0, pause_s: float = 0.02) -> None:
    """Wait for something to become true; fails the test when it does not."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"after {seconds:g} s still not true: {what}"
        time.sleep(pause_s)


@dataclass
class Cluster:
    """A cluster in `folder`. `speed` makes slurmctld's clock run faster; `memory_limits` makes those of jobs real."""

    folder: Path
    nodes: Sequence[Node] = NODES
    accounting: bool = False
    memory_limits: bool = False
    speed: int = 1
    extra: Sequence[str] = ()
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """Environment in which Slurm's commands talk to this cluster."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SBIN}"}

    def start(self) -> None:
        for name in ("state", "log", "munge", "run", "dev", *(f"spool/{node.name}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self._start_munge()
        if self.accounting:
            self._start_database()
        make_devices(self.folder, self.nodes)
        with reserve_ports(len(self.nodes) + 2) as ports:
            (self.folder / "slurm.conf").write_text(slurm_conf(self, ports))
            (self.folder / "gres.conf").write_text(gres_conf(self.folder, self.nodes))
            (self.folder / "cgroup.conf").write_text(cgroup_conf())
            if self.accounting:
                path = self.folder / "slurmdbd.conf"
                path.write_text(slurmdbd_conf(self.folder, ports[1]))
                path.chmod(0o600)
                self._spawn("slurmdbd", ["slurmdbd", "-D"], MYSQL_UNIX_PORT=str(self.folder / "run/db.sock"))
                wait_until(lambda: self.run("sacctmgr", "-n", "show", "cluster").returncode == 0, "slurmdbd answers")
                self.run("sacctmgr", "-i", "-Q", "add", "cluster", "trtx")
                self.run("sacctmgr", "-i", "-Q", "add", "account", "root")
            self.start_controller()
            for node in self.nodes:
                self.start_node(node.name)
            self.wait_for_nodes(len(self.nodes))

    def _start_munge(self) -> None:
        key = self.folder / "munge/key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        options = {"key-file": key, "socket": self.folder / "munge/sock", "pid-file": self.folder / "run/munged.pid"}
        options |= {"log-file": self.folder / "log/munged.log", "seed-file": self.folder / "munge/seed"}
        flags = [f"--{name}={value}" for name, value in options.items()]
        self._spawn("munged", ["munged", "--foreground", "--force", "--num-threads=4", *flags])
        wait_until((self.folder / "munge/sock").exists, "munged listens")

    def _start_database(self) -> None:
        data, socket = self.folder / "db", self.folder / "run/db.sock"
        options = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        argv = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", *options]
        subprocess.run(argv, check=True, capture_output=True, env=self.environ)
        # A database for tests: nothing has to survive a crash.
        options = ["--skip-networking", "--skip-log-bin", "--performance-schema=OFF", "--innodb-buffer-pool-size=64M"]
        options += ["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync", "--skip-innodb-doublewrite"]
        options += ["--debug-no-sync", "--innodb-lock-wait-timeout=900", f"--pid-file={self.folder}/run/mariadbd.pid"]
        argv = ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={socket}", *options]
        self._spawn("mariadbd", argv)
        ping = ["mariadb-admin", "--no-defaults", "-uroot", "-S", str(socket), "ping"]
        wait_until(lambda: subprocess.run(ping, capture_output=True).returncode == 0, "the database answers")

    def _spawn(self, name: str, argv: Sequence[str], **environ: str) -> None:
        program = shutil.which(argv[0], path=SBIN) or argv[0]
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [program, *argv[1:]],
                env={**self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_controller(self) -> None:
        """Start slurmctld, or start it again where it was killed, and wait until it answers."""
        fast = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"+0 x{self.speed}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        self._spawn("slurmctld", ["slurmctld", "-D"], **(fast if self.speed != 1 else {}))
        wait_until(lambda: self.run("scontrol", "ping").returncode == 0, "slurmctld answers")

    def start_node(self, name: str) -> None:
        """Start a node's slurmd, or start it again where it was killed."""
        self._spawn(f"slurmd.{name}", ["slurmd", "-D", "-N", name, "-f", str(self.folder / "slurm.conf")])

    def wait_for_nodes(self, number: int) -> None:
        wait_until(lambda: len(self.usable_nodes()) == number, f"{number} nodes are up")

    def usable_nodes(self) -> list[str]:
        lines = self.run("sinfo", "-h", "-N", "-o", "%N %T").stdout.splitlines()
        return sorted({line.split()[0] for line in lines if line.endswith((" idle", " mixed", " allocated"))})

    def kill(self, daemon: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a daemon ("slurmctld", "slurmd.h100-1") and wait until it is gone."""
        process = self._daemons.pop(daemon)
        process.send_signal(number)
        process.wait(30)

    def run(self, *argv: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands against this cluster."""
        return subprocess.run(argv, env=self.environ, capture_output=True, text=True, check=check, cwd=self.folder)

    def jobs(self) -> list[str]:
        """Ids of the jobs that have not ended."""
        return self.run("squeue", "-h", "-o", "%i").stdout.split()

    def clear(self) -> None:
        """Cancel everything and wait until the nodes are idle."""
        if self.jobs():
            self.run("scancel", "--state=PENDING", "--user=root")
            self.run("scancel", "--signal=KILL", "--full", "--user=root")
            self.run("scancel", "--user=root")
            wait_until(lambda: not self.jobs(), "all jobs are gone")

    def stop(self) -> None:
        """End all jobs, daemons and what they left behind, and remove the folder."""
        with contextlib.suppress(AssertionError):
            if "slurmctld" in self._daemons:
                self.clear()
        for name in reversed(list(self._daemons)):
            process = self._daemons.pop(name)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.kill_steps()
        if self.memory_limits:
            for folder in Path("/sys/fs/cgroup").glob("*/slurm_*"):
                if folder.name.removeprefix("slurm_") in {node.name for node in self.nodes}:
                    remove_cgroups(folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill_steps(self, job: str = "") -> None:
        """Kill all that runs in jobs, or in one, as when nodes lose their power: none of it can leave a word."""
        for pid in self._steps():
            # It calls itself "slurmstepd: [12.batch]".
            if not job or f"[{job}." in Path(f"/proc/{pid}/cmdline").read_text():
                kill_tree(pid)

    def _steps(self) -> list[int]:
        """Step daemons of this cluster: they outlive the slurmd that was killed."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                ours = f"SLURM_CONF={self.folder}/slurm.conf".encode() in path.read_bytes()
                if ours and (path.parent / "comm").read_text().strip() == "slurmstepd":
                    found.append(int(path.parent.name))
        return found


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, task.read_text().split())
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in children:
        kill_tree(child)


def remove_cgroups(folder: Path) -> None:
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()
