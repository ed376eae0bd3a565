"""Checks that look at more than one field. Hardware and models come in as arguments: this package imports neither."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from trtx.errors import did_you_mean
from trtx.recipe import problems
from trtx.recipe.check_backend import TENSORRT, check_backends
from trtx.recipe.check_runners import check_points, check_runners
from trtx.recipe.load import LoadedRecipe, load_recipe
from trtx.recipe.measure import Workload
from trtx.recipe.overrides import NO_OVERRIDES, Overrides
from trtx.recipe.problems import Problem, RecipeInvalid
from trtx.recipe.runners import Runner
from trtx.recipe.schema import AS_STORED, DEMO, RANDOM, Engine, Quantization
from trtx.recipe.tree import dotted

# Algorithms that observe activations, and so need text; trtx.models.formats has the same facts.
NEEDS_CALIBRATION = frozenset({"fp8", "int8_sq", "int4_awq", "int4_gptq", "w4a8_awq", "nvfp4", "nvfp4_awq"})
# Image tags that mean something else tomorrow; trtx.backends.images has the same.
MOVING_TAGS = frozenset({"latest", "main", "master", "edge", "nightly", "stable"})
# Held-out text is cut into windows of calibration.max_length tokens, or this many; trtx.quant.perplexity has the same.
MAX_WINDOW = 128
# A name and a password; a name alone at a web server, which is a token; a signed address.
CREDENTIALS = re.compile(
    r"//[^/]*:[^/]*@|^https?://[^/?#]*@|[?&](?:[^=&]*(?:token|secret|passw|signature|credential|api_?key)[^=&]*|sig)=",
    re.IGNORECASE,
)


class Device(Protocol):
    """One entry of the hardware catalogue."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def arch(self) -> str: ...


class Hardware(Protocol):
    """What the checks ask about devices; the module trtx.hardware.support answers it.

    `support_problem` returns ("error" or "warning", what, why) for a combination that does not run, or runs as
    something else than its name says; None when all is well. `compile_problem` returns (why, fix) when the embedded
    backend makes no such engine.
    """

    @property
    def GPUS(self) -> Mapping[str, Device]: ...
    def support_problem(self, arch: str, algorithm: str) -> tuple[str, str, str] | None: ...
    def compile_problem(self, arch: str, algorithm: str) -> tuple[str, str] | None: ...


NO_RUNNERS: Mapping[str, Runner] = {}


def read_recipe(
    path: Path,
    hardware: Hardware,
    overrides: Overrides = NO_OVERRIDES,
    environ: Mapping[str, str] | None = None,
    site: Mapping[str, Runner] = NO_RUNNERS,
) -> LoadedRecipe:
    """Load a recipe and check everything that needs no model: what `validate`, `plan` and `apply` begin with.

    `site` are the runners of the site's configuration.

    Raises RecipeInvalid with all problems, warnings among them; otherwise the warnings are in the result.
    """
    loaded = load_recipe(path, overrides, environ)
    found = [*loaded.warnings, *check_recipe(loaded, hardware, site)]
    if any(problem.severity == "error" for problem in found):
        raise RecipeInvalid(found)
    return replace(loaded, warnings=tuple(sorted(found, key=lambda problem: (problem.file, problem.mark))))


def check_recipe(loaded: LoadedRecipe, hardware: Hardware, site: Mapping[str, Runner] = NO_RUNNERS) -> list[Problem]:
    """All problems and warnings of a recipe that only several fields together show, each once."""
    found = [*_check_use(loaded), *check_points(loaded)]
    for point in loaded.points:
        found += [
            *_check_sources(point),
            *_check_variants(point),
            *_check_references(point),
            *_check_devices(point, hardware),
            *_check_package(point),
            *check_backends(point),
            *check_runners(point, hardware.GPUS, site),
        ]
        for target in point.built:
            for check in (_check_limits, _check_windows, _check_kv_cache, _check_workloads):
                found += check(point, target)
    # Targets and points share settings, and so problems; the first one speaks for all.
    return list({(problem.file, problem.mark, problem.what): problem for problem in reversed(found)}.values())


def origin(loaded: LoadedRecipe, target: str, *path: str) -> problems.Path:
    """Where the file says an engine setting of a target: in its override, else in `engine` (even if left out)."""
    override: problems.Path = ("targets", target, "engine", *path)
    return override if override in loaded.tree.places else ("engine", *path)


def warning(problem: Problem) -> Problem:
    """The same problem as one that stops nothing."""
    return replace(problem, severity="warning")


def _check_sources(loaded: LoadedRecipe) -> Iterator[Problem]:
    model = loaded.recipe.model
    is_hub = model.source.startswith("hf://")
    if "revision" in model.model_fields_set and not is_hub:
        why = f"{model.source.partition('://')[0]}:// has no revisions"
        yield loaded.problem(("model", "revision"), "model.revision means nothing here", why=why, fix="remove it")
    if model.allow_pickle and model.source.startswith((DEMO, RANDOM)):
        why = "this model is made here, as safetensors"
        yield loaded.problem(
            ("model", "allow_pickle"), "model.allow_pickle means nothing here", why=why, fix="remove it"
        )
    urls: list[tuple[problems.Path, str]] = [(("model", "source"), model.source)]
    for name, variant in loaded.recipe.quantization.items():
        urls.append((("quantization", name, "calibration", "dataset"), variant.calibration.dataset))
    for path, url in urls:
        if CREDENTIALS.search(url):
            fix = "remove them; credentials are read from the environment, such as HF_TOKEN or AWS_PROFILE"
            # Without the source line: it would print the secret.
            yield replace(loaded.problem(path, f"{dotted(path)} holds credentials", fix=fix), source="")


def _check_variants(loaded: LoadedRecipe) -> Iterator[Problem]:
    is_demo = loaded.recipe.model.source.startswith((DEMO, RANDOM))
    for name, variant in loaded.recipe.quantization.items():
        path: problems.Path = ("quantization", name)
        needs = _why_calibrate(variant)
        if needs and "dataset" not in variant.calibration.model_fields_set and not is_demo:
            fix = "add `calibration: {dataset: hf://owner/name}` or a file:// of text like your traffic"
            what = f"the variant '{name}' has no calibration text"
            yield loaded.problem(path, what, why=needs, fix=fix, at_key=True)
        if variant.algorithm in ("none", AS_STORED) and "exclude" in variant.model_fields_set:
            what = f"exclude has no effect on the variant '{name}'"
            why = f"algorithm {variant.algorithm} quantizes no weights"
            yield warning(loaded.problem((*path, "exclude"), what, why=why, fix="remove it", at_key=True))


def _why_calibrate(variant: Quantization) -> str:
    """Why a variant needs calibration text; empty when it does not."""
    if variant.algorithm in NEEDS_CALIBRATION:
        return f"{variant.algorithm} takes its scales from activations on real text"
    if variant.kv_cache == "auto" or variant.algorithm == AS_STORED:
        return ""
    return f"an {variant.kv_cache} KV cache takes its scales from keys and values on real text"


def _check_references(loaded: LoadedRecipe) -> Iterator[Problem]:
    recipe = loaded.recipe
    for name in recipe.targets:
        chosen = recipe.variants_of(name)
        for index, variant in enumerate(chosen):
            path: problems.Path = ("targets", name, "quantization", index)
            if variant not in recipe.quantization:
                fix = did_you_mean(variant, recipe.quantization)
                yield loaded.problem(path, f"there is no variant '{variant}' in quantization", fix=fix)
            elif variant in chosen[:index]:
                yield loaded.problem(path, f"the variant '{variant}' is listed twice", fix="remove one")


def _check_use(loaded: LoadedRecipe) -> Iterator[Problem]:
    """Variants and runners that no target names, at any point."""
    used: dict[str, set[str]] = {"quantization": set(), "runners": set()}
    for point in loaded.points:
        for name, target in point.recipe.targets.items():
            used["quantization"].update(point.recipe.variants_of(name))
            used["runners"].add(target.runner)
    for section, names in (("quantization", loaded.recipe.quantization), ("runners", loaded.recipe.runners)):
        for name in [name for name in names if name not in used[section]]:
            what = f"{section}.{name} is used by no target"
            yield warning(loaded.problem((section, name), what, fix="name it in a target, or remove it", at_key=True))


def _check_devices(loaded: LoadedRecipe, hardware: Hardware) -> Iterator[Problem]:
    recipe = loaded.recipe
    for name, variants in loaded.built.items():
        target = recipe.targets[name]
        path: problems.Path = ("targets", name, "gpu")
        device = hardware.GPUS.get(target.gpu)
        if device is None:
            fix = did_you_mean(target.gpu, hardware.GPUS)
            yield loaded.problem(path, f"there is no device '{target.gpu}' in the catalogue", fix=fix)
            continue
        is_tensorrt = recipe.engine_for(name).backend == TENSORRT
        if device.kind == "gpu" and not is_tensorrt:
            yield from _check_gpu_engine(loaded, name, device, hardware)
        if is_tensorrt:
            if device.kind != "gpu":
                what = f"TensorRT-LLM does not run on {device.name}"
                yield loaded.problem(path, what, why="it needs an NVIDIA GPU", fix="name a GPU, such as h100-sxm-80gb")
            # Which numbers a GPU computes in depends on the release: trtx.plan.check_tensorrt_llm.
            continue
        for variant in variants:
            # What a checkpoint has is known when the model is: see trtx.plan.formats.
            if (settings := recipe.quantization.get(variant)) is None or settings.algorithm == AS_STORED:
                continue
            answer = hardware.support_problem(device.arch, settings.algorithm)
            if answer is not None:
                severity, what, why = answer
                where: problems.Path = ("quantization", variant, "algorithm")
                problem = loaded.problem(where, f"{name}/{variant}: {what}", why=why)
                yield problem if severity == "error" else warning(problem)


def _check_gpu_engine(loaded: LoadedRecipe, name: str, device: Device, hardware: Hardware) -> Iterator[Problem]:
    """What the embedded backend cannot compile for a target's GPU."""
    recipe = loaded.recipe
    if (answer := hardware.compile_problem(device.arch, "none")) is not None:
        what = f"an engine for {device.name} ({device.arch}) cannot be built"
        yield loaded.problem(("targets", name, "gpu"), what, why=answer[0], fix=answer[1])
        return
    dtype = recipe.engine_for(name).dtype
    if dtype not in ("auto", "bfloat16"):
        what = f"an engine of {dtype} cannot be built for {device.name}"
        fix = "use bfloat16, or leave dtype out"
        yield loaded.problem(origin(loaded, name, "dtype"), what, why="GPU kernels compute in bfloat16", fix=fix)
    for variant in loaded.built[name]:
        settings = recipe.quantization.get(variant)
        if settings is None or settings.algorithm == AS_STORED:
            continue
        if hardware.support_problem(device.arch, settings.algorithm) is not None:  # told already
            continue
        if (answer := hardware.compile_problem(device.arch, settings.algorithm)) is not None:
            where: problems.Path = ("quantization", variant, "algorithm")
            what = f"{name}/{variant}: an engine of {settings.algorithm} cannot be built for {device.name}"
            yield loaded.problem(where, what, why=answer[0], fix=answer[1])


def _check_limits(loaded: LoadedRecipe, target: str) -> Iterator[Problem]:
    engine = loaded.recipe.engine_for(target)
    limits = engine.limits
    if limits.max_num_tokens < limits.max_batch_size:
        what = f"max_num_tokens {limits.max_num_tokens} is less than max_batch_size {limits.max_batch_size}"
        why = "every sequence of a batch decodes one token in each step"
        path = _stated(loaded, target, ("limits", "max_num_tokens"), ("limits", "max_batch_size"))
        yield loaded.problem(path, what, why=why, fix="raise max_num_tokens or lower max_batch_size")
    if engine.backend == TENSORRT and engine.kv_cache.tokens_per_block is None:
        return
    tokens_per_block = engine.kv_cache.block_tokens
    if tokens_per_block > limits.max_seq_len:
        what = f"tokens_per_block {tokens_per_block} is more than max_seq_len {limits.max_seq_len}"
        path = _stated(loaded, target, ("kv_cache", "tokens_per_block"), ("limits", "max_seq_len"))
        yield loaded.problem(path, what, why="the rest of every block could never be used", fix="use a smaller block")


def _check_windows(loaded: LoadedRecipe, target: str) -> Iterator[Problem]:
    """An engine is checked on the windows that its variant's perplexity was measured on; they must fit."""
    recipe = loaded.recipe
    if recipe.engine_for(target).backend == TENSORRT:
        return
    limit = recipe.engine_for(target).limits.max_seq_len
    lengths = {
        name: min(recipe.quantization[name].calibration.max_length, MAX_WINDOW)
        for name in loaded.built[target]
        if name in recipe.quantization
    }
    if long := [name for name, length in lengths.items() if length > limit]:
        what = f"max_seq_len {limit} is less than the {max(lengths.values())} tokens of the text that checks the engine"
        why = f"the perplexity of {', '.join(long)} is measured on windows of calibration.max_length tokens"
        fix = f"raise max_seq_len, or set their calibration.max_length to {limit}"
        yield loaded.problem(origin(loaded, target, "limits", "max_seq_len"), what, why=why, fix=fix)


def _stated(loaded: LoadedRecipe, target: str, *settings: tuple[str, ...]) -> problems.Path:
    """The first of several engine settings that the file states, overrides first; one of them is always stated."""
    paths = [origin(loaded, target, *setting) for setting in settings]
    overrides = [path for path in paths if path[0] == "targets"]
    return next((path for path in (*overrides, *paths) if path in loaded.tree.places), paths[0])


def _check_kv_cache(loaded: LoadedRecipe, target: str) -> Iterator[Problem]:
    size, fraction = (origin(loaded, target, "kv_cache", key) for key in ("size", "memory_fraction"))
    stated = size in loaded.tree.places and fraction in loaded.tree.places
    # A target's size replaces the recipe's fraction; everything else leaves one of the two without effect.
    if stated and not (size[0] == "targets" and fraction[0] == "engine"):
        fix = "keep one of the two"
        yield loaded.problem(fraction, "memory_fraction has no effect beside size", fix=fix, at_key=True)


def _check_workloads(loaded: LoadedRecipe, target: str) -> Iterator[Problem]:
    recipe = loaded.recipe
    engine = recipe.engine_for(target)
    for name, workload in recipe.benchmark.workloads.items() if recipe.benchmark else ():
        yield from _check_workload(loaded, ("benchmark", "workloads", name), workload, engine, target)


def _check_workload(
    loaded: LoadedRecipe, path: problems.Path, workload: Workload, engine: Engine, target: str
) -> Iterator[Problem]:
    limits = engine.limits
    total = workload.input_tokens + workload.output_tokens
    if total > limits.max_seq_len:
        what = (
            f"{workload.input_tokens} + {workload.output_tokens} tokens are more than max_seq_len {limits.max_seq_len}"
        )
        why = f"the engine of '{target}' refuses such requests"
        fix = f"raise max_seq_len to {total}, or shorten the workload"
        yield loaded.problem((*path, "input_tokens"), what, why=why, fix=fix)
    elif workload.input_tokens > limits.max_num_tokens and not engine.scheduler.chunked_prefill:
        what = f"a prompt of {workload.input_tokens} tokens is more than max_num_tokens {limits.max_num_tokens}"
        why = f"the engine of '{target}' takes a prompt in one step"
        yield loaded.problem((*path, "input_tokens"), what, why=why, fix="raise max_num_tokens, or shorten the prompt")
    if workload.requests is not None and workload.requests < max(workload.concurrency):
        what = f"{workload.requests} requests cannot keep {max(workload.concurrency)} under way"
        yield loaded.problem((*path, "requests"), what, fix=f"use at least {max(workload.concurrency)}")
    for index, level in enumerate(workload.concurrency):
        if level in workload.concurrency[:index]:
            yield loaded.problem((*path, "concurrency", index), f"the level {level} is listed twice", fix="remove one")
        elif level > limits.max_batch_size:
            what = f"{level} requests at once are more than max_batch_size {limits.max_batch_size}"
            why = f"on '{target}' the rest waits, and time to first token includes the wait"
            yield warning(loaded.problem((*path, "concurrency", index), what, why=why))


def _check_package(loaded: LoadedRecipe) -> Iterator[Problem]:
    for setting in ("base", "triton_base"):
        base: str = getattr(loaded.recipe.package, setting)
        tag = base.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in base and (not tag or tag in MOVING_TAGS):
            why = f"the tag '{tag}' moves" if tag else "it has neither a tag nor a digest"
            fix = "name a release, best by digest: python:3.12-slim-bookworm@sha256:…"
            yield loaded.problem(("package", setting), f"the base image {base} is not pinned", why=why, fix=fix)
