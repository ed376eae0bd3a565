"""Checkpoint → the engine's weight files, one per rank, beside the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trtx.backends.tokenizer_files import copy_tokenizer
from trtx.files import write_json
from trtx.models.checkpoint import Checkpoint, load_model_config
from trtx.models.config import DType, ModelConfig
from trtx.models.formats import QuantFormat
from trtx.models.layout import Layout, make_layout, make_shard
from trtx.models.weights_config import (
    TOKENIZER_FOLDER,
    WEIGHTS_CONFIG_NAME,
    RankFile,
    StoredTensor,
    WeightsConfig,
)
from trtx.models.weights_file import WeightsWriter
from trtx.quant.pack import pack_rank
from trtx.quant.read_format import read_quant_format

Progress = Callable[[int, int, str], None]


def convert(
    checkpoint: Path, output: Path, dtype: DType, tensor: int, pipeline: int, progress: Progress
) -> WeightsConfig:
    """Write config.json, rankN.safetensors and tokenizer/ into `output`.

    Tensors are streamed, so memory holds one of them at a time, whatever the size of the model.

    Raises UsageProblem when the model cannot be run, quantized or cut this way, VerificationFailed when the
    checkpoint is damaged.
    """
    model = load_model_config(checkpoint)
    with Checkpoint(checkpoint) as source:
        quantization = read_quant_format(source)
        num_ranks = tensor * pipeline
        layouts = [make_layout(model, quantization, dtype, tensor, pipeline, rank) for rank in range(num_ranks)]
        total, done = sum(len(layout.tensors) for layout in layouts), 0
        for rank, layout in enumerate(layouts):
            shard = make_shard(model, tensor, pipeline, rank)
            with WeightsWriter(output / rank_file(rank), layout.tensors) as writer:
                for name, value in pack_rank(source, model, quantization, dtype, shard):
                    writer.write(name, value)
                    done += 1
                    progress(done, total, "tensors")
    copy_tokenizer(checkpoint, output / TOKENIZER_FOLDER)
    config = make_weights_config(model, quantization, dtype, tensor, pipeline, layouts)
    write_json(output / WEIGHTS_CONFIG_NAME, config.model_dump(mode="json", by_alias=True))
    return config


def rank_file(rank: int) -> str:
    return f"rank{rank}.safetensors"


def make_weights_config(
    model: ModelConfig, quantization: QuantFormat, dtype: DType, tensor: int, pipeline: int, layouts: list[Layout]
) -> WeightsConfig:
    """The content of config.json for rank files with these layouts."""
    ranks = tuple(
        RankFile(
            file=rank_file(rank),
            layout_sha256=layout.sha256,
            tensors=tuple(StoredTensor(name=t.name, shape=t.shape, dtype=t.dtype) for t in layout.tensors),
        )
        for rank, layout in enumerate(layouts)
    )
    return WeightsConfig(
        model=model, quantization=quantization, dtype=dtype, tensor=tensor, pipeline=pipeline, ranks=ranks
    )
