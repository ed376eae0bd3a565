"""Pins what a recipe names: the model's commit or digest and its shape, and every calibration dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trtx.models.config import ModelConfig, read_model_config
from trtx.models.sources.base import Request, Resolved, find_source
from trtx.recipe.schema import Calibration, Recipe

DatasetName = tuple[str, str, str]


@dataclass(frozen=True)
class PinnedSources:
    """The model, its shape, and the datasets by URL, revision and split."""

    model: Resolved
    shape: ModelConfig
    datasets: dict[DatasetName, Resolved]


def resolve_model(recipe: Recipe, environ: Mapping[str, str]) -> tuple[Resolved, ModelConfig]:
    """Pin the model and read its shape.

    Raises UsageProblem for a source that names nothing or a model trtx cannot compile, EnvironmentProblem for one
    that cannot be reached.
    """
    model = recipe.model
    request = Request(model.source, "model", model.revision, model.allow_pickle, environ=environ)
    resolved = find_source(model.source).resolve(request)
    return resolved, read_model_config(resolved.config)


def resolve_sources(recipe: Recipe, variants: set[str], environ: Mapping[str, str]) -> PinnedSources:
    """Pin everything the given variants need."""
    resolved, shape = resolve_model(recipe, environ)
    datasets: dict[DatasetName, Resolved] = {}
    for variant in sorted(variants):
        data = recipe.quantization[variant].calibration
        name = dataset_name(data)
        if name not in datasets:
            request = Request(data.dataset, "dataset", data.revision, split=data.split, environ=environ)
            datasets[name] = find_source(data.dataset).resolve(request)
    return PinnedSources(resolved, shape, datasets)


def dataset_name(data: Calibration) -> DatasetName:
    """What must be pinned once however many variants use it."""
    return data.dataset, data.revision, data.split
