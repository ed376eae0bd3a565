"""The Slurm runner of a plan's settings: this machine's commands, a login node's, or a cluster inside this process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtx.cache.store import Store
from trtx.files import canonical_json, read_json, sha256_bytes, write_json
from trtx.plan.resources import gpu_kinds, needs_probe, slurm_options
from trtx.plan.steps import Plan
from trtx.runners.slurm.clock import Clock, RealClock
from trtx.runners.slurm.commands import LocalShell, Shell
from trtx.runners.slurm.options import GpuDialect, SlurmOptions, Timing
from trtx.runners.slurm.runner import SlurmRunner
from trtx.runners.slurm.workspace import LocalWorkspace, Workspace

if TYPE_CHECKING:
    from trtx.runners.slurm.remote import SshShell

# A simulated cluster answers at once, and its time is this process's: everything is quicker, in the same proportions.
SIM_TIMING = Timing(
    files_s=0.1,
    queries=4,
    window_s=1.0,
    first_poll_s=0.3,
    last_poll_s=1.0,
    late_s=2.0,
    heartbeat_s=1.0,
    silence_s=20.0,
    retry_s=0.2,
    last_retry_s=1.0,
    retries=40,
)
# How long the simulated cluster's time goes on each time it is looked at.
SIM_STEP_S = 0.1


@dataclass
class Cluster:
    """A way to one runner's jobs. `outlives`: jobs go on when this process ends; `step_s`: how long a look may take."""

    name: str
    shell: Shell
    workspace: Workspace
    timing: Timing = field(default_factory=Timing)
    clock: Clock = field(default_factory=RealClock)
    outlives: bool = True
    step_s: float = 0.0
    close: Callable[[], None] = lambda: None
    # Tasks that one array can have, once `find_options` has learned it.
    max_array: int | None = None

    def runner(self, options: SlurmOptions, folder: Path) -> SlurmRunner:
        """A runner on a submission's folder; where that holds a submission, it adopts it."""
        return SlurmRunner(
            options,
            folder,
            self.shell,
            timing=self.timing,
            clock=self.clock,
            workspace=self.workspace,
            max_array=self.max_array,
        )


def open_cluster(plan: Plan, name: str, run_folder: Path, environ: Mapping[str, str]) -> Cluster:
    """Make the way to a runner's jobs; asks nothing."""
    settings = plan.runners[name]
    if settings["type"] == "sim":
        return _simulate(plan, name, settings["sim"] or {}, environ)
    shell = open_shell(settings, environ)
    if isinstance(shell, LocalShell):
        return Cluster(name, shell, LocalWorkspace())
    from trtx.runners.slurm.remote import SshWorkspace

    # The run has the same path there: what steps write in job.json means the same on both sides.
    workspace = SshWorkspace(shell, run_folder, run_folder, python=settings["options"]["python"])
    return Cluster(name, shell, workspace)


def open_shell(settings: Mapping[str, Any], environ: Mapping[str, str]) -> LocalShell | SshShell:
    """Where the commands of a real Slurm are called, by the settings of its runner."""
    local = LocalShell(environ)
    if not settings["submit_from"]:
        return local
    from trtx.runners.slurm.remote import SshShell, parse_login

    return SshShell(parse_login(settings["submit_from"]), local)


def _simulate(plan: Plan, name: str, sim: Mapping[str, Any], environ: Mapping[str, str]) -> Cluster:
    from trtx.runners.slurm.sim import Processes, SimClock, SimShell
    from trtx.runners.slurm.simulation import SimNode, SimulatedCluster, make_faults

    faults = sim.get("faults") or {}
    nodes = [SimNode(node_name, **_without_none(node)) for node_name, node in (sim.get("nodes") or {}).items()]
    if not nodes:
        kinds = gpu_kinds(plan.steps, name) or {"": 0}
        nodes = [SimNode(f"sim-{kind or 'node'}", kind, count) for kind, count in kinds.items()]
        # As many jobs at once as steps of this machine: they run here.
        nodes = [replace(node, slots=max(1, plan.max_parallel // len(nodes))) for node in nodes]
    indices = {step.stage: range(len(plan.steps)) for step in plan.steps if step.runner == name}
    drawn = make_faults(faults.get("seed", 0), faults.get("rate", 0.0), indices)
    cluster = SimulatedCluster(nodes, Processes(environ), drawn)
    clock = SimClock(cluster, real=True)
    return Cluster(
        name,
        SimShell(cluster),
        LocalWorkspace(),
        timing=SIM_TIMING,
        clock=clock,
        outlives=False,
        step_s=SIM_STEP_S,
        close=cluster.close,
    )


def _without_none(node: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if value is not None}


def find_options(plan: Plan, cluster: Cluster, environ: Mapping[str, str]) -> SlurmOptions:
    """The options of a runner. Where they leave open how GPUs are asked for, that is learned once and remembered.

    Raises EnvironmentProblem when Slurm has to be asked and does not answer.
    """
    settings = plan.runners[cluster.name]
    if settings["type"] == "slurm":
        cluster.max_array = _find_max_array(plan, cluster, environ)
    if not (needs_probe(settings) and gpu_kinds(plan.steps, cluster.name)):
        return slurm_options(settings)
    memory = dialect_file(plan, cluster.name, environ)
    dialect = recall_dialect(memory)
    if dialect is None:
        from trtx.runners.slurm.probe import probe_gpus

        facts = probe_gpus(cluster.shell, slurm_options(settings), timeout_s=cluster.timing.command_s)
        dialect = facts.dialect or "gres"
        Store(Path(plan.cache_dir)).prepare()
        write_json(memory, {"dialect": dialect, "types": list(facts.types), "evidence": facts.evidence})
    return slurm_options(settings, dialect)


def _find_max_array(plan: Plan, cluster: Cluster, environ: Mapping[str, str]) -> int | None:
    """How many tasks an array can have, remembered; not asked for where no array has more than one."""
    if sum(step.runner == cluster.name for step in plan.steps) < 2:
        return None
    memory = dialect_file(plan, cluster.name, environ).with_suffix(".arrays.json")
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(read_json(memory)["max_array"])
    from trtx.runners.slurm.probe import probe_max_array

    found = probe_max_array(cluster.shell, timeout_s=cluster.timing.command_s)
    if found is not None:
        Store(Path(plan.cache_dir)).prepare()
        write_json(memory, {"max_array": found})
    return found


def dialect_file(plan: Plan, name: str, environ: Mapping[str, str]) -> Path:
    """Where it is kept how a cluster wants to be asked for GPUs: it changes with the site only."""
    settings = plan.runners[name]
    options = {key: settings["options"][key] for key in ("account", "partition", "qos", "reservation")}
    site = [settings["submit_from"], environ.get("SLURM_CONF"), environ.get("SLURM_CLUSTERS"), options]
    return Path(plan.cache_dir) / "slurm" / f"{sha256_bytes(canonical_json(site))[:16]}.json"


def recall_dialect(memory: Path) -> GpuDialect | None:
    """What was learned before; None when nothing was."""
    try:
        dialect: GpuDialect = read_json(memory)["dialect"]
    except (OSError, ValueError, KeyError):
        return None
    return dialect
