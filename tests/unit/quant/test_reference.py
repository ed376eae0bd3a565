"""The reference of a check that is made on its device is the one that transformers loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from unit.quant.conftest import Export

from trtx.backends.inductor.dequantized import read_dequantized
from trtx.backends.inductor.reference import Reference, fill_model, load_checkpoint, load_model
from trtx.models.checkpoint import Checkpoint
from trtx.quant.read_format import read_quant_format

TOKENS = torch.arange(40).view(2, 20)


@pytest.mark.parametrize("algorithm", ["fp8", "int8_wo", "int4_awq", "nvfp4"])
def test_a_quantized_model_filled_on_its_device_gives_the_same_logits(
    export: Callable[..., Export], algorithm: str
) -> None:
    folder = export(algorithm, "auto").folder
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    with Checkpoint(folder) as checkpoint:
        model = fill_model(config, read_dequantized(checkpoint, read_quant_format(checkpoint), "cpu"), "cpu")
    assert model is not None
    found = Reference(model, "cpu").logits(TOKENS)
    torch.testing.assert_close(found, load_checkpoint(folder, 64).logits(TOKENS), rtol=0, atol=0)


def test_a_plain_model_filled_on_its_device_gives_the_same_logits(model: Path) -> None:
    with Checkpoint(model) as checkpoint:
        weights = [(name, checkpoint.read(name)) for name in checkpoint.names]
    filled = fill_model(AutoConfig.from_pretrained(model), weights, "cpu")
    assert filled is not None
    torch.testing.assert_close(
        Reference(filled, "cpu").logits(TOKENS), load_model(model, 64).logits(TOKENS), rtol=0, atol=0
    )
    assert fill_model(AutoConfig.from_pretrained(model), weights[1:], "cpu") is None
    cut = [(name, tensor[:1]) for name, tensor in weights]
    assert fill_model(AutoConfig.from_pretrained(model), cut, "cpu") is None
