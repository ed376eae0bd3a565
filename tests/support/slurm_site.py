"""A project folder on a cluster, whose jobs run the real worker with stages that only keep count."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.light_worker import TESTS, LightSteps
from support.project import Project, make_project
from support.slurm import Cluster, wait_until
from support.slurm_config import NODES, Node
from support.slurm_table import End

TARGETS = ("a100", "b200", "h100")
STAGES = ("calibrate", "convert", "build", "benchmark", "package")
# Builds and benchmarks ask for other GPUs on each target: those are three arrays, the others one.
NUM_GROUPS = 3 + 2 * len(TARGETS)
ENDINGS = (" start", " finish")


@dataclass(frozen=True)
class QuickProject(Project):
    """A project whose drivers look and ask more often than in earnest, see slurm_trtx.py."""

    def argv(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "support.slurm_trtx", *map(str, arguments)]


@dataclass
class Site:
    """A project folder on a cluster, and what its jobs do."""

    project: Project
    cluster: Cluster
    steps: LightSteps

    @contextlib.contextmanager
    def driver(self, *arguments: object, **environ: str) -> Iterator[subprocess.Popen[str]]:
        """A command that runs meanwhile and is killed when the test fails; it has to be ended with `ends`."""
        with self.start(*arguments, **environ) as process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise

    def start(self, *arguments: object, **environ: str) -> subprocess.Popen[str]:
        project = self.project
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        env = {**project.environ, **environ}
        return subprocess.Popen(project.argv(*arguments), cwd=project.folder, env=env, text=True, **pipes)

    def wrap(self, program: str, lines: str) -> str:
        """Put a program before Slurm's own; $n is the number of the call. Returns the PATH that finds it."""
        folder = self.steps.folder / "bin"
        folder.mkdir(exist_ok=True)
        path = folder / program
        count = 'n=$(($(cat "$0.calls" 2>/dev/null || echo 0) + 1)); echo $n > "$0.calls"'
        path.write_text(f"#!/bin/bash\n{count}\n{lines}\n")
        path.chmod(0o755)
        return f"{folder}:{self.project.environ['PATH']}"

    def jobs(self) -> list[str]:
        """Ids of this run's jobs that have not ended, whatever else the cluster runs."""
        return self._list_jobs("-r", "--format=%i %Z")

    def submitted(self) -> set[str]:
        """Ids of all jobs and arrays that Slurm took of this run, ended or not."""
        return set(self._list_jobs("--states=all", "--format=%F %Z"))

    def _list_jobs(self, *options: str) -> list[str]:
        listed = self.cluster.run("squeue", "--noheader", *options).stdout.splitlines()
        return [line.split()[0] for line in listed if line.split()[1].startswith(f"{self.project.folder}/")]

    def begun(self, step: str, times: int = 1) -> None:
        """Wait until a step has begun so many times."""
        wait_until(lambda: self.steps.counts()[f"{step} start"] >= times, f"{step} begins {times} times", seconds=90)

    def end(self, step: str, exit_code: int, cause: str = "") -> End:
        """What became of a step by `trtx status`; `cause` is what was shown meanwhile of what did no lasting harm."""
        row, counts = self.rows()[step], self.steps.counts()
        most = {what: max((n for line, n in counts.items() if line.endswith(what)), default=0) for what in ENDINGS}
        steps = sum(line.endswith(" start") for line in counts)
        return End(row["state"], cause or row["reason"], exit_code, steps, most[" start"], most[" finish"])

    def ends(self, process: subprocess.Popen[str]) -> str:
        """What a command printed for people; fails the test when it takes too long."""
        return process.communicate(timeout=90)[1]

    def rows(self, *arguments: object) -> dict[str, dict[str, Any]]:
        return {row["step"]: row for row in self.project.json("status", *arguments)["status"]}

    def row_if_any(self, step: str) -> dict[str, Any]:
        """A step's row; empty while there is no run."""
        shown = self.project.trtx("status", "-o", "json")
        rows = json.loads(shown.stdout)["status"] if shown.returncode == 0 else []
        return next((row for row in rows if row["step"] == step), {})

    def sbatch_calls(self) -> int:
        return len(list(self.project.folder.glob(".trtx/runs/*/slurm/cluster/groups/*/rounds/*/try-*")))

    def check_all_ran_once(self) -> None:
        counts = self.steps.counts()
        assert set(counts.values()) == {1}, counts
        assert {line.split("/")[0] for line in counts} == set(STAGES)
        assert sum(line.endswith(" finish") for line in counts) == 2 + 3 * len(TARGETS)


def write_recipe(
    project: Project, fetched: Path, steps: LightSteps | None, site: Mapping[str, Any] | None = None, **changes: Any
) -> None:
    """Write recipe.yaml; `site` are settings of its runner, `changes` sections of its own."""
    runner: dict[str, Any] = {"type": "slurm", "cpus": 1, "memory": "100MiB", "time": "10min", **(site or {})}
    if steps is not None:
        runner |= {"python": str(steps.python), "environment": dict(steps.environment)}
    texts = {"dataset": f"file://{fetched}/texts.txt", "samples": 4, "heldout": 2, "max_length": 8}
    recipe = {
        "schema": "trtx/v1",
        "name": "small",
        "model": {"source": f"file://{fetched}/model"},
        "quantization": {"fp32": {"algorithm": "none", "calibration": texts}},
        "engine": {"limits": {"max_batch_size": 2, "max_num_tokens": 128, "max_seq_len": 128}},
        "targets": {
            name: {
                "gpu": "cpu",
                "runner": "cluster",
                "job": {"gpus": f"{name}:1"},
                "engine": {"limits": {"max_batch_size": number + 2}},
            }
            for number, name in enumerate(TARGETS)
        },
        "benchmark": {"workloads": {"chat": {"input_tokens": 8, "output_tokens": 8, "concurrency": [1]}}},
        "runners": {"cluster": runner},
        **changes,
    }
    (project.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


class Ground:
    """Clusters on which faults happen, and projects on them; all may be used from several threads.

    `shared` lives ten times as fast, so that limits, requeues and failures of nodes take seconds; two of its nodes have
    partitions of which one takes the other's jobs away. `limited` holds jobs to their memory, where that can be had.
    """

    EXTRA = (
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "PartitionName=low Nodes=p1 PriorityTier=1 PreemptMode=REQUEUE",
        "PartitionName=high Nodes=p1 PriorityTier=9 PreemptMode=OFF",
        "PartitionName=gone Nodes=p2 PriorityTier=1 PreemptMode=CANCEL",
        "PartitionName=higher Nodes=p2 PriorityTier=9 PreemptMode=OFF",
    )
    NODES = (*NODES[:4], *(Node(f"p{number}", "", 0, 16, 32000, (f"own{number}",)) for number in (1, 2)))

    def __init__(self, folder: Path, fetched: Path, clusters: contextlib.ExitStack) -> None:
        self.folder, self.fetched, self._clusters = folder, fetched, clusters
        self._numbers = itertools.count()
        self._limited: Cluster | None = None
        self._limited_lock = threading.Lock()
        self.shared = clusters.enter_context(self.cluster(self.NODES, extra=self.EXTRA))
        self._seed = self._fetch()

    def _fetch(self) -> Path:
        """A cache with what every run needs from this machine."""
        project = make_project(self.folder / "seed", self.folder / "seed/cache")
        write_recipe(project, self.fetched, None)
        done = project.trtx("apply", "recipe.yaml", "--until", "dataset")
        assert done.returncode == 0, done.stderr
        return self.folder / "seed/cache"

    def asked(self, request: pytest.FixtureRequest, parameter: str) -> list[Any]:
        """The values of a parameter that the session's tests are called with."""
        calls = [getattr(item, "callspec", None) for item in request.session.items]
        return list(dict.fromkeys(call.params[parameter] for call in calls if call and parameter in call.params))

    @property
    def limited(self) -> Cluster:
        with self._limited_lock:
            self._limited = self._limited or self._start_limited()
            return self._limited

    def _start_limited(self) -> Cluster:
        """Its node's name is its own: control groups are named by it."""
        if not os.access("/sys/fs/cgroup/memory", os.W_OK):
            pytest.skip("memory limits need a writable memory control group, version 1")
        nodes = (Node(f"f{os.getpid()}", "", 0, 16, 64000, ("cpu",)),)
        return self._clusters.enter_context(self.cluster(nodes, memory_limits=True))

    @contextlib.contextmanager
    def cluster(self, nodes: Sequence[Node], **options: Any) -> Iterator[Cluster]:
        """A cluster of its own. A short path: sockets have at most 108 characters."""
        folder = Path(tempfile.mkdtemp(prefix="trtx-slurm-", dir="/tmp"))
        made = Cluster(folder, nodes=nodes, **{"speed": 10, **options})
        try:
            made.start()
            yield made
        finally:
            made.stop()

    def site(self, cluster: Cluster | None = None, **settings: Any) -> Site:
        """A project with its own cache on a cluster, the shared one if none is named; `settings` of its runner."""
        folder, cluster = self.folder / str(next(self._numbers)), cluster or self.shared
        project = make_project(folder / "project", folder / "cache")
        shutil.copytree(self._seed, folder / "cache")
        environ = {**project.environ, **cluster.environ, "PYTHONPATH": str(TESTS)}
        project = QuickProject(project.folder, environ)
        steps = LightSteps(folder / "light")
        write_recipe(project, self.fetched, steps, settings)
        return Site(project, cluster, steps)
