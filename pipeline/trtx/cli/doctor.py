"""`trtx doctor`: what this machine has, and what each feature of a recipe would still need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from trtx.cli.options import OutputFormat, OutputOption
from trtx.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trtx.hardware.host import Host
    from trtx.hardware.software import Docker

SCHEMA = "trtx.doctor/v1"
EXIT_SOMETHING_MISSING = 6

ENGINE_FIX = "pip install 'trtx[engine]'"
# Python packages by the feature that imports them.
PACKAGES = {
    "calibrate": ("torch", "transformers", "nvidia-modelopt", "requests", "safetensors", "tokenizers"),
    "build": ("torch", "transformers", "safetensors"),
    "benchmark": ("torch", "safetensors", "tokenizers"),
    "serve": ("torch", "safetensors", "tokenizers", "fastapi", "uvicorn", "prometheus-client"),
}
SHOWN_PACKAGES = ("torch", "transformers", "nvidia-modelopt", "safetensors", "tokenizers", "fastapi")
# What a small recipe writes into the cache.
LEAST_FREE_BYTES = 1 << 30


def command(context: typer.Context, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show what this machine has and what each feature would need; leaves with 6 when the quickstart cannot run."""
    import os

    from trtx.hardware.host import read_host
    from trtx.hardware.software import read_compiler, read_docker, read_slurm

    console: Console = context.obj
    environ = os.environ
    host, docker, compiler = read_host(), read_docker(environ), read_compiler(environ)
    slurm, missing_slurm = read_slurm(environ)
    machine = describe_machine(host, docker, compiler, slurm, environ)
    features = [
        *python_features(),
        *build_features(host, compiler),
        cache_feature(environ),
        docker_feature(docker),
        slurm_feature(missing_slurm),
        *runner_features(environ),
    ]
    blocked = [row["feature"] for row in features if row["quickstart"] and row["state"] != "ok"]
    if output is OutputFormat.JSON:
        console.json({"schema": SCHEMA, "machine": machine, "features": features, "quickstart": not blocked})
    else:
        console.table(("this machine", ""), machine_rows(machine))
        styles = ["ok" if row["state"] == "ok" else "error" if row["quickstart"] else "note" for row in features]
        rows = [(row["feature"], row["state"], row["detail"]) for row in features]
        console.table(("feature", "state", "needs"), rows, styles=styles)
        if not blocked:
            console.say(f"{console.paint('ok:', 'ok')} the quickstart can run here")
    if blocked:
        console.error(f"error: the quickstart cannot run here: {', '.join(blocked)}")
        raise typer.Exit(EXIT_SOMETHING_MISSING)


def describe_machine(
    host: Host, docker: Docker, compiler: str | None, slurm: str | None, environ: Mapping[str, str]
) -> dict[str, Any]:
    """Everything found, as JSON; null for what is not there."""
    import platform

    from trtx.files import free_bytes
    from trtx.hardware.host import visible_gpus
    from trtx.hardware.versions import installed_version
    from trtx.paths import cache_dir

    folder = cache_dir(environ)
    gpus = [
        {"index": gpu.index, "name": gpu.name, "gpu": gpu.catalogue_name, "arch": gpu.arch, "bytes": gpu.memory_bytes}
        for gpu in visible_gpus(host, environ)
    ]
    return {
        "processor": host.cpu_model,
        "machine": host.machine,
        "instruction_set": host.isa.name if host.isa else None,
        "num_cpus": host.num_cpus,
        "memory_bytes": host.memory_bytes,
        "gpus": gpus,
        "gpus_problem": host.gpus_problem,
        "driver": host.driver,
        "cache_dir": str(folder),
        "cache_free_bytes": free_bytes(folder),
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in SHOWN_PACKAGES},
        "compiler": compiler,
        "docker": {"client": docker.client, "daemon": docker.daemon, "problem": docker.problem},
        "slurm": slurm,
        # Whether, never what.
        "hf_token": bool(environ.get("HF_TOKEN")),
    }


def machine_rows(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same for people."""
    from trtx.recipe.units import format_bytes

    gpus = [f"{gpu['index']}: {gpu['name']} ({gpu['gpu'] or gpu['arch']})" for gpu in machine["gpus"]]
    docker = machine["docker"]
    return [
        ("processor", machine["processor"]),
        ("instruction set", machine["instruction_set"] or f"{machine['machine']}, none that trtx builds for"),
        ("cores", str(machine["num_cpus"])),
        ("memory", format_bytes(machine["memory_bytes"])),
        ("GPUs", "; ".join(gpus) or machine["gpus_problem"] or "none"),
        ("NVIDIA driver", machine["driver"] or "none"),
        ("cache", f"{machine['cache_dir']} ({format_bytes(machine['cache_free_bytes'])} free)"),
        ("Python", machine["python"]),
        *((name, version or "none") for name, version in machine["packages"].items()),
        ("g++", machine["compiler"] or "none"),
        ("Docker command", docker["client"] or "none"),
        ("Docker daemon", docker["daemon"] or f"none: {docker['problem']}"),
        ("Slurm", machine["slurm"] or "none"),
        ("HF_TOKEN", "set" if machine["hf_token"] else "not set; only gated models need it"),
    ]


def make_feature(name: str, needs: list[str], fix: str, *, quickstart: bool = True) -> dict[str, Any]:
    """A row: ok when nothing is needed, else what and how to get it."""
    detail = f"{'; '.join(needs)} → {fix}" if needs else ""
    return {"feature": name, "state": "missing" if needs else "ok", "detail": detail, "quickstart": quickstart}


def python_features() -> Iterator[dict[str, Any]]:
    """What the packages of the extra `engine` are needed for."""
    from trtx.hardware.software import package_problem

    for stage, label in (
        ("calibrate", "calibrate (all algorithms)"),
        ("benchmark", "benchmark"),
        ("serve", "serve"),
    ):
        needs = [problem for name in PACKAGES[stage] if (problem := package_problem(name))]
        yield make_feature(label, needs, ENGINE_FIX)


def build_features(host: Host, compiler: str | None) -> Iterator[dict[str, Any]]:
    """Building for each CPU of the catalogue, and for GPUs."""
    from trtx.errors import EnvironmentProblem
    from trtx.hardware.gpus import CATALOGUE
    from trtx.hardware.host import check_can_build
    from trtx.hardware.software import package_problem

    packages = [problem for name in PACKAGES["build"] if (problem := package_problem(name))]
    for gpu in CATALOGUE:
        if gpu.kind != "cpu":
            continue
        needs, fixes = list(packages), [ENGINE_FIX] if packages else []
        if compiler is None:
            needs.append("g++ is not installed")
            fixes.append("apt-get install g++")
        try:
            check_can_build(host, gpu)
        except EnvironmentProblem as error:
            needs.append(error.why)
            fixes.append(error.fix)
        yield make_feature(f"build for gpu: {gpu.name}", needs, "; ".join(fixes), quickstart=gpu.name == "cpu")
    yield {
        "feature": "build for NVIDIA GPUs",
        "state": "unavailable",
        "detail": "not available in this version",
        "quickstart": False,
    }


def cache_feature(environ: Mapping[str, str]) -> dict[str, Any]:
    """Whether the cache can be written and has room."""
    import os

    from trtx.files import free_bytes
    from trtx.paths import cache_dir
    from trtx.recipe.units import format_bytes

    folder = cache_dir(environ)
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    needs = []
    if not os.access(parent, os.W_OK):
        needs.append(f"{parent} cannot be written")
    elif (free := free_bytes(folder)) < LEAST_FREE_BYTES:
        needs.append(f"only {format_bytes(free)} are free in {parent}")
    return make_feature("cache", needs, "point TRTX_CACHE_DIR at another folder")


def docker_feature(docker: Docker) -> dict[str, Any]:
    """Whether packages can be built into images here."""
    needs = [] if docker.daemon else [f"no Docker daemon: {docker.problem}"]
    if docker.client is None:
        needs.append("no docker command")
    return make_feature("build a package's image", needs, "install Docker, or set DOCKER_HOST", quickstart=False)


def slurm_feature(missing: list[str]) -> dict[str, Any]:
    """Whether jobs can be submitted from here."""
    needs = [f"no {', '.join(missing)}"] if missing else []
    fix = "run trtx on a login node, or name one: submit_from of the runner"
    return make_feature("runner of type slurm", needs, fix, quickstart=False)


def runner_features(environ: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Whether the interpreters of the site's own runners have trtx, and the versions that are here."""
    import sys

    from trtx.errors import TrtxError
    from trtx.hardware.versions import installed_version
    from trtx.plan.site import site_runners

    try:
        runners = {name: runner for name, runner in site_runners(environ).items() if runner.type == "slurm"}
    except TrtxError as error:
        yield make_feature("the site's runners", [error.what], error.fix or "correct the site's file", quickstart=False)
        return
    if not runners:
        return
    from trtx.plan.cluster_python import find_mismatch
    from trtx.plan.facts import TOOLCHAIN
    from trtx.plan.resources import make_settings

    names = {name for stage in TOOLCHAIN.values() for name in stage}
    wanted = {name: version for name in sorted(names) if (version := installed_version(name))}
    for name, runner in runners.items():
        found = find_mismatch(name, make_settings(runner, sys.executable), wanted, ("PATH", "HOME"), environ)
        needs, fix = ([found.what], found.fix) if found else ([], "")
        yield make_feature(f"runner {name} of this site", needs, fix, quickstart=False)
