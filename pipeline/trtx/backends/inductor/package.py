"""Assembles the deployment folder of one engine: see templates/package for what the files do.

    engine/           the ready engine: card, programs, weights, tokenizer, check
    benchmark/        what was measured, when it was
    wheels/           trtx itself
    requirements.txt  every other package, exactly
    deployment.json   what the entrypoint needs to know, and where everything came from
    triton-server/    the model repository and the Dockerfile of Triton, when that is asked for
    Dockerfile  compose.yaml  entrypoint.py  healthcheck.py  README.md  SHA256SUMS

Nothing here depends on the clock, the host or the order of a directory: the same inputs give the same bytes.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trtx
from trtx.backends.images import check_base, make_image
from trtx.backends.inductor.evidence import Evidence
from trtx.backends.inductor.triton import make_model, model_name, write_repository
from trtx.backends.package_sums import SUMS_NAME, make_sums, plain_files
from trtx.backends.shipping import pinned_requirements, requirements_text, wheel_name, write_wheel
from trtx.bench.report import REPORT_NAME, TABLE_NAME, BenchmarkReport
from trtx.files import (
    canonical_json,
    link_or_copy,
    sha256_bytes,
    write_json,
    write_text,
)
from trtx.models.weights_config import TOKENIZER_FOLDER
from trtx.render import TEMPLATES, render
from trtx.runtime.card import CARD_NAME, EngineCard, load_card
from trtx.runtime.folders import DEPLOYMENT_NAME, ENGINE_FOLDER, WEIGHTS_FOLDER
from trtx.runtime.scheduler import SchedulerSettings

SCHEMA = "trtx.deployment/v1"
# Not `triton`: Python would take a folder of that name beside a script for the compiler's package.
TRITON_FOLDER = "triton-server"
# From triton-server/models/NAME, where the model is, to the engine.
ENGINE_FROM_MODEL = f"../../../{ENGINE_FOLDER}"
# What a rank of a server on a CPU needs beside its weights and its KV cache: Python, torch, activations.
OVERHEAD_MIB = 1024


@dataclass(frozen=True)
class Deployment:
    """What the templates are filled from. `keys` are the cache keys of what is inside, by input name."""

    name: str
    cell: str
    base: str
    image: str
    version: str
    port: int
    kv_cache_bytes: int | None
    memory_fraction: float
    scheduler: SchedulerSettings
    keys: Mapping[str, str]
    pins: Mapping[str, str]
    triton_base: str | None = None

    @property
    def triton_image(self) -> str:
        """The name of the image with Triton: the deployment's own, marked in its tag."""
        return f"{self.image}-triton"

    @property
    def serve_options(self) -> list[str]:
        """Options of `trtx serve`."""
        # One word each: a name may look like an option.
        options = [f"--port={self.port}", f"--model-name={self.name}", f"--policy={self.scheduler.policy}"]
        if not self.scheduler.chunked_prefill:
            options.append("--no-chunked-prefill")
        if not self.scheduler.prefix_reuse:
            options.append("--no-prefix-reuse")
        if self.kv_cache_bytes is not None:
            return [*options, f"--kv-cache-size={self.kv_cache_bytes}B"]
        return [*options, f"--memory-fraction={self.memory_fraction}"]


def make_deployment(
    *,
    name: str,
    cell: str,
    image: str | None,
    base: str,
    port: int,
    kv_cache_bytes: int | None,
    memory_fraction: float,
    scheduler: SchedulerSettings,
    keys: Mapping[str, str],
    triton_base: str | None = None,
) -> Deployment:
    """Resolve names and versions. `triton_base` is the image of Triton, where its repository is asked for.

    Raises UsageProblem for a base image that is not pinned or image names that are none, EnvironmentProblem when a
    package that a server needs is not installed here.
    """
    version = sha256_bytes(canonical_json({part: keys.get(part, "") for part in ("engine", "weights")}))[:12]
    return Deployment(
        name=name,
        cell=cell,
        base=check_base(base),
        image=make_image(image, name, cell, version),
        version=version,
        port=port,
        kv_cache_bytes=kv_cache_bytes,
        memory_fraction=memory_fraction,
        scheduler=scheduler,
        keys=dict(keys),
        pins=pinned_requirements(),
        triton_base=None if triton_base is None else check_base(triton_base, "package.triton_base"),
    )


def join_engine(engine: Path, weights: Path, target: Path) -> EngineCard:
    """Make `target`, which holds the evidence that they belong together, a ready engine of a build and a conversion."""
    card = load_card(engine)
    link_or_copy(engine / CARD_NAME, target / CARD_NAME)
    _link_tree(engine / "programs", target / "programs")
    for path in plain_files(weights):
        relative = path.relative_to(weights)
        folder = target if relative.parts[0] == TOKENIZER_FOLDER else target / WEIGHTS_FOLDER
        link_or_copy(path, folder / relative)
    return card


def write_deployment(
    target: Path,
    deployment: Deployment,
    card: EngineCard,
    evidence: Evidence,
    *,
    emit: tuple[str, ...],
    benchmark: Path | None,
) -> None:
    """Write everything around `target/engine`, SHA256SUMS last."""
    if benchmark is not None:
        for name in (REPORT_NAME, TABLE_NAME):
            link_or_copy(benchmark / name, target / "benchmark" / name)
    write_wheel(target / "wheels")
    write_text(target / "requirements.txt", requirements_text(deployment.pins))
    write_json(target / DEPLOYMENT_NAME, describe(deployment, card))
    for name in ("entrypoint.py", "healthcheck.py"):
        write_text(target / name, (TEMPLATES / "package" / name).read_text(encoding="utf-8"))
    report = None
    if benchmark is not None:
        report = BenchmarkReport.model_validate_json((benchmark / REPORT_NAME).read_bytes())
    values = _template_values(target, deployment, card)
    values |= {"compose": "compose" in emit, "report": report, "evidence": evidence}
    write_text(target / "Dockerfile", render("package/Dockerfile.j2", **values))
    if "compose" in emit:
        write_text(target / "compose.yaml", render("package/compose.yaml.j2", **values))
    if deployment.triton_base is not None:
        write_triton(target / TRITON_FOLDER, deployment, card, values)
    write_text(target / "README.md", render("package/README.md.j2", **values))
    write_text(target / SUMS_NAME, make_sums(target))


def write_triton(folder: Path, deployment: Deployment, card: EngineCard, values: Mapping[str, Any]) -> None:
    """Write the model repository of the engine and what builds a container around it."""
    model = make_model(
        deployment.name,
        card,
        engine_dir=ENGINE_FROM_MODEL,
        kv_cache_bytes=deployment.kv_cache_bytes,
        memory_fraction=deployment.memory_fraction,
        scheduler=deployment.scheduler,
    )
    write_repository(folder / "models", model)
    # The stub of Triton's Python backend works with the numpy of its own image only.
    pins = {name: version for name, version in deployment.pins.items() if name != "numpy"}
    write_text(folder / "requirements.txt", requirements_text(pins))
    write_text(folder / "Dockerfile", render("triton/inductor/Dockerfile.j2", **values))
    if values["compose"]:
        write_text(folder / "compose.yaml", render("triton/inductor/compose.yaml.j2", **values))


def describe(deployment: Deployment, card: EngineCard) -> dict[str, Any]:
    """Content of deployment.json."""
    return {
        "schema": SCHEMA,
        "name": deployment.name,
        "cell": deployment.cell,
        "version": deployment.version,
        "image": deployment.image,
        "base": deployment.base,
        "port": deployment.port,
        "serve": deployment.serve_options,
        "keys": dict(deployment.keys),
        "compiled_for": card.compiled_for.model_dump(mode="json"),
        "quantization": card.quantization.model_dump(mode="json"),
        "built_with": {"trtx": trtx.__version__, "python": platform.python_version(), **card.toolchain},
    }


def _template_values(target: Path, deployment: Deployment, card: EngineCard) -> dict[str, Any]:
    weights_bytes = sum(path.stat().st_size for path in (target / ENGINE_FOLDER / WEIGHTS_FOLDER).iterdir())
    compiled_for, ranks = card.compiled_for, card.rank.tensor * card.rank.pipeline
    return {
        "name": deployment.name,
        "cell": deployment.cell,
        "base": deployment.base,
        "image": deployment.image,
        "version": deployment.version,
        "triton_base": deployment.triton_base,
        "triton_image": deployment.triton_image,
        "triton_model": model_name(deployment.name),
        "port": deployment.port,
        "keys": deployment.keys,
        "wheel": f"wheels/{wheel_name()}",
        "trtx_version": trtx.__version__,
        "description": f"{card.model.architecture} {card.quantization.algorithm} for {compiled_for.arch}",
        "device": compiled_for.device,
        "num_devices": ranks,
        "memory_mib": (weights_bytes + ranks * (deployment.kv_cache_bytes or 0)) // 2**20 + ranks * OVERHEAD_MIB,
        "weights_mib": max(1, weights_bytes // 2**20),
        "card": card,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": deployment.pins["torch"],
    }


def _link_tree(source: Path, target: Path) -> None:
    for path in plain_files(source):
        link_or_copy(path, target / path.relative_to(source))
