"""What transformers makes of a model or a quantized checkpoint: the second opinion of the check.

Legend: K sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from trtx.backends.inductor.dequantized import read_dequantized
from trtx.errors import VerificationFailed
from trtx.models.checkpoint import Checkpoint
from trtx.models.config import read_model_config, uses_long_factors
from trtx.quant.read_format import read_quant_format
from trtx.runtime.card import Device

# The plain form: transformers' fused one leaves out the caps on scores of Gemma 2.
ATTENTION = "eager"


class Reference:
    """A transformers model in float32 that is asked for logits."""

    def __init__(self, model: Any, device: Device) -> None:
        self._model = model.eval().to(device)
        self._device = device

    @torch.inference_mode()
    def logits(self, tokens_KT: Tensor) -> Tensor:
        """Logits, float32 [K, T, V]; one sequence at a time, for the sake of memory."""
        tokens_KT = tokens_KT.to(self._device)
        rows = [self._model(input_ids=row[None], use_cache=False).logits.float().cpu() for row in tokens_KT]
        return torch.cat(rows)


def load_model(folder: Path, max_seq_len: int, device: Device = "cpu") -> Reference:
    """The unquantized model of a Hugging Face folder, as an engine for `max_seq_len` tokens computes it."""
    if device != "cpu" and any(folder.glob("*.safetensors")):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with Checkpoint(folder) as checkpoint:
            weights = ((name, checkpoint.read(name)) for name in checkpoint.names)
            if (filled := fill_model(config, weights, device)) is not None:
                return Reference(_like_engine(filled, max_seq_len), device)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, attn_implementation=ATTENTION
    )
    return Reference(_like_engine(model, max_seq_len), device)


def load_checkpoint(folder: Path, max_seq_len: int, device: Device = "cpu") -> Reference:
    """The model of a quantized checkpoint with its weights dequantized, which rounds weights and nothing else.

    Raises VerificationFailed when it has not all of the model's weights.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with Checkpoint(folder) as checkpoint:
        quantization = read_quant_format(checkpoint)
        if device != "cpu":
            found = read_dequantized(checkpoint, quantization, device)
            if (filled := fill_model(config, found, device)) is not None:
                return Reference(_like_engine(filled, max_seq_len), device)
        weights = dict(read_dequantized(checkpoint, quantization))
    # Auto classes want a folder. The model's own class knows how its checkpoints name what, experts and tied heads too.
    kind = getattr(transformers, config.architectures[0])
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=torch.float32,
        attn_implementation=ATTENTION,
        output_loading_info=True,
    )
    if missing := sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"])):
        raise VerificationFailed(
            f"the checkpoint {folder} has not all weights that transformers wants",
            why=f"{missing[0]} is missing or of another shape",
            fix="export the checkpoint again",
        )
    return Reference(_like_engine(model, max_seq_len), device)


def fill_model(config: Any, weights: Iterable[tuple[str, Tensor]], device: Device) -> Any | None:
    """A float32 model that is made on a device and gets its weights there, one by one; weights it has not are ignored.

    So a large model takes no memory of the host and no time of its processors. None when some of its weights do not
    come under its own names and shapes: transformers knows what else they may be called.
    """
    kind = getattr(transformers, config.architectures[0])
    with torch.device(device):
        model = kind._from_config(copy.deepcopy(config), dtype=torch.float32, attn_implementation=ATTENTION)
    empty = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights:
            if name in empty and empty[name].shape == weight.shape:
                empty.pop(name).copy_(weight)
    return None if empty else model


def _like_engine(model: Any, max_seq_len: int) -> Any:
    """Give a longrope the factors that the engine takes for all sequences, whatever the length of this one."""
    shape = read_model_config(model.config.to_dict())
    if uses_long_factors(shape.rope_scaling, max_seq_len):
        rope = model.model.rotary_emb
        beyond = int(model.config.rope_parameters["original_max_position_embeddings"]) + 1
        rope.original_inv_freq, _ = ROPE_INIT_FUNCTIONS["longrope"](model.config, None, seq_len=beyond)
    return model
