"""What a site wants of its jobs, and what the tasks of one group need. Plain data, checked when made.

Values become `#SBATCH` lines, words of a shell or arguments of a container's program. None may hold control characters,
so none can end its line; everything else is quoted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from trtx.errors import UsageProblem

GpuDialect = Literal["gres", "gpus", "gpus-per-node"]
ContainerRuntime = Literal["none", "pyxis", "apptainer", "docker"]

CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SBATCH_OPTION = re.compile(r"[a-z][a-z0-9-]*")
DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
MIB = 1 << 20

# What trtx itself says to sbatch: an extra line may not contradict it.
OWN_OPTIONS = frozenset(
    (
        *("array", "chdir", "comment", "dependency", "error", "export", "export-file", "get-user-env", "gpus"),
        *("gpus-per-node", "gres", "help", "hold", "input", "job-name", "kill-on-invalid-dep", "open-mode", "output"),
        *("parsable", "requeue", "no-requeue", "signal", "test-only", "time", "wait", "wrap"),
    )
)


@dataclass(frozen=True)
class Mount:
    """A folder of the node inside a container."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Container:
    """Where the step runs inside a job. `image` is `registry/name@sha256:…`, or for apptainer also a .sif file."""

    runtime: ContainerRuntime = "none"
    image: str = ""
    mounts: tuple[Mount, ...] = ()

    def __post_init__(self) -> None:
        if self.runtime == "none":
            if self.image or self.mounts:
                raise UsageProblem("a container image or mount is given, but the container runtime is 'none'")
            return
        local = self.runtime in ("apptainer", "pyxis") and self.image.startswith("/")
        if not local and not DIGEST.fullmatch(self.image):
            raise UsageProblem(
                f"the container image '{self.image}' is not pinned",
                why="a tag can be moved, so the same recipe would run other bytes next month",
                fix="write it with its digest: registry/name@sha256:…",
            )
        for mount in self.mounts:
            if not (mount.source.startswith("/") and mount.target.startswith("/")):
                raise UsageProblem(f"the mount {mount.source}:{mount.target} is not two absolute paths")
            if re.search("[:,]", mount.source + mount.target):
                raise UsageProblem(f"the mount {mount.source} has ':' or ',' in it, which container programs split at")


@dataclass(frozen=True)
class SlurmOptions:
    """Facts of a site and wishes for all jobs. None leaves a matter to Slurm's own defaults.

    `warn_s`: so long before its time limit a step is asked to stop, so that it leaves a checkpoint and a result; Slurm
    looks at limits every 30 to 60 s. `extra` maps further long options of sbatch to values; True is an option without
    one. `setup` are lines of shell, run as they stand before the step; `python` is the interpreter there.
    """

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    licenses: tuple[str, ...] = ()
    nice: int | None = None
    exclusive: bool = False
    gpu_dialect: GpuDialect = "gres"
    requeue: bool = True
    warn_s: int = 60
    python: str = "python3"
    environment: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    container: Container = field(default_factory=Container)
    extra: Mapping[str, str | int | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for item in fields(self):
            if item.name not in ("setup", "container"):
                check_text(f"slurm option {item.name}", getattr(self, item.name))
        check_text("slurm option container", self.container.image)
        check_text("slurm option container", [part for m in self.container.mounts for part in (m.source, m.target)])
        for name in self.environment:
            if not VARIABLE.fullmatch(name):
                raise UsageProblem(f"'{name}' cannot be the name of an environment variable")
        for name in self.extra:
            if not SBATCH_OPTION.fullmatch(name):
                raise UsageProblem(f"'{name}' is not a long option of sbatch", fix="write it without the two dashes")
            if name in OWN_OPTIONS:
                raise UsageProblem(
                    f"the extra sbatch option '{name}' is one that trtx sets itself",
                    fix="use the runner's own setting for it, where there is one",
                )


@dataclass(frozen=True)
class Gpu:
    """GPUs of one node's share: `type` as in the site's gres.conf (None: any), `product` part of nvidia-smi's name."""

    count: int
    type: str | None = None
    product: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageProblem(f"{self.count} GPUs cannot be asked for")
        if self.type is not None and not re.fullmatch(r"[A-Za-z0-9_.-]+", self.type):
            raise UsageProblem(f"'{self.type}' cannot be a GPU type of Slurm")

    def describe(self) -> str:
        return f"{self.count} × {self.type or self.product or 'GPU'}"


@dataclass(frozen=True)
class Resources:
    """What each task of a group gets. `time_s` is rounded up to minutes, the unit of Slurm's limits.

    `ranks` > 1 starts so many processes of a task over `nodes` nodes through srun. `gpu`, `cpus` and `memory_bytes`
    are per node, per rank and per node. `partition` overrides that of the site. `image` is the container image of these
    tasks, where the site has a container runtime.
    """

    time_s: float | None = None
    memory_bytes: int | None = None
    cpus: int | None = None
    gpu: Gpu | None = None
    nodes: int = 1
    ranks: int = 1
    partition: str | None = None
    exclusive: bool = False
    exclude: tuple[str, ...] = ()
    image: str = ""

    def __post_init__(self) -> None:
        check_text("partition", self.partition)
        check_text("image", self.image)
        check_text("excluded node", self.exclude)
        if self.ranks < 1 or self.nodes < 1 or self.ranks % self.nodes:
            raise UsageProblem(f"{self.ranks} ranks cannot be spread evenly over {self.nodes} nodes")

    @property
    def minutes(self) -> int | None:
        return None if self.time_s is None else max(1, -(-int(self.time_s) // 60))

    @property
    def mebibytes(self) -> int | None:
        return None if self.memory_bytes is None else max(1, -(-self.memory_bytes // MIB))


def choose_container(container: Container, resources: Resources) -> Container:
    """The container of tasks that bring their own image: the site's with that image, where it has a runtime."""
    if not resources.image or container.runtime == "none":
        return container
    return replace(container, image=resources.image)


@dataclass(frozen=True)
class Timing:
    """How often and how long, in seconds.

    `queries` questions to the controller at most in any `window_s`. While nothing changes they are asked
    `first_poll_s` apart at first and `last_poll_s` apart after a while. `late_s`: how long a file that must be there
    may take to appear on a shared file system. `silence_s` without a heartbeat make a task silent; tasks beat every
    `heartbeat_s`. Commands that fail are repeated after `retry_s`, twice that, and so on up to `last_retry_s`, at most
    `retries` times.
    """

    files_s: float = 1.0
    queries: int = 4
    window_s: float = 60.0
    first_poll_s: float = 15.0
    last_poll_s: float = 60.0
    late_s: float = 60.0
    heartbeat_s: float = 10.0
    silence_s: float = 60.0
    command_s: float = 60.0
    retry_s: float = 2.0
    last_retry_s: float = 60.0
    retries: int = 8


def check_text(what: str, value: Any) -> None:
    """Raises UsageProblem for control characters anywhere in a value."""
    if isinstance(value, str):
        if CONTROL.search(value):
            raise UsageProblem(f"{what}: control characters and line breaks cannot be used", why=repr(value))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_text(what, key)
            check_text(what, item)
    elif isinstance(value, tuple | list):
        for item in value:
            check_text(what, item)
