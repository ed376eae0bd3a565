"""Engines that are really compiled, each once: an unquantized one, and one in FP8 with an FP8 cache by ModelOpt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import make_llama
from support.engines import VOCAB_SIZE, write_tokenizer_folder
from support.modules import convert_quietly

from trtx.models.checkpoint import load_model_config
from trtx.models.formats import QuantFormat
from trtx.quant.modelopt import quantize_checkpoint
from trtx.runtime.card import Limits, Rank
from trtx.stages.base import StepContext
from trtx.stages.build import run
from trtx.stages.params import BuildParams

LIMITS = Limits(max_batch_size=16, max_num_tokens=256, max_seq_len=64)
MAX_LENGTH = 48


@dataclass(frozen=True)
class Built:
    """The folders of one engine's steps and the parameters of its build."""

    model: Path
    checkpoint: Path
    weights: Path
    engine: Path
    params: BuildParams
    summary: dict[str, Any]

    def context(self, output: Path, **inputs: Path) -> StepContext:
        """A context for running the build step again, into `output`."""
        found = {"model": self.model, "checkpoint": self.checkpoint, "weights": self.weights, **inputs}
        for folder in (output, output.with_suffix(".work")):
            folder.mkdir(parents=True)
        return StepContext(
            inputs=found, output=output, work=output.with_suffix(".work"), keys={"weights": "weights-key"}
        )


def make_model(folder: Path, seed: int) -> Path:
    """A random Llama with a tokenizer that has a token for every byte."""
    make_llama(
        folder,
        seed=seed,
        vocab_size=VOCAB_SIZE,
        num_attention_heads=4,
        hidden_size=64,
        intermediate_size=128,
        initializer_range=0.05,
    )
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A tokenizer that transformers reads, too."""
    write_tokenizer_folder(folder)
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))


def calibrate(model: Path, output: Path, quantization: QuantFormat) -> Path:
    """Run the calibration on random letters."""
    generator = torch.Generator().manual_seed(0)
    output.mkdir()
    for name, count in (("calibration", 8), ("heldout", 24)):
        letters = torch.randint(97, 123, (count, 120), generator=generator).tolist()
        rows = [json.dumps({"text": "".join(map(chr, row))}) + "\n" for row in letters]
        (model.parent / f"{name}.jsonl").write_text("".join(rows))
    quantize_checkpoint(
        model,
        model.parent,
        output,
        quantization,
        max_length=MAX_LENGTH,
        batch_size=8,
        seed=0,
        say=lambda text: None,
        progress=lambda done, total, unit: None,
    )
    return output


def build_engine(folder: Path, quantization: QuantFormat, model: Path | None = None) -> Built:
    """Everything from a model, a random Llama by default, to a checked engine, by the steps' own code."""
    model = model or make_model(folder / "model", seed=0)
    checkpoint = calibrate(model, folder / "checkpoint", quantization)
    convert_quietly(checkpoint, folder / "weights")
    params = BuildParams(
        model=load_model_config(model),
        quantization=quantization,
        dtype="float32",
        limits=LIMITS,
        tokens_per_block=8,
        rank=Rank(),
        arch="x86-64-v3",
    )
    built = Built(model, checkpoint, folder / "weights", folder / "engine", params, {})
    summary = run(params, built.context(built.engine))
    return Built(model, checkpoint, built.weights, built.engine, params, summary)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """float32, nothing quantized."""
    return build_engine(tmp_path_factory.mktemp("plain"), QuantFormat())


@pytest.fixture(scope="session")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """FP8 weights, activations and KV cache, by ModelOpt."""
    return build_engine(tmp_path_factory.mktemp("fp8"), QuantFormat(algorithm="fp8", kv_cache="fp8"))
