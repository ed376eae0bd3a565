"""One TensorRT-LLM release: its versions, images and scripts, and the surface of its tools."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trtx.backends.tensorrt_llm.drivers import series_driver, toolkit_driver
from trtx.backends.tensorrt_llm.surface import Confidence, Schema, Surface, Tool, surface_from_json, surface_to_json
from trtx.backends.tensorrt_llm.tables import known_releases, load_surface, read_table
from trtx.errors import UsageProblem, did_you_mean
from trtx.files import canonical_json, read_json, sha256_bytes

__all__ = ["Flow", "Release", "TritonImage", "known_releases", "triton_images"]

Flow = Literal["engine", "pytorch"]
PROBE_SCHEMA = "trtx.probe/v1"
# Where release images have the repository's folders: docker/Dockerfile.multi, stage "release" (WORKDIR).
SCRIPT_ROOT = "/app/tensorrt_llm"
# docs/source/release-notes.md of 1.3.0rc3. The engine flow goes up to 1.3.0rc20, after which trtllm-build is gone.
PYTORCH_FROM = "1.0.0"
VERSION = re.compile(r"\d+(\.\d+)*(rc\d+)?(\.(dev|post)\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class TritonImage:
    """A Triton container with TensorRT-LLM. `tensorrt` and `cuda` as its Dockerfile pins them."""

    image: str
    release: str
    tensorrt: str | None
    cuda: str | None


@dataclass(frozen=True)
class Release:
    """What is known of a release. None stands for what no source says.

    `image` follows the naming rule of the documents; that the tag exists was not checked. `confidence` is exact
    (sources of that release were read, by the makers of the tables or by `trtx probe`) or derived (each option has
    a confidence of its own). `min_driver` is the driver of the image's CUDA toolkit, `compatible_driver` the least by
    minor version compatibility; both from NVIDIA's CUDA release notes.
    """

    version: str
    confidence: Literal["exact", "derived"]
    date: str | None
    image: str | None
    triton_images: tuple[TritonImage, ...]
    base_image: str | None
    tensorrt: str | None
    cuda: str | None
    modelopt: str | None
    python: str | None
    torch: str | None
    transformers: str | None
    min_driver: str | None
    compatible_driver: str | None
    engine_backend: bool
    pytorch_backend: bool
    default_flow: Flow
    surface: Surface
    sources: str = ""

    @classmethod
    def load(cls, version: str, *, probed: Path | None = None) -> Release:
        """A release by its version; with `probed`, a file that `trtx probe` wrote replaces the shipped tables.

        Raises UsageProblem for a version without tables, and for a file that is no probe or one of another version.
        """
        if probed is not None:
            return _with_probe(version, probed)
        if version not in known_releases():
            raise UsageProblem(
                f"there are no tables for TensorRT-LLM {version}",
                why=f"shipped are {', '.join(known_releases())}",
                fix=f"{did_you_mean(version, known_releases())} Or read its image: trtx probe IMAGE --write F",
            )
        return _load(version)

    @property
    def triton_image(self) -> str | None:
        """The newest Triton container with this release."""
        return self.triton_images[-1].image if self.triton_images else None

    @property
    def digest(self) -> str:
        """SHA-256 over all that is known of its tools: defaults, spellings and schemas, which make command lines."""
        return _digest(self.surface)

    @property
    def tools(self) -> Mapping[str, Tool]:
        return self.surface.tools

    @property
    def schemas(self) -> Mapping[str, Schema]:
        return self.surface.schemas

    @property
    def quant_algos(self) -> Mapping[str, Confidence]:
        """Members of QuantAlgo → how sure it is that this release has them."""
        return self.surface.quant_algos

    @property
    def kv_algos(self) -> Mapping[str, Confidence]:
        """Algorithms of the KV cache → how sure."""
        return self.surface.kv_algos

    @property
    def env_vars(self) -> Mapping[str, Confidence]:
        """Environment variables that its Python code reads → how sure."""
        return self.surface.env_vars

    @property
    def triton_models(self) -> Mapping[str, Mapping[str, Any]]:
        """Models of Triton's repository, as inflight_batcher_llm/tensorrt_llm, with placeholders and parameters."""
        return self.surface.triton_models

    def tool(self, name: str, command: str | None = None) -> Tool:
        """A tool's command line; a subcommand of a tool that has none in this release is the tool itself.

        Raises UsageProblem when the release has no such tool, or its table is not known.
        """
        key = f"{name} {command}" if command else name
        if key in self.tools:
            return self.tools[key]
        single = self.tools.get(name)
        if command and single is not None and not single.subcommands:
            return single
        raise UsageProblem(
            f"TensorRT-LLM {self.version} has no {key}", why=_where_else(key), fix="choose another release"
        )

    def scripts(self, tool: str) -> tuple[str, ...]:
        """Where an image may have a tool's script, likeliest first; one where its layout is established."""
        return tuple(f"{SCRIPT_ROOT}/{file}" for file in self.tool(tool).files)

    def architectures(self, flow: Flow) -> frozenset[str]:
        """Names of config.json's `architectures` that a flow has, those that are not certain included."""
        return frozenset(self._architectures(flow))

    def architecture_confidence(self, flow: Flow, name: str) -> Confidence | None:
        """How sure it is that a flow has an architecture; None when it does not."""
        return self._architectures(flow).get(name)

    def _architectures(self, flow: Flow) -> Mapping[str, Confidence]:
        return self.surface.engine_architectures if flow == "engine" else self.surface.pytorch_architectures

    def schema_fields(self, name: str) -> Mapping[str, Any]:
        """Every field of a schema, those of its bases included, by name."""
        schema = self.schemas[name]
        result: dict[str, Any] = {}
        for base in reversed(schema.bases):
            if base in self.schemas:
                result.update(self.schema_fields(base))
        return {**result, **{field.name: field for field in schema.fields}}

    def is_closed(self, name: str) -> bool:
        """Whether a schema refuses unknown keys."""
        schema = self.schemas.get(name)
        return schema is not None and (schema.closed or any(self.is_closed(base) for base in schema.bases))


@functools.cache
def _digest_of(version: str) -> str:
    return sha256_bytes(canonical_json(surface_to_json(load_surface(version))))


def _digest(surface: Surface) -> str:
    # Shipped tables are asked for in every plan; a probe's in few.
    if surface.version in known_releases() and surface is load_surface(surface.version):
        return _digest_of(surface.version)
    return sha256_bytes(canonical_json(surface_to_json(surface)))


def _where_else(key: str) -> str:
    having = [version for version in known_releases() if key in load_surface(version).tools]
    return f"{key} is known of {', '.join(having)}" if having else "no release that is known has it"


def triton_images() -> tuple[TritonImage, ...]:
    """Every Triton container whose TensorRT-LLM release is known, oldest first."""
    return tuple(
        TritonImage(row["image"], row["trtllm"], row["tensorrt"], row["cuda"])
        for row in read_table("releases")["triton"]
        # Others were built from a commit of main, or their Dockerfile contradicts itself.
        if row["trtllm"] and VERSION.fullmatch(row["trtllm"])
    )


@functools.cache
def _load(version: str) -> Release:
    exact = read_table(f"surface-{version}")["confidence"] == "exact"
    return _make(load_surface(version), "exact" if exact else "derived")


def _make(surface: Surface, confidence: Literal["exact", "derived"]) -> Release:
    version = surface.version
    row: dict[str, Any] = next((row for row in read_table("releases")["releases"] if row["version"] == version), {})
    cuda = row.get("cuda")
    pytorch = not is_before(version, PYTORCH_FROM)
    base = row.get("pytorch_container")
    return Release(
        version=version,
        confidence=confidence,
        date=row.get("date"),
        image=row.get("release_image"),
        triton_images=tuple(each for each in triton_images() if each.release == version),
        base_image=f"nvcr.io/nvidia/pytorch:{base}-py3" if base else None,
        tensorrt=row.get("tensorrt"),
        cuda=cuda,
        modelopt=row.get("modelopt"),
        python=row.get("python"),
        torch=row.get("torch"),
        transformers=row.get("transformers"),
        min_driver=toolkit_driver(cuda) if cuda else None,
        compatible_driver=series_driver(cuda) if cuda else None,
        engine_backend="trtllm-build" in surface.tools,
        pytorch_backend=pytorch,
        default_flow="pytorch" if pytorch else "engine",
        surface=surface,
        sources=row.get("sources", ""),
    )


def is_before(first: str, second: str) -> bool:
    """Whether a release is older than another."""
    order = known_releases()
    if first in order and second in order:
        return order.index(first) < order.index(second)
    from packaging.version import (
        Version,
    )  # Only for releases without a table: importing it takes longer than loading one.

    return Version(first) < Version(second)


def read_probe(path: Path) -> tuple[Surface, tuple[str, ...]]:
    """A file of `trtx probe`: the surface, and the folders of the repository that were found and read.

    Raises UsageProblem for a file that is none.
    """
    try:
        data = read_json(path)
        if data["schema"] != PROBE_SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r}")
        return surface_from_json(data["surface"]), tuple(data["covered"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageProblem(
            f"{path} is no result of trtx probe",
            why=f"{type(error).__name__}: {error}",
            fix="make it with trtx probe IMAGE --write",
        ) from error


def _with_probe(version: str, path: Path) -> Release:
    surface, covered = read_probe(path)
    if surface.version != version:
        raise UsageProblem(
            f"{path} describes TensorRT-LLM {surface.version}, not {version}",
            why="a probe is of one release",
            fix=f"write engine.release: {surface.version}, or probe the image of {version}",
        )
    if version not in known_releases():
        return _make(surface, "exact")
    shipped = load_surface(version)
    # Folders that the image does not have say nothing about the scripts that would be in them.
    kept = {key: tool for key, tool in shipped.tools.items() if not _is_covered(tool, covered)}
    triton = surface.triton_models or shipped.triton_models
    merged = replace(
        surface,
        tools={**kept, **surface.tools},
        triton_models=triton,
        triton_confidence="exact" if surface.triton_models else shipped.triton_confidence,
    )
    return _make(merged, "exact")


def _is_covered(tool: Tool, covered: tuple[str, ...]) -> bool:
    return any(file.partition("/")[0] in covered for file in tool.files)
