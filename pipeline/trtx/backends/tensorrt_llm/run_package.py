"""Assembles the deployment folder of one engine, or of a checkpoint with its options file, on the release's container.

    engine/           what the build step made: the engine with its tokenizer, or llm_options.yaml; trtllm.json
    checkpoint/       PyTorch flow: the Hugging Face checkpoint
    benchmark/        what was measured, when it was
    triton/           models/, Triton's model repository, and its Dockerfile, when they are asked for
    deployment.json   what the entrypoint needs to know, and where everything came from
    Dockerfile  compose.yaml  entrypoint.py  healthcheck.py  README.md  SHA256SUMS

The same inputs give the same bytes. Templates: templates/package_trtllm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trtx
from trtx.backends.images import check_base, is_file, make_image
from trtx.backends.package_sums import SUMS_NAME, make_sums, plain_files
from trtx.backends.tensorrt_llm.argv_serve import TOOL, make_serve_command, takes_options
from trtx.backends.tensorrt_llm.card import TrtllmCard, load_card
from trtx.backends.tensorrt_llm.commands import Command
from trtx.backends.tensorrt_llm.launch import GPUS_PER_HOST, Launch, plan_launch, start_words, triton_words
from trtx.backends.tensorrt_llm.llm_options import FILE_NAME, make_options
from trtx.backends.tensorrt_llm.probes import load_release
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.served_checkpoint import check_served
from trtx.backends.tensorrt_llm.spec import Container, TrtllmSpec
from trtx.backends.tensorrt_llm.step import Step
from trtx.backends.tensorrt_llm.triton import write_repository
from trtx.backends.tensorrt_llm.triton_serving import TritonServing
from trtx.bench.report import REPORT_NAME, TABLE_NAME, BenchmarkReport
from trtx.errors import UsageProblem
from trtx.files import canonical_json, link_or_copy, sha256_bytes, walk_files, write_json, write_text
from trtx.models.weights_config import TOKENIZER_FOLDER
from trtx.render import TEMPLATES, quote_shell, render
from trtx.runtime.folders import DEPLOYMENT_NAME, ENGINE_FOLDER

SCHEMA = "trtx.deployment-trtllm/v1"
CHECKPOINT_FOLDER, REPOSITORY = "checkpoint", "triton/models"
# Where the image has the folder.
INSIDE = "/opt/trtx"
# What the entrypoint puts its own folder for.
FOLDER = "{folder}"
# Inside a container, whose ports its host publishes.
ANY_ADDRESS = "0.0.0.0"  # noqa: S104
ENTRYPOINT = ("python3", f"{INSIDE}/entrypoint.py")


@dataclass(frozen=True)
class Deployment:
    """What a recipe says about a deployment, on hosts of so many GPUs.

    `keys` are the cache keys of what is inside, by input name.
    """

    name: str
    cell: str
    image: str | None
    port: int
    emit: tuple[str, ...]
    keys: Mapping[str, str]
    gpus_per_node: int = GPUS_PER_HOST

    @property
    def version(self) -> str:
        """Twelve digits that change with the engine and the checkpoint."""
        return sha256_bytes(canonical_json({name: self.keys.get(name, "") for name in ("engine", "checkpoint")}))[:12]


def package(spec: TrtllmSpec, step: Step, deployment: Deployment) -> dict[str, Any]:
    """Write the deployment folder. Inputs: engine, in the PyTorch flow checkpoint, benchmark if there is one.

    Raises UsageProblem for an image that is not pinned or a release that cannot serve, VerificationFailed for an engine
    that trtx did not make.
    """
    release = load_release(spec, step.environ)
    card = load_card(step.inputs["engine"])
    image = make_image(deployment.image, deployment.name, deployment.cell, deployment.version)
    base = _base_of(spec.container, release)
    target = step.output
    _link_tree(step.inputs["engine"], target / ENGINE_FOLDER)
    folders = [ENGINE_FOLDER]
    if spec.flow == "pytorch":
        check_served(spec, step.inputs["checkpoint"])
        _link_tree(step.inputs["checkpoint"], target / CHECKPOINT_FOLDER)
        folders.insert(0, CHECKPOINT_FOLDER)
    if "benchmark" in step.inputs:
        for name in (REPORT_NAME, TABLE_NAME):
            link_or_copy(step.inputs["benchmark"] / name, target / "benchmark" / name)
    serve = _serve_command(spec, release, deployment, target)
    if "triton" in deployment.emit:
        _write_triton(spec, release, target)
    launch = plan_launch(spec.ranks, deployment.gpus_per_node)
    write_json(target / DEPLOYMENT_NAME, _describe(deployment, card, serve, launch, image, base))
    _write_templates(spec, step, deployment, card, launch, folders, image, base, release)
    write_text(target / SUMS_NAME, make_sums(target))
    sizes = [path.stat().st_size for path in walk_files(target)]
    step.say(f"packaged {len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB, as {image}")
    return {
        "image": image,
        "version": deployment.version,
        "bytes": sum(sizes),
        "doubts": list(dict.fromkeys((*card.doubts, *(serve.doubts if serve else ())))),
    }


def _base_of(container: Container, release: Release) -> str:
    """The image that a deployment is made on: the one that built, or NVIDIA's of the release where that is a file."""
    if not is_file(container.image):
        image = f"{container.image}@{container.digest}" if container.digest else container.image
        return check_base(image, "engine.container")
    if release.image is None:
        raise UsageProblem(
            f"no image of TensorRT-LLM {release.version} is known to package on",
            why=f"engine.container is the file {container.image}",
            fix="name an image in engine.container, or end with `--until benchmark`",
        )
    return release.image


def _serve_command(spec: TrtllmSpec, release: Release, deployment: Deployment, target: Path) -> Command | None:
    """trtllm-serve of the packaged folders; an engine gets an options file of its own where the release reads one.

    None for a release without it whose deployment is for Triton alone.
    """
    if TOOL not in release.tools:
        if deployment.emit == ("triton",):
            return None
        raise UsageProblem(
            f"TensorRT-LLM {release.version} has no trtllm-serve",
            why="it came with 0.15.0",
            fix="emit triton alone, or choose a later release",
        )
    model, options = f"{FOLDER}/{ENGINE_FOLDER}", None
    tokenizer = f"{model}/{TOKENIZER_FOLDER}"
    if spec.flow == "pytorch":
        model = tokenizer = f"{FOLDER}/{CHECKPOINT_FOLDER}"
        options = f"{FOLDER}/{ENGINE_FOLDER}/{FILE_NAME}"
    elif takes_options(release):
        write_text(target / ENGINE_FOLDER / FILE_NAME, make_options(spec, release).to_yaml())
        options = f"{FOLDER}/{ENGINE_FOLDER}/{FILE_NAME}"
    return make_serve_command(
        spec, release, model=model, tokenizer=tokenizer, options=options, host=ANY_ADDRESS, port=deployment.port
    )


def _write_triton(spec: TrtllmSpec, release: Release, target: Path) -> None:
    """The model repository; its folders are those that the image has."""
    pytorch = spec.flow == "pytorch"
    engine = CHECKPOINT_FOLDER if pytorch else ENGINE_FOLDER
    tokenizer = engine if pytorch else f"{engine}/{TOKENIZER_FOLDER}"
    write_repository(
        spec,
        target / REPOSITORY,
        engine=target / engine,
        tokenizer=target / tokenizer,
        serving=TritonServing(engine_dir=f"{INSIDE}/{engine}", tokenizer_dir=f"{INSIDE}/{tokenizer}"),
        options=make_options(spec, release).values if pytorch else None,
        release=release,
    )


def _describe(
    deployment: Deployment, card: TrtllmCard, serve: Command | None, launch: Launch, image: str, base: str
) -> dict[str, Any]:
    """Content of deployment.json."""
    return {
        "schema": SCHEMA,
        "backend": "tensorrt-llm",
        "name": deployment.name,
        "cell": deployment.cell,
        "version": deployment.version,
        "image": image,
        "base": base,
        "port": deployment.port,
        "serve": [TOOL, *serve.words] if serve else [],
        "keys": dict(deployment.keys),
        "flow": card.flow,
        "tensorrt_llm": card.tensorrt_llm,
        "tensorrt": card.tensorrt,
        "compute_capability": card.compute_capability,
        "gpu": card.gpu,
        "world_size": card.world_size,
        "launch": {
            "hosts": launch.hosts,
            "gpus_per_host": launch.gpus_per_host,
            # On one host trtllm-serve starts its ranks itself.
            "serve": list(start_words(launch, ENTRYPOINT)),
        },
        "triton": _triton_words(deployment, card, launch),
        "built_with": {"trtx": trtx.__version__},
    }


def _triton_words(deployment: Deployment, card: TrtllmCard, launch: Launch) -> list[str]:
    """How Triton is started; nothing where it is not asked for."""
    if "triton" not in deployment.emit:
        return []
    return list(triton_words(launch, f"{FOLDER}/{REPOSITORY}", engine=card.flow == "engine"))


def _write_templates(
    spec: TrtllmSpec,
    step: Step,
    deployment: Deployment,
    card: TrtllmCard,
    launch: Launch,
    folders: list[str],
    image: str,
    base: str,
    release: Release,
) -> None:
    target, report = step.output, None
    if "benchmark" in step.inputs:
        report = BenchmarkReport.model_validate_json((step.inputs["benchmark"] / REPORT_NAME).read_bytes())
    values = {
        "name": deployment.name,
        "cell": deployment.cell,
        "base": base,
        "image": image,
        "version": deployment.version,
        "port": deployment.port,
        "keys": deployment.keys,
        "folders": folders,
        "trtx_version": trtx.__version__,
        "release": spec.release,
        "description": f"{spec.shape.architecture} {spec.quantization.algorithm} for {spec.device.name}",
        "launch": launch,
        "several_hosts": quote_shell(start_words(launch, ENTRYPOINT)),
        "tensorrt": card.tensorrt,
        "compute_capability": card.compute_capability,
        "gpu": card.gpu,
        "drift": card.drift,
        "doubts": card.doubts,
        "report": report,
        "serves": spec.flow == "pytorch" or TOOL in release.tools,
        "compose": "compose" in deployment.emit,
        "triton": "triton" in deployment.emit,
        "triton_base": release.triton_image,
    }
    for name, folder in (("entrypoint.py", "package_trtllm"), ("healthcheck.py", "package")):
        write_text(target / name, (TEMPLATES / folder / name).read_text(encoding="utf-8"))
    write_text(target / "Dockerfile", render("package_trtllm/Dockerfile.j2", **values))
    if "triton" in deployment.emit and release.triton_image is not None:
        write_text(target / "triton/Dockerfile", render("package_trtllm/Dockerfile.triton.j2", **values))
    if "compose" in deployment.emit:
        write_text(target / "compose.yaml", render("package_trtllm/compose.yaml.j2", **values))
    write_text(target / "README.md", render("package_trtllm/README.md.j2", **values))


def _link_tree(source: Path, target: Path) -> None:
    for path in plain_files(source):
        link_or_copy(path, target / path.relative_to(source))
