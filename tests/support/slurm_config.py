"""Configuration files of a private Slurm cluster."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.slurm import Cluster


@dataclass(frozen=True)
class Node:
    """A pretended machine. `gpu` is the type of its GPUs in gres.conf, empty for none."""

    name: str
    gpu: str
    gpus: int
    cpus: int
    memory_mb: int
    partitions: tuple[str, ...]


NODES = (
    Node("h100-1", "h100", 4, 16, 64000, ("gpu", "h100")),
    Node("h100-2", "h100", 4, 16, 64000, ("gpu", "h100")),
    Node("a100-1", "a100", 8, 32, 128000, ("gpu", "a100")),
    Node("b200-1", "b200", 8, 32, 128000, ("gpu", "b200")),
    Node("cpu-1", "", 0, 16, 32000, ("cpu",)),
)


@contextlib.contextmanager
def reserve_ports(number: int) -> Iterator[list[int]]:
    """Ports nothing listens on, below those that outgoing connections get; held against other clusters' starts."""
    with Path("/tmp/.trtx-tests-slurm-ports").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ports: list[int] = []
        with contextlib.ExitStack() as stack:
            for port in random.sample(range(10000, 32000), 2000):
                sock = stack.enter_context(socket.socket())
                with contextlib.suppress(OSError):
                    sock.bind(("127.0.0.1", port))
                    ports.append(port)
                if len(ports) == number:
                    break
        yield ports


def make_devices(folder: Path, nodes: Sequence[Node]) -> None:
    """A device per GPU, all of them /dev/null by another name: Slurm numbers GPUs by their device files."""
    for node in nodes:
        for number in range(node.gpus):
            os.mknod(folder / "dev" / f"{node.name}-gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def gres_conf(folder: Path, nodes: Sequence[Node]) -> str:
    return "".join(
        f"NodeName={node.name} Name=gpu Type={node.gpu} File={folder}/dev/{node.name}-gpu[0-{node.gpus - 1}]\n"
        for node in nodes
        if node.gpus
    )


def cgroup_conf() -> str:
    return "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint=/sys/fs/cgroup\nConstrainRAMSpace=yes\n"


def slurmdbd_conf(folder: Path, port: int) -> str:
    settings = {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge/sock",
        "DbdHost": socket.gethostname().split(".")[0],
        "DbdAddr": "127.0.0.1",
        "DbdPort": port,
        "SlurmUser": "root",
        "LogFile": f"{folder}/log/slurmdbd.log",
        "PidFile": f"{folder}/run/slurmdbd.pid",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "localhost",
        "StorageUser": "root",
        "StorageLoc": "slurm_acct",
        "CommitDelay": 0,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def slurm_conf(cluster: Cluster, ports: Sequence[int]) -> str:
    """`ports`: slurmctld, slurmdbd, then one per node."""
    folder, host = cluster.folder, socket.gethostname().split(".")[0]
    settings = {
        "ClusterName": "trtx",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": ports[0],
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",  # 127.0.0.1 only
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        # A requeued job waits until its credential expired: 120 s by default, 5 s at least.
        "AuthInfo": f"socket={folder}/munge/sock,cred_expire=5",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "StateSaveLocation": f"{folder}/state",
        "SlurmdSpoolDir": f"{folder}/spool/%n",
        "SlurmctldPidFile": f"{folder}/run/slurmctld.pid",
        "SlurmdPidFile": f"{folder}/run/slurmd.%n.pid",
        "SlurmctldLogFile": f"{folder}/log/slurmctld.log",
        "SlurmdLogFile": f"{folder}/log/slurmd.%n.log",
        "MailProg": "/bin/true",
        "MpiDefault": "none",
        "SwitchType": "switch/none",
        # Nodes have the CPUs and the memory that this file says, not those of this machine.
        "SlurmdParameters": "config_overrides",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/cgroup" if cluster.memory_limits else "task/none",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "task=1",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        "GresTypes": "gpu",
        "ReturnToService": 1,
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,sched_min_interval=10000,bf_interval=1,"
        "default_queue_depth=1000,max_sched_time=2",
        "PriorityType": "priority/basic",
        # With an epilog a job's end is a message on which slurmctld schedules at once: dependents start in 0.06 s.
        "Epilog": "/bin/true",
        "EpilogMsgTime": 0,
        "CompleteWait": 0,
        "KillWait": 2,
        "SlurmdTimeout": 4 * cluster.speed,
        "MessageTimeout": 3 * cluster.speed,
        "TCPTimeout": 2,
        "MinJobAge": 3600,
        "MaxArraySize": 20001,
        "MaxJobCount": 50000,
        **accounting(cluster, ports[1]),
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    for node, port in zip(cluster.nodes, ports[2:], strict=True):
        gres = f" Gres=gpu:{node.gpu}:{node.gpus}" if node.gpus else ""
        lines.append(
            f"NodeName={node.name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={node.cpus} "
            f"RealMemory={node.memory_mb}{gres} State=UNKNOWN"
        )
    partitions = dict.fromkeys(name for node in cluster.nodes for name in node.partitions)
    for number, name in enumerate(partitions):
        members = ",".join(node.name for node in cluster.nodes if name in node.partitions)
        default = "YES" if number == 0 else "NO"
        lines.append(f"PartitionName={name} Nodes={members} Default={default} MaxTime=INFINITE DefMemPerCPU=100")
    return "\n".join([*lines, *cluster.extra, ""])


def accounting(cluster: Cluster, port: int) -> dict[str, object]:
    if not cluster.accounting:
        return {"AccountingStorageType": "accounting_storage/none"}
    return {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": "127.0.0.1",
        "AccountingStoragePort": port,
        "AccountingStoragePass": f"{cluster.folder}/munge/sock",
        "AccountingStoreFlags": "job_comment",
    }
