"""Pins what a recipe names: the model's commit or digest and its shape, every calibration dataset, base images.

What a lock pins stays as it is: no hub is asked which commit a branch is. What a network source was pinned to is taken
from the cache where it holds that; offline nothing else is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from trtx.cache.store import Store
from trtx.errors import EnvironmentProblem, LockOutOfDate, UsageProblem
from trtx.files import read_json
from trtx.models.config import ModelConfig, read_model_config
from trtx.models.formats import QuantFormat
from trtx.models.sources.base import Request, Resolved, find_source, is_commit, is_local, is_offline, on_hub
from trtx.models.sources.quantized import read_folder
from trtx.paths import cache_dir
from trtx.plan.keys import make_factors, make_key
from trtx.plan.lock import Lock, LockedDataset, LockedModel, dataset_title, draw_title, model_title
from trtx.plan.releases import (
    PinnedRelease,
    ReleaseName,
    describe_release,
    is_tensorrt,
    needs_texts,
    release_name,
)
from trtx.quant.read_format import decide_format, says_quantized
from trtx.recipe.cells import Cell
from trtx.recipe.schema import Calibration, Model
from trtx.stages.params import DatasetParams, DownloadParams

ModelName = tuple[str, str, bool]
DatasetName = tuple[str, str, str]


@dataclass(frozen=True)
class PinnedModel:
    """A model and its shape; `files` are the SHA-256 digests that a lock demands by path, empty when none does.

    `compiled` is None for an architecture that only another backend knows.
    """

    source: Resolved
    compiled: ModelConfig | None
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> ModelConfig:
        """What trtx compiles. Raises UsageProblem for an architecture that it does not."""
        return self.compiled or read_model_config(self.source.config)

    @cached_property
    def stored(self) -> QuantFormat | None:
        """The number formats of a model that is quantized already, None for all others.

        Raises UsageProblem for a format that trtx cannot run, VerificationFailed for damaged files.
        """
        files, config = self.source.quantized, self.source.config
        if files is None or not says_quantized(config, files.described):
            return None
        if not files.shapes:
            raise UsageProblem(
                f"{self.source.url} is quantized and has no safetensors weights",
                why="quantized weights are read from safetensors alone",
                fix="choose a revision with safetensors",
            )
        return decide_format(self.source.url, config, files.described, files)


@dataclass(frozen=True)
class PinnedSources:
    """Models by URL, revision and whether pickles are let in; datasets by URL, revision and split.

    `images` are base images with their digest, by the reference in the recipe; `draws` the SHA-256 digests that a lock
    demands of the files with the rows of a dataset, by the dataset and what chooses the rows. `releases` are those of
    TensorRT-LLM, by version and probe. `choices` are what a lock says that builds measured, by their keys.
    """

    models: dict[ModelName, PinnedModel]
    datasets: dict[DatasetName, Resolved]
    images: Mapping[str, str] = field(default_factory=dict)
    draws: Mapping[tuple[DatasetName, str], Mapping[str, str]] = field(default_factory=dict)
    releases: Mapping[ReleaseName, PinnedRelease] = field(default_factory=dict)
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def model_of(self, cell: Cell) -> PinnedModel:
        return self.models[model_name(cell.recipe.model)]

    def dataset_of(self, cell: Cell) -> Resolved:
        return self.datasets[dataset_name(cell.recipe.quantization[cell.variant].calibration)]

    def rows_of(self, cell: Cell) -> Mapping[str, str]:
        """Digests of the files with the cell's rows that a lock demands."""
        data = cell.recipe.quantization[cell.variant].calibration
        return self.draws.get((dataset_name(data), draw_title(data)), {})

    def image_of(self, reference: str) -> str:
        """An image that a package is built on, with its digest where that is known."""
        return self.images.get(reference, reference)

    def release_of(self, cell: Cell) -> PinnedRelease:
        """The TensorRT-LLM release of a cell that has that backend."""
        return self.releases[release_name(cell)]

    def references_of(self, cell: Cell) -> tuple[str, ...]:
        """The images that a cell needs, as the recipe or its release names them; none that is a file."""
        if not is_tensorrt(cell):
            return cell.recipe.package.images
        from trtx.backends.tensorrt_llm.from_recipe import choose_image

        image = choose_image(cell.recipe.engine_for(cell.target), self.release_of(cell).release)
        return () if not image or image.startswith("/") else (image,)

    def describe_releases(self, cells: Iterable[Cell]) -> list[dict[str, Any]]:
        """What the releases of these cells bring, each with every image that is used of it once."""
        rows: dict[tuple[ReleaseName, tuple[str, ...]], dict[str, Any]] = {}
        for cell in filter(is_tensorrt, cells):
            images = self.references_of(cell)
            image = images[0] if images else cell.recipe.engine_for(cell.target).container or ""
            pinned = self.release_of(cell)
            rows[release_name(cell), images] = describe_release(pinned, image, self.digest_of(image))
        return list(rows.values())

    def digest_of(self, image: str) -> str | None:
        """The digest of an image of a release, `sha256:…`, where the reference or the lock has it."""
        return self.images.get(image, image).partition("@")[2] or None

    def configs(self) -> dict[ModelName, Mapping[str, object]]:
        """The models' config.json."""
        return {name: model.source.config for name, model in self.models.items()}

    def generators(self) -> set[str]:
        """Distributions that generated sources depend on."""
        pinned = (*(model.source for model in self.models.values()), *self.datasets.values())
        return {name for source in pinned for name in source.toolchain}


def resolve_sources(cells: Iterable[Cell], environ: Mapping[str, str], lock: Lock | None = None) -> PinnedSources:
    """Pin everything the given cells need, each source once; what `lock` pins stays.

    Raises as resolve_model does.
    """
    models: dict[ModelName, PinnedModel] = {}
    datasets: dict[DatasetName, Resolved] = {}
    draws: dict[tuple[DatasetName, str], Mapping[str, str]] = {}
    cells = list(cells)
    compiled = {model_name(cell.recipe.model) for cell in cells if not is_tensorrt(cell)}
    for cell in cells:
        model = cell.recipe.model
        if model_name(model) not in models:
            is_compiled = model_name(model) in compiled
            models[model_name(model)] = resolve_model(model, environ, lock, compiled=is_compiled)
        if not needs_texts(cell):
            continue
        data = cell.recipe.quantization[cell.variant].calibration
        name = dataset_name(data)
        if name not in datasets:
            datasets[name] = resolve_dataset(data, environ, lock)
        if lock is not None:
            draws[name, draw_title(data)] = _demanded_rows(data, datasets[name], lock)
    return PinnedSources(models, datasets, _pin_images(lock), draws, choices=_measured_choices(lock))


def _measured_choices(lock: Lock | None) -> dict[str, Mapping[str, Any]]:
    """What builds measured, by their keys, of those that measured anything."""
    if lock is None or not lock.builds:
        return {}
    from trtx.backends.inductor.replay import keep_measured

    found = {build.key: keep_measured(build.choices) for build in lock.builds.values()}
    return {key: choices for key, choices in found.items() if choices}


def resolve_model(
    model: Model, environ: Mapping[str, str], lock: Lock | None = None, *, compiled: bool = True
) -> PinnedModel:
    """Pin the model and read its shape, where it is `compiled` by trtx itself.

    Raises UsageProblem for a source that names nothing or a model trtx cannot compile, EnvironmentProblem for one
    that cannot be reached, LockOutOfDate for one that no longer is what the lock says.
    """
    locked = _find_locked(lock.models if lock else {}, model.source, model_title(model))
    request = Request(model.source, "model", model.revision, model.allow_pickle, environ=environ)
    resolved = _resolve(request, locked)
    files = {}
    if lock is not None and isinstance(locked, LockedModel) and locked.identity == resolved.identity:
        # What is generated may come out differently on another processor; what is fetched may not.
        known = not resolved.toolchain and lock.stages.get("download") == DownloadParams.code_version
        files = {path: file.sha256 for path, file in locked.files.items()} if known else {}
    return PinnedModel(resolved, read_model_config(resolved.config) if compiled else None, files)


def resolve_dataset(data: Calibration, environ: Mapping[str, str], lock: Lock | None = None) -> Resolved:
    """Pin a dataset. Raises as resolve_model does."""
    locked = _find_locked(lock.datasets if lock else {}, data.dataset, dataset_title(data))
    request = Request(data.dataset, "dataset", data.revision, split=data.split, environ=environ)
    if locked and lock and dataset_title(data) in lock.datasets and not is_local(data.dataset):
        return Resolved(data.dataset, locked.identity, {})  # That it has the split was seen when it was pinned.
    return _resolve(request, locked)


def _find_locked(
    section: Mapping[str, LockedModel] | Mapping[str, LockedDataset], url: str, title: str
) -> LockedModel | LockedDataset | None:
    """What a lock says of a source. A commit of the hub is the same for every split and every choice of files."""
    if title in section or not on_hub(url):
        return section.get(title)
    stem = title.partition("#")[0]
    return next((entry for name, entry in section.items() if name.partition("#")[0] == stem), None)


def _resolve(request: Request, locked: LockedModel | LockedDataset | None) -> Resolved:
    if is_local(request.url):
        return find_source(request.url).resolve(request)
    identity = locked.identity if locked else None
    if identity is None and on_hub(request.url) and is_commit(request.revision):
        identity = request.revision
    if identity is not None and (known := _find_known(request, identity)):
        return known
    try:
        return _ask(request, identity if locked else None)
    except EnvironmentProblem as error:
        if not is_offline(request.environ):
            raise
        step = "download/model" if request.kind == "model" else f"the dataset {request.url}"
        raise EnvironmentProblem(
            f"{step} needs the network, which may not be used",
            why=f"{request.url}: {error.what}" if identity else f"{request.url}@{request.revision} is in no lock",
            fix="run `trtx lock RECIPE` once with a network: it pins and fetches what the recipe names",
        ) from error


def _find_known(request: Request, identity: str) -> Resolved | None:
    """A pinned source without asking anybody: a model that was fetched has its shape in the cache, a dataset none."""
    if request.kind == "dataset":
        return Resolved(request.url, identity, {}) if is_offline(request.environ) else None
    params = DownloadParams(url=request.url, identity=identity, allow_pickle=request.allow_pickle)
    key = make_key(make_factors(params, inputs={}, toolchain={}, machine={}))
    store = Store(cache_dir(request.environ))
    if store.find(key).manifest is None:
        return None
    folder = store.output(key)
    config = read_json(folder / "config.json")
    quantized = read_folder(folder, config, [path.name for path in folder.iterdir()], request.url)
    return Resolved(request.url, identity, config, quantized=quantized)


def _ask(request: Request, pinned: str | None) -> Resolved:
    """Ask the source, and hold it to what it is pinned to."""
    at_commit = pinned is not None and on_hub(request.url)
    asked = replace(request, revision=pinned) if at_commit else request
    try:
        resolved = find_source(request.url).resolve(asked)
    except UsageProblem as error:
        if not at_commit or "has no revision" not in error.what:
            raise
        raise LockOutOfDate(
            f"the commit that the lock pins {request.url}@{request.revision} to is gone",
            why=error.what,
            fix=f"take what is there now: trtx lock RECIPE --upgrade {request.kind}",
        ) from error
    if pinned not in (None, resolved.identity):
        raise LockOutOfDate(
            f"{request.url} is no longer what the lock pins",
            why=f"the versions of its files changed: {pinned} → {resolved.identity}",
            fix=f"take what is there now: trtx lock RECIPE --upgrade {request.kind}",
        )
    return resolved


def _demanded_rows(data: Calibration, resolved: Resolved, lock: Lock) -> Mapping[str, str]:
    locked = lock.datasets.get(dataset_title(data))
    draw = locked.draws.get(draw_title(data)) if locked and locked.identity == resolved.identity else None
    if draw is None or lock.stages.get("dataset") != DatasetParams.code_version:
        return {}
    return {path: file.sha256 for path, file in draw.files.items()}


def _pin_images(lock: Lock | None) -> dict[str, str]:
    """Base images with the digests of a lock, by the reference without one."""
    known = lock.containers.items() if lock else ()
    return {name: f"{name}@{image.digest}" for name, image in known if image.digest and "@" not in name}


def model_name(model: Model) -> ModelName:
    """What must be pinned once however many cells use it."""
    return model.source, model.revision, model.allow_pickle


def dataset_name(data: Calibration) -> DatasetName:
    """What must be pinned once however many variants use it."""
    return data.dataset, data.revision, data.split
