"""Malformed runners and jobs; see malformed.py."""

from __future__ import annotations

from support.malformed import case, recipe, target

IMAGE = f"runtime: pyxis, image: 'a/b@sha256:{'0' * 64}'"
JOB = "targets:\n  cpu: {{gpu: cpu, runner: sim, job: {{gpus: {}}}}}\n"


def cluster(settings: str) -> str:
    """A recipe whose one target runs on a cluster."""
    return recipe(
        targets="targets:\n  cpu: {gpu: cpu, runner: a}\n", runners=f"runners: {{a: {{type: slurm, {settings}}}}}\n"
    )


RUNNER_CASES = (
    case(
        "an unknown stage of a runner",
        cluster("stages: {«biuld: {time: 1h}}"),
        ("unknown key 'biuld' in runners.a.stages", "'build'"),
    ),
    case("a setting of another runner type", cluster("«faults: {rate: 0.1}"), ("unknown key 'faults'",)),
    case("a time of zero", cluster("time: «0s"), ("more than 0",)),
    case("a memory without unit", cluster("stages: {build: {memory: «64}}"), ("needs a unit",)),
    case("a partition of two lines", cluster('partition: «"gpu\\n#SBATCH --uid=0"'), ("one line of a batch script",)),
    case("an empty value with a control character", cluster('environment: {A: «"\\a"}'), ("control characters",)),
    case("an environment variable's bad name", cluster("environment: {«A-B: x}"), ("'A-B'", "letters, digits and _")),
    case(
        "an image by tag",
        cluster("container: {runtime: pyxis, image: «nvcr.io/nvidia/pytorch:24.01}"),
        ("no digest", "@sha256:"),
    ),
    case("a mount of one folder", cluster(f"container: {{{IMAGE}, mounts: [«/data]}}"), ("two absolute paths", ":ro")),
    case("an option of sbatch with dashes", cluster("sbatch: {«--mail-user: me}"), ("without the dashes",)),
    case("an option of sbatch that has a setting", cluster("sbatch: {«mem: 4G}"), ("trtx sets", "setting 'memory'")),
    case("an option of sbatch that trtx needs", cluster("sbatch: {«array: 1-9}"), ("trtx sets", "remove it")),
    case("an option of sbatch of several values", cluster("sbatch: {mail-user: «[a, b]}"), ("a text of one line",)),
    case("a login node without ssh", cluster("submit_from: «login1"), ("names no login node", "ssh://host")),
    case("GPUs without a number", recipe(targets=JOB.format("«h100")), ("a type and a number", "h100:1")),
    case("a bad GPU type", cluster("gpus: {h100: «'h 100'}"), ("gres.conf",)),
    case("a dialect", cluster("gpu_dialect: «tres"), ("'gres'",)),
    case("a job without a cluster", target(", «job: {cpus: 4}"), ("no effect", "'local' starts no jobs"), warns=True),
    case(
        "an image without a runtime", cluster(f"container: {{image: «'a/b@sha256:{'0' * 64}'}}"), ("no effect", "none")
    ),
    case("a runtime without an image", cluster("container: «{runtime: docker}"), ("no image", "@sha256:")),
    case(
        "a file for docker", cluster("container: {runtime: docker, image: «/images/trtx.sif}"), ("docker cannot run",)
    ),
    case("a device of no catalogue", cluster("gpus: {«h1000: h100}"), ("no device 'h1000'", "'h100'")),
)
