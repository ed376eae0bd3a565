"""Pins what a recipe names: the model's commit or digest and its shape, and every calibration dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trtx.models.config import ModelConfig, read_model_config
from trtx.models.sources.base import Request, Resolved, find_source
from trtx.recipe.cells import Cell
from trtx.recipe.schema import Calibration, Model

ModelName = tuple[str, str, bool]
DatasetName = tuple[str, str, str]


@dataclass(frozen=True)
class PinnedModel:
    """A model and its shape."""

    source: Resolved
    shape: ModelConfig


@dataclass(frozen=True)
class PinnedSources:
    """Models by URL, revision and whether pickles are let in; datasets by URL, revision and split."""

    models: dict[ModelName, PinnedModel]
    datasets: dict[DatasetName, Resolved]

    def model_of(self, cell: Cell) -> PinnedModel:
        return self.models[model_name(cell.recipe.model)]

    def dataset_of(self, cell: Cell) -> Resolved:
        return self.datasets[dataset_name(cell.recipe.quantization[cell.variant].calibration)]

    def generators(self) -> set[str]:
        """Distributions that generated sources depend on."""
        pinned = (*(model.source for model in self.models.values()), *self.datasets.values())
        return {name for source in pinned for name in source.toolchain}


def resolve_model(model: Model, environ: Mapping[str, str]) -> PinnedModel:
    """Pin the model and read its shape.

    Raises UsageProblem for a source that names nothing or a model trtx cannot compile, EnvironmentProblem for one
    that cannot be reached.
    """
    request = Request(model.source, "model", model.revision, model.allow_pickle, environ=environ)
    resolved = find_source(model.source).resolve(request)
    return PinnedModel(resolved, read_model_config(resolved.config))


def resolve_sources(cells: Iterable[Cell], environ: Mapping[str, str]) -> PinnedSources:
    """Pin everything the given cells need, each source once."""
    models: dict[ModelName, PinnedModel] = {}
    datasets: dict[DatasetName, Resolved] = {}
    for cell in cells:
        model = cell.recipe.model
        if model_name(model) not in models:
            models[model_name(model)] = resolve_model(model, environ)
        data = cell.recipe.quantization[cell.variant].calibration
        if dataset_name(data) not in datasets:
            request = Request(data.dataset, "dataset", data.revision, split=data.split, environ=environ)
            datasets[dataset_name(data)] = find_source(data.dataset).resolve(request)
    return PinnedSources(models, datasets)


def model_name(model: Model) -> ModelName:
    """What must be pinned once however many cells use it."""
    return model.source, model.revision, model.allow_pickle


def dataset_name(data: Calibration) -> DatasetName:
    """What must be pinned once however many variants use it."""
    return data.dataset, data.revision, data.split
