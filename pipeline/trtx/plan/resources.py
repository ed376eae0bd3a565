"""Where each step runs, and what its job asks for: recipe and site → settings of runners, and each step's resources.

Nothing of this enters a key, and without a cluster nothing of Slurm is imported. Settings are JSON, so that a plan is
complete in a file; `slurm_options` and `resources` read them back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from trtx.hardware.gpus import GPUS, find_gpu
from trtx.hardware.gpus import Gpu as Device
from trtx.plan.environment import FETCHING_STAGES, MEASURING_STAGES
from trtx.plan.steps import Step
from trtx.recipe.cells import Cell
from trtx.recipe.check_backend import TENSORRT
from trtx.recipe.runners import ALWAYS, LocalRunner, Needs, Runner, SimRunner, SlurmRunner, find_runner

if TYPE_CHECKING:
    from trtx.runners.slurm.options import Gpu, GpuDialect, Mount, Resources, SlurmOptions

LOCAL = "local"
SIM = "sim"
AUTO = "auto"
# Stages whose jobs need the device that the target names.
DEVICE_STAGES = ("build", "benchmark")
# Parts of a catalogue name that no gres.conf has: the memory, and how the device is built in.
_NOT_IN_GRES = re.compile(r"-(\d+gb|sxm|pcie|nvl)(?=-|$)")

Cluster = SlurmRunner | SimRunner


@dataclass(frozen=True)
class Placement:
    """Where the steps of a plan run: the site's runners by name, and a runner for all cells in place of their own."""

    site: Mapping[str, Runner]
    runner: str | None = None

    def name_of(self, cell: Cell) -> str:
        """The runner of a cell's own steps."""
        return self.runner or cell.recipe.targets[cell.target].runner

    def find(self, cell: Cell, name: str) -> Runner:
        """The settings of a runner, the recipe's over the site's. A name that nobody has is this machine."""
        return find_runner(name, cell.recipe.runners, self.site) or ALWAYS[LOCAL]

    def imitated(self, cell: Cell, sim: SimRunner) -> SlurmRunner | None:
        """The cluster that a simulated one stands for, with what the simulated one says itself; None without one.

        It is the target's own runner, when it is a cluster and --runner names the simulated one in its place.
        """
        if self.runner is None:
            return None
        own = self.find(cell, cell.recipe.targets[cell.target].runner)
        if not isinstance(own, SlurmRunner):
            return None
        stated = {name for name in sim.model_fields_set if name in SlurmRunner.model_fields} - {"type"}
        return own.model_copy(update={name: getattr(sim, name) for name in stated})

    def describe_machine(self, cell: Cell, here: Mapping[str, str]) -> dict[str, str]:
        """What a measurement belongs to: `here`, or on a cluster the target, which is one kind of machine."""
        runner = self.find(cell, self.name_of(cell))
        return {"target": cell.target} if isinstance(runner, SlurmRunner) else dict(here)

    def memory_of(self, cell: Cell, here_bytes: int) -> tuple[int, str]:
        """Memory in bytes that an engine for CPUs is measured in, and whose it is; 0 where nobody says."""
        runner = self.find(cell, self.name_of(cell))
        if not isinstance(runner, SlurmRunner):
            return here_bytes, "this machine"
        job = cell.recipe.targets[cell.target].job
        return job.memory or runner.stages.benchmark.memory or runner.memory or 0, "its job"


# Where steps run when neither the site nor the command line says anything.
HERE = Placement({})


def place_steps(
    steps: Sequence[Step], users: Mapping[str, Sequence[Cell]], placement: Placement, python: str
) -> tuple[tuple[Step, ...], dict[str, dict[str, Any]]]:
    """Steps with their runner and resources, and the settings of every runner but `local`.

    `users` are the cells that each step serves, by its id; `python` is the interpreter here. A step that cells with
    several runners share runs here, and so does all that a step here needs: nothing here waits for a cluster.
    """
    names = _choose_runners(steps, users, placement)
    placed: list[Step] = []
    settings: dict[str, dict[str, Any]] = {}
    for step in steps:
        name, cell = names[step.id], users[step.id][0]
        runner = placement.find(cell, name)
        if isinstance(runner, LocalRunner):
            placed.append(replace(step, runner=name))
            continue
        imitated = placement.imitated(cell, runner) if isinstance(runner, SimRunner) else None
        # Several clusters in one simulated one: each step asks for what its own gives, the rest is the first one's.
        settings.setdefault(name, make_settings(runner, python, imitated))
        placed.append(_place(step, name, imitated or runner, cell, settings[name]))
    return tuple(placed), settings


def _choose_runners(steps: Sequence[Step], users: Mapping[str, Sequence[Cell]], placement: Placement) -> dict[str, str]:
    """The runner that all cells and all dependents of a step share, else `local`. Dependents come later in a plan."""
    wanted: dict[str, set[str]] = {step.id: {placement.name_of(cell) for cell in users[step.id]} for step in steps}
    for step in reversed(steps):
        if step.stage in FETCHING_STAGES or len(wanted[step.id]) > 1:
            wanted[step.id] = {LOCAL}
        for entry in step.inputs.values():
            wanted[entry.step] |= wanted[step.id]
    return {step_id: next(iter(names)) for step_id, names in wanted.items()}


def _place(step: Step, name: str, runner: Cluster, cell: Cell, settings: Mapping[str, Any]) -> Step:
    """A step as a job: the interpreter of the cluster, and as many threads as it has processors."""
    needs = make_resources(step, runner, cell)
    environment = {key: value for key, value in step.environment.items() if key != "OMP_NUM_THREADS"}
    if needs.cpus is not None:
        # What is simulated runs here.
        most = int(step.environment["OMP_NUM_THREADS"]) if settings["type"] == SIM else needs.cpus
        environment["OMP_NUM_THREADS"] = str(min(needs.cpus, most))
    body = asdict(needs) | {"exclude": list(needs.exclude)}
    argv = (settings["options"]["python"], *step.argv[1:])
    return replace(step, runner=name, resources=body, argv=argv, environment=environment)


def make_resources(step: Step, runner: Cluster, cell: Cell) -> Resources:
    """What the job of a step asks for: what its target says, else its stage's needs, else the runner's."""
    from trtx.runners.slurm.options import Resources

    job = cell.recipe.targets[cell.target].job
    stage = getattr(runner.stages, step.stage) if isinstance(runner, SlurmRunner) else Needs()
    levels: tuple[Needs, ...] = (job, stage, runner) if step.cell is not None else (stage, runner)

    def first(name: str) -> Any:
        return next((value for value in (getattr(level, name, None) for level in levels) if value is not None), None)

    exclusive = first("exclusive")
    return Resources(
        time_s=first("time"),
        memory_bytes=first("memory"),
        cpus=first("cpus"),
        gpu=_choose_gpu(runner, cell) if needs_device(step) else None,
        partition=first("partition"),
        exclusive=step.stage in MEASURING_STAGES if exclusive is None else exclusive,
        image=_choose_image(step, runner),
    )


def needs_device(step: Step) -> bool:
    """Whether a step's job needs the device that its target names.

    Of TensorRT-LLM, quantize.py needs it as well, and an options file does not.
    """
    if step.params.get("backend") != TENSORRT:
        return step.stage in DEVICE_STAGES
    is_engine = step.params["spec"].get("flow") == "engine"
    return step.stage in ("calibrate", "benchmark") or (step.stage == "build" and is_engine)


def _choose_image(step: Step, runner: Cluster) -> str:
    """The image of a step that has one of its own, with its digest; the runner's own where no registry has said it."""
    if step.params.get("backend") != TENSORRT or not isinstance(runner, SlurmRunner):
        return ""
    container = step.params["spec"].get("container")
    if container is None or runner.container.runtime == "none":
        return ""
    image, digest = container["image"], container["digest"]
    if image.startswith("/"):
        return str(image)
    return f"{image}@{digest}" if digest else ""


def _choose_gpu(runner: Cluster, cell: Cell) -> Gpu | None:
    """The GPUs that a target's job says, else its own device, once for every rank; None for a CPU."""
    from trtx.runners.slurm.options import Gpu

    target = cell.recipe.targets[cell.target]
    if target.job.gpus is not None:
        kind, _, number = target.job.gpus.rpartition(":")
        return Gpu(int(number), gres_type(runner, kind) if kind else None)
    device = find_gpu(target.gpu)
    if device.kind == "cpu":
        return None
    ways = target.parallelism
    world = ways.tensor * ways.pipeline * ways.context
    nodes = -(-world // ways.gpus_per_node)
    return Gpu(-(-world // nodes), gres_type(runner, device.name), common_product(device))


def gres_type(runner: Runner, kind: str) -> str:
    """The site's name of a device of the catalogue; any other word is such a name already."""
    own = runner.gpus if isinstance(runner, SlurmRunner) else {}
    if kind in own:
        return own[kind]
    if kind not in GPUS:
        return kind
    # Aliases are names, too.
    named = {GPUS[name].name: word for name, word in own.items() if name in GPUS}
    device = GPUS[kind].name
    return named.get(device) or _NOT_IN_GRES.sub("", device)


def common_product(device: Device) -> str | None:
    """What all names that nvidia-smi has for a device begin with."""
    first, *others = device.products or ("",)
    while any(not name.startswith(first) for name in others):
        first = first[:-1]
    return first.strip() or None


def make_settings(runner: Cluster, python: str, imitated: SlurmRunner | None = None) -> dict[str, Any]:
    """The settings of one runner as a plan holds them: `type`, `options` of Slurm, `throttle`, `submit_from`, `sim`.

    A simulated cluster has the options of the one that it imitates, but for what only that one has: its interpreter and
    its containers.
    """
    from trtx.runners.slurm.options import Container, SlurmOptions

    common = {"type": runner.type, "throttle": runner.throttle, "submit_from": None, "sim": None}
    if isinstance(runner, SimRunner) and imitated is not None:
        own = {"python": python, "container": asdict(Container())}
        dialect = "gres" if imitated.gpu_dialect == AUTO else imitated.gpu_dialect
        options = _make_options(imitated, python) | own | {"gpu_dialect": dialect}
        sim = runner.model_dump(include={"nodes", "faults"})
        return common | {"options": _plain(options), "sim": sim, "throttle": imitated.throttle}
    if isinstance(runner, SimRunner):
        options = asdict(SlurmOptions(partition=runner.partition, python=python))
        return common | {"options": _plain(options), "sim": runner.model_dump(include={"nodes", "faults"})}
    return common | {"options": _plain(_make_options(runner, python)), "submit_from": runner.submit_from}


def _make_options(runner: SlurmRunner, python: str) -> dict[str, Any]:
    from trtx.runners.slurm.options import SlurmOptions

    same = {item.name for item in fields(SlurmOptions)} & set(SlurmRunner.model_fields)
    options = {name: getattr(runner, name) for name in same}
    container = runner.container
    return options | {
        "licenses": runner.licenses or (),
        "modules": runner.modules or (),
        "setup": runner.setup or (),
        "python": runner.python or python,
        # Whether a job has its nodes to itself is said step by step.
        "exclusive": False,
        "warn_s": round(runner.warn),
        "extra": runner.sbatch,
        "container": {
            "runtime": container.runtime,
            "image": container.image or "",
            "mounts": [asdict(_mount(text)) for text in container.mounts or ()],
        },
    }


def _mount(text: str) -> Mount:
    from trtx.runners.slurm.options import Mount

    source, target, *mode = text.split(":")
    return Mount(source, target, bool(mode))


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in sorted(value.items())}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def needs_probe(settings: Mapping[str, Any]) -> bool:
    """Whether the cluster has to be asked how it wants to be asked for GPUs."""
    return bool(settings["options"]["gpu_dialect"] == AUTO)


def slurm_options(settings: Mapping[str, Any], dialect: GpuDialect = "gres") -> SlurmOptions:
    """The options of a runner's settings; `dialect` is what a probe learned, used where they say `auto`.

    Raises UsageProblem when they cannot be used together, such as an image without a runtime.
    """
    from trtx.runners.slurm.options import Container, Mount, SlurmOptions

    options = dict(settings["options"])
    container = options["container"]
    options["container"] = Container(
        container["runtime"], container["image"], tuple(Mount(**mount) for mount in container["mounts"])
    )
    if needs_probe(settings):
        options["gpu_dialect"] = dialect
    return SlurmOptions(**options | {name: tuple(options[name]) for name in ("licenses", "modules", "setup")})


def resources(body: Mapping[str, Any]) -> Resources:
    """The resources of a step."""
    from trtx.runners.slurm.groups import resources_from_json

    return resources_from_json(body)


def gpu_kinds(steps: Iterable[Step], runner: str) -> dict[str, int]:
    """Types of GPUs that the steps of a runner ask for, and the most that one job asks for."""
    asked: dict[str, int] = {}
    for step in steps:
        if step.runner == runner and step.resources and step.resources["gpu"]:
            gpu = step.resources["gpu"]
            asked[gpu["type"] or ""] = max(asked.get(gpu["type"] or "", 0), gpu["count"])
    return asked
