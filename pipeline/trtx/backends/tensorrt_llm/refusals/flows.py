"""Release and flow: which of the two a release has, for which models, in which image and with which driver."""

from __future__ import annotations

from collections.abc import Iterator

from trtx.backends.images import is_file, is_pinned
from trtx.backends.tensorrt_llm.convertible import release_problem, trtx_problem
from trtx.backends.tensorrt_llm.refusals.base import Refusal, Subject
from trtx.backends.tensorrt_llm.refusals.parallel import lacks_context
from trtx.backends.tensorrt_llm.releases import PYTORCH_FROM
from trtx.backends.tensorrt_llm.support import check_gpu
from trtx.errors import did_you_mean, nearest
from trtx.hardware.versions import is_older
from trtx.recipe.schema import Engine

LAST_ENGINE = "1.3.0rc20"
NOTES = "docs/source/release-notes.md of 1.3.0rc3"
REMOVAL = "docs/source/legacy/tensorrt-backend-removal.md, pull requests 15763 to 16369"
ENGINE_ONLY = ("plugins", "build_options", "profiles", "converter")


def check_flow(subject: Subject) -> Iterator[Refusal]:
    release = subject.release
    at = ("engine", "release") if subject.engine.flow == "auto" else ("engine", "flow")
    if subject.flow == "engine" and not release.engine_backend:
        yield Refusal(
            "engine-flow-removed",
            at,
            f"{subject.title} builds no TensorRT engines",
            f"its engine backend was removed after {LAST_ENGINE}",
            "write engine.flow: pytorch, or engine.release: 1.2.1, the newest stable one with trtllm-build",
            REMOVAL,
        )
    if subject.flow == "pytorch" and not release.pytorch_backend:
        yield Refusal(
            "pytorch-flow",
            at,
            f"{subject.title} has no PyTorch flow that is more than an experiment",
            f"it is supported since {PYTORCH_FROM}",
            f"write engine.flow: engine, or a release from {PYTORCH_FROM} on",
            NOTES,
        )


def check_settings_of_the_other_flow(subject: Subject) -> Iterator[Refusal]:
    if subject.flow == "pytorch":
        for name in ENGINE_ONLY:
            if getattr(subject.engine, name) != Engine.model_fields[name].default:
                yield Refusal(
                    "settings-of-a-flow",
                    ("engine", name),
                    f"engine.{name} means nothing in the PyTorch flow",
                    "nothing is built there: a checkpoint is served with an options file",
                    "write engine.llm_options, or engine.flow: engine",
                    "docs/source/legacy/tensorrt-backend-removal.md",
                    at_key=True,
                )
    elif subject.engine.llm_options:
        yield Refusal(
            "settings-of-a-flow",
            ("engine", "llm_options"),
            "engine.llm_options means nothing in the engine flow",
            "what an engine can do is decided when it is built",
            "write engine.build_options and engine.plugins, or engine.flow: pytorch",
            "commands/build.py",
            at_key=True,
        )


def check_architecture(subject: Subject) -> Iterator[Refusal]:
    if subject.shape is None:
        return
    name, release = subject.shape.architecture, subject.release
    confidence = release.architecture_confidence(subject.flow, name)
    where = "MODEL_MAP" if subject.flow == "engine" else "the models of its PyTorch backend"
    if confidence is None:
        known = release.architectures(subject.flow)
        other = "pytorch" if subject.flow == "engine" else "engine"
        has_other = release.pytorch_backend if other == "pytorch" else release.engine_backend
        elsewhere = has_other and release.architecture_confidence("pytorch" if other == "pytorch" else "engine", name)
        near = did_you_mean(name, known) if nearest(name, known) else "choose another model or release"
        yield Refusal(
            "architecture",
            ("model", "source"),
            f"{subject.title} does not have the architecture {name} in its {subject.flow} flow",
            f"config.json names it, and {where} does not",
            f"write engine.flow: {other}, which has it" if elsewhere else near,
            "tensorrt_llm/commands/build.py:327" if subject.flow == "engine" else "tensorrt_llm/_torch/models",
        )
    elif confidence == "unknown":
        yield Refusal(
            "architecture-not-established",
            ("engine", "release"),
            f"whether {subject.title} has {name} in its {subject.flow} flow is not established",
            "its table is derived from other releases",
            "read its image: trtx probe IMAGE --write FILE, and name the file in engine.probe",
            "the tables of trtx",
            "warning",
        )


def check_image(subject: Subject) -> Iterator[Refusal]:
    release = subject.release
    if subject.engine.container is None and not (release.image or release.triton_images):
        yield Refusal(
            "image",
            ("engine", "release"),
            f"no image of {subject.title} is known",
            "NVIDIA has release images since about 0.20",
            "name yours: engine.container: registry/name:tag@sha256:…",
            "container tables of trtx",
        )
    container = subject.engine.container
    if container and not is_file(container) and not is_pinned(container):
        yield Refusal(
            "image-moves",
            ("engine", "container"),
            f"the image {container} is not pinned",
            "what its name means can be another release tomorrow",
            "add a tag of one release, best with its digest: registry/name:tag@sha256:…",
            "deployments are made on it",
        )


def check_driver(subject: Subject) -> Iterator[Refusal]:
    release, driver = subject.release, subject.driver
    if driver is None or subject.engine.container is not None:
        return
    source = "NVIDIA CUDA release notes, driver versions"
    cuda = f"its image has CUDA {release.cuda}"
    if release.compatible_driver and is_older(driver, release.compatible_driver):
        yield Refusal(
            "driver",
            ("engine", "release"),
            f"{subject.title} does not run with the driver {driver} of this machine",
            f"{cuda}, which needs {release.compatible_driver} or newer",
            "update the driver, or choose an older release",
            source,
        )
    elif release.min_driver and is_older(driver, release.min_driver):
        yield Refusal(
            "driver-of-the-toolkit",
            ("engine", "release"),
            f"the driver {driver} of this machine is older than that of {subject.title}'s CUDA",
            f"{cuda} and comes with {release.min_driver}; below it, code that has to be compiled on the spot fails",
            f"update the driver to {release.min_driver}",
            source,
            "warning",
        )


def check_converter(subject: Subject) -> Iterator[Refusal]:
    if subject.flow != "engine" or lacks_context(subject):
        return
    if check_gpu(subject.release, subject.flow, subject.sm, subject.algorithm).supported is False:
        return  # That is said, and says more.
    by_trtx, by_release = trtx_problem(subject), release_problem(subject)
    wanted = subject.engine.converter
    if wanted == "trtx" and by_trtx:
        fix = "write engine.converter: release" if not by_release else "choose another algorithm or model"
        yield Refusal(
            "converter",
            ("engine", "converter"),
            "trtx cannot write this checkpoint",
            by_trtx,
            fix,
            "the writer of trtx",
        )
    elif wanted == "release" and by_release:
        fix = "write engine.converter: trtx" if not by_trtx else "choose another algorithm or release"
        yield Refusal(
            "converter",
            ("engine", "converter"),
            f"{subject.title} cannot write this checkpoint",
            by_release,
            fix,
            "examples/quantization/quantize.py",
        )
    elif wanted == "auto" and by_trtx and by_release:
        yield Refusal(
            "converter",
            ("quantization", "algorithm"),
            f"neither trtx nor {subject.title} writes this checkpoint",
            f"{by_trtx}; {by_release}",
            "choose another algorithm, release or model",
            "examples/quantization/quantize.py",
        )


def check_server(subject: Subject) -> Iterator[Refusal]:
    release = subject.release
    if set(subject.emit) - {"triton"} and not any(key.startswith("trtllm-serve") for key in release.tools):
        yield Refusal(
            "server",
            ("package", "emit"),
            f"{subject.title} has no trtllm-serve to start in a container",
            "it came with 0.15.0",
            "write package.emit: [triton], or choose a later release",
            f"the table of {release.version}",
        )
    if "triton" in subject.emit and release.triton_image is None:
        yield Refusal(
            "triton-image",
            ("package", "emit"),
            f"no Triton image with {subject.title} is known",
            "the model repository is written, and no Dockerfile for it",
            "build an image that has both, or choose a release that NVIDIA has one of",
            "container tables of trtx",
            "warning",
        )


CHECKS = (
    check_flow,
    check_settings_of_the_other_flow,
    check_architecture,
    check_image,
    check_driver,
    check_converter,
    check_server,
)
