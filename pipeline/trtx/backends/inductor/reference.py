"""What transformers makes of a model or a quantized checkpoint: the second opinion of the check.

Legend: K sequences, T tokens, V vocabulary; N output rows, C input columns of a linear, Z groups of columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from trtx.models.checkpoint import Checkpoint
from trtx.models.formats import ALGORITHMS, QuantFormat
from trtx.quant.read_format import read_quant_format

# Tensors that stand beside a quantized weight or a KV cache in a unified checkpoint.
SCALES = ("weight_scale", "input_scale", "pre_quant_scale", "k_scale", "v_scale")


class Reference:
    """A transformers model in float32 that is asked for logits."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()

    @torch.inference_mode()
    def logits(self, tokens_KT: Tensor) -> Tensor:
        """Logits, float32 [K, T, V]; one sequence at a time, for the sake of memory."""
        rows = [self._model(input_ids=row[None], use_cache=False).logits.float() for row in tokens_KT]
        return torch.cat(rows)


def load_model(folder: Path) -> Reference:
    """The unquantized model of a Hugging Face folder."""
    return Reference(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True))


def load_checkpoint(folder: Path) -> Reference:
    """The model of a unified checkpoint with its weights dequantized, which rounds weights and nothing else.

    The arithmetic here is written anew from the format's description, not shared with the engine's, so that an error in
    either shows.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with Checkpoint(folder) as checkpoint:
        weights = read_dequantized(checkpoint, read_quant_format(checkpoint))
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True, assign=True)
    # The rotary table is no parameter: it has to be made again on a real device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return Reference(model)


def read_dequantized(checkpoint: Checkpoint, quantization: QuantFormat) -> dict[str, Tensor]:
    """All weights of a checkpoint in float32, scales multiplied in."""
    weights = {}
    for name in checkpoint.names:
        module, _, part = name.rpartition(".")
        if part in SCALES:
            continue
        weight = checkpoint.read(name)
        if part == "weight" and f"{module}.weight_scale" in checkpoint:
            weight = _dequantize(weight, checkpoint.read(f"{module}.weight_scale"), quantization)
            if f"{module}.pre_quant_scale" in checkpoint:
                weight = weight * checkpoint.read(f"{module}.pre_quant_scale").float()
        weights[name] = weight.float()
    return weights


def _dequantize(weight: Tensor, scale: Tensor, quantization: QuantFormat) -> Tensor:
    group = ALGORITHMS[quantization.algorithm].group_size
    if group is None:
        return weight.float() * scale.float().reshape(-1, 1)
    signed = weight.to(torch.int16)
    low, high = signed % 16, signed // 16
    rows_NC = torch.empty(2 * weight.shape[0], weight.shape[1])
    rows_NC[0::2], rows_NC[1::2] = low - 16 * (low > 7), high - 16 * (high > 7)
    return rows_NC * scale.float().repeat_interleave(group, dim=1)
