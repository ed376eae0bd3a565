"""What transformers makes of a model or a quantized checkpoint: the second opinion of the check.

Legend: K sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from trtx.backends.inductor.dequantized import read_dequantized
from trtx.models.checkpoint import Checkpoint
from trtx.quant.read_format import read_quant_format


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
    """The model of a unified checkpoint with its weights dequantized, which rounds weights and nothing else."""
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
