"""Where steps run: the part of the language that a recipe and the site's configuration share.

What these settings become is in trtx.plan.resources; every check of one value alone is here, so that it has its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from trtx.recipe.parts import (
    ANY_LINE_PATTERN,
    LINE_PATTERN,
    Line,
    Many,
    Name,
    Part,
    Positive,
    Text,
    broken_rule,
    section,
)
from trtx.recipe.units import ByteSize, Duration, TimeLimit

# What trtx itself says to sbatch; trtx.runners.slurm.options has the same, without what has a setting here.
OWN_OPTIONS = frozenset(
    (
        *("array", "chdir", "comment", "dependency", "error", "export", "export-file", "get-user-env", "gpus"),
        *("gpus-per-node", "gres", "help", "hold", "input", "job-name", "kill-on-invalid-dep", "open-mode", "output"),
        *("parsable", "requeue", "no-requeue", "signal", "test-only", "time", "wait", "wrap"),
    )
)
# Options of sbatch → the setting that is for them.
SETTING_OF = {
    "account": "account",
    "constraint": "constraint",
    "cpus-per-task": "cpus",
    "exclusive": "exclusive",
    "export": "environment",
    "gpus": "gpu_dialect",
    "gpus-per-node": "gpu_dialect",
    "gres": "gpu_dialect",
    "licenses": "licenses",
    "mem": "memory",
    "nice": "nice",
    "no-requeue": "requeue",
    "partition": "partition",
    "qos": "qos",
    "requeue": "requeue",
    "reservation": "reservation",
    "signal": "warn",
    "time": "time",
}
MOUNT_PATTERN = r"^/[^:,\x00-\x1f]*:/[^:,\x00-\x1f]*(:ro)?$"
GPUS_PATTERN = r"^([A-Za-z0-9_.-]+:)?[1-9][0-9]*$"
SSH_PATTERN = r"^ssh://([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.-]*(:[0-9]{1,5})?$"
GRES_PATTERN = r"^[A-Za-z0-9_.-]+$"


def _check_image(image: str) -> str:
    if re.search(IMAGE_FILE_PATTERN, image):
        return image
    raise broken_rule(
        f"the image '{image}' has no digest, so that other bytes could run tomorrow",
        "write it with its digest: registry/name@sha256:…, or the absolute path of an image file",
    )


def _check_option(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise broken_rule(f"'{name}' is not a long option of sbatch", "write it as in its manual, without the dashes")
    if name in OWN_OPTIONS or name in SETTING_OF:
        known = SETTING_OF.get(name)
        fix = f"use the runner's own setting '{known}'" if known else "remove it"
        raise broken_rule(f"the sbatch option '{name}' is one that trtx sets itself", fix)
    return name


def _check_option_value(value: Any) -> str | int | bool:
    if isinstance(value, str) and re.search(LINE_PATTERN, value):
        return value
    if isinstance(value, int):
        return value
    raise broken_rule("expected a text of one line, a whole number, true or false", "true is an option without a value")


def _check_variable(name: str) -> str:
    if not re.search(VARIABLE_PATTERN, name):
        raise broken_rule(f"'{name}' cannot be the name of an environment variable", "use letters, digits and _")
    return name


def _says(pattern: str) -> WithJsonSchema:
    """The same rule for editors."""
    return WithJsonSchema({"type": "string", "pattern": pattern})


IMAGE_FILE_PATTERN = r"^(/.*|.+@sha256:[0-9a-f]{64})$"
OPTION_PATTERN = rf"^(?!({'|'.join(sorted(OWN_OPTIONS | set(SETTING_OF)))})$)[a-z][a-z0-9-]*$"
VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"

Image = Annotated[Line, AfterValidator(_check_image), _says(IMAGE_FILE_PATTERN)]
SbatchOption = Annotated[str, AfterValidator(_check_option), _says(OPTION_PATTERN)]
SbatchValue = Annotated[
    Any,
    AfterValidator(_check_option_value),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": LINE_PATTERN}, {"type": "integer"}, {"type": "boolean"}]}),
]
Variable = Annotated[str, AfterValidator(_check_variable), _says(VARIABLE_PATTERN)]
EnvironmentValue = Annotated[str, Field(pattern=ANY_LINE_PATTERN)]
GresType = Annotated[str, Field(pattern=GRES_PATTERN)]
Mount = Annotated[str, Field(pattern=MOUNT_PATTERN)]


class Container(Part):
    """The container that the steps run in, inside their jobs."""

    runtime: Literal["none", "pyxis", "apptainer", "docker"] = Field(
        default="none", description="What starts it; none runs steps on the node itself."
    )
    image: Image | None = Field(
        default=None,
        description="Image with digest, registry/name@sha256:…; for apptainer and pyxis also an image file's path.",
    )
    mounts: Many[Mount] | None = Field(
        default=None, description="Folders of the node to mount, /host:/container or /host:/container:ro."
    )


class Needs(Part):
    """What one job gets; what is left out is left to the cluster's own defaults."""

    partition: Line | None = Field(default=None, description="Partition to submit to.")
    time: TimeLimit | None = Field(
        default=None, description="Longest run time of one step, with unit, rounded up to minutes."
    )
    memory: ByteSize | None = Field(default=None, description="Memory of one node, with unit.")
    cpus: Positive | None = Field(default=None, description="Processors, and threads that compute.")


class StageNeeds(Needs):
    """What the jobs of one stage get."""

    exclusive: bool | None = Field(default=None, description="Whether a job has its nodes to itself.")


class Job(Needs):
    """What the jobs of one target get."""

    gpus: Annotated[str, Field(pattern=GPUS_PATTERN)] | None = Field(
        default=None,
        description="GPUs for builds and benchmarks, type:number, such as h100:1; the type is a device of the "
        "catalogue, or as in the site's gres.conf. The target's own device when left out.",
    )


class Stages(Part):
    """What the jobs of a stage get, where that differs from the runner's."""

    calibrate: StageNeeds = section("Jobs that observe activations and quantize.")
    convert: StageNeeds = section("Jobs that bring checkpoints into the engine's form.")
    build: StageNeeds = section("Jobs that compile.")
    benchmark: StageNeeds = section("Jobs that measure; they have their nodes to themselves if nothing else is said.")
    package: StageNeeds = section("Jobs that make deployment folders.")


class LocalRunner(Part):
    """Steps run as processes of this machine."""

    type: Literal["local"] = Field(description="local, slurm or sim.")


class SlurmRunner(Needs):
    """Steps run as jobs of a Slurm cluster."""

    type: Literal["slurm"] = Field(description="local, slurm or sim.")
    account: Line | None = Field(default=None, description="Account to charge.")
    qos: Line | None = Field(default=None, description="Quality of service.")
    constraint: Line | None = Field(default=None, description="Features that nodes must have, in the words of sbatch.")
    reservation: Line | None = Field(default=None, description="Reservation to use.")
    licenses: Many[Line] | None = Field(default=None, description="Licences that each job holds, name or name:number.")
    nice: int | None = Field(default=None, description="Taken from the priority of every job.")
    exclusive: bool | None = Field(
        default=None, description="Whether jobs have their nodes to themselves; when left out, those that measure do."
    )
    stages: Stages = section("What differs from stage to stage.")
    gpus: dict[Name, GresType] = Field(
        default={},
        description="Devices of the catalogue and their names in the site's gres.conf; h100-sxm-80gb is h100 when left "
        "out, and so on.",
    )
    gpu_dialect: Literal["auto", "gres", "gpus", "gpus-per-node"] = Field(
        default="auto", description="Option of sbatch that asks for GPUs; auto tries them once, without a job."
    )
    requeue: bool = Field(default=True, description="Whether Slurm may start a job again after a node failed.")
    warn: Duration = Field(
        default="1min",
        validate_default=True,
        description="So long before its time limit a step is asked to save what it has and to stop.",
    )
    python: Line | None = Field(
        default=None, description="Interpreter that has trtx there; the path of this one when left out."
    )
    environment: dict[Variable, EnvironmentValue] = Field(
        default={}, description="Environment variables. No secrets: they are written to disk."
    )
    modules: Many[Line] | None = Field(default=None, description="Modules to load first.")
    setup: Many[Text] | None = Field(default=None, description="Lines of shell that run before every step.")
    container: Container = section("The container that the steps run in.")
    sbatch: dict[SbatchOption, SbatchValue] = Field(
        default={}, description="Further long options of sbatch and their values; true for those that take none."
    )
    throttle: Positive | None = Field(default=None, description="Jobs of one stage that run at once.")
    submit_from: Annotated[str, Field(pattern=SSH_PATTERN)] | None = Field(
        default=None, description="Login node to submit from, ssh://[user@]host[:port]; this machine when left out."
    )


class SimNode(Part):
    """A node of a simulated cluster."""

    gpu: GresType | None = Field(default=None, description="Type of its GPUs, as jobs ask for them.")
    gpus: Annotated[int, Field(ge=0)] = Field(default=0, description="Number of its GPUs.")
    slots: Positive = Field(default=4, description="Jobs that it runs at once.")


class SimFaults(Part):
    """What goes wrong in a simulated cluster, drawn by chance and the same every time."""

    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Seed that draws them.")
    rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Share of commands that fail or lie, and of first starts that end badly."
    )


class SimRunner(Needs):
    """Steps run as processes of this machine behind a simulated Slurm, for recipes in CI."""

    type: Literal["sim"] = Field(description="local, slurm or sim.")
    nodes: dict[Name, SimNode] = Field(
        default={}, description="Nodes by name; one for every kind of GPU that is asked for when left out."
    )
    faults: SimFaults = section("What goes wrong.")
    throttle: Positive | None = Field(default=None, description="Jobs of one stage that run at once.")


Runner = Annotated[LocalRunner | SlurmRunner | SimRunner, Field(discriminator="type")]


def merge_runner(base: Any, over: Any) -> Any:
    """The fields that `over` states over those of `base`, a model of the same kind; mappings merge, lists replace."""
    if isinstance(base, Part) and isinstance(over, Part):
        stated = over.model_fields_set
        return base.model_copy(update={name: merge_runner(getattr(base, name), getattr(over, name)) for name in stated})
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        return {**base, **{name: merge_runner(base.get(name), value) for name, value in over.items()}}
    return over


def find_runner(name: str, own: Mapping[str, Runner], site: Mapping[str, Runner]) -> Runner | None:
    """The runner of a name: the recipe's over the site's of the same type; None where nobody has it.

    `local` and `sim` are always there.
    """
    if name in own and name in site and own[name].type == site[name].type:
        merged: Runner = merge_runner(site[name], own[name])
        return merged
    return own.get(name) or site.get(name) or ALWAYS.get(name)


# Runners that need no settings.
ALWAYS: Mapping[str, Runner] = {
    "local": LocalRunner.model_construct(type="local"),
    "sim": SimRunner.model_construct(type="sim", faults=SimFaults.model_construct()),
}
