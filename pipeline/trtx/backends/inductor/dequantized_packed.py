"""The weights of AutoAWQ's and GPTQ's packings in float32, for the second opinion of backends/inductor/dequantized.py.

Written anew from the packings' descriptions (quant/unpack.py has the table). Legend: N output rows, C input columns of
a linear, Z groups of columns, P codes in an int32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trtx.models.checkpoint import Checkpoint
from trtx.models.formats import QuantFormat

# Column of a word of AutoAWQ → its place in the word, counted from the lowest bits.
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def dequantize_packed(checkpoint: Checkpoint, module: str, quantization: QuantFormat) -> Tensor:
    """One weight, float32 [N, C], of a module with a `qweight`."""
    words, zero_words = checkpoint.read(f"{module}.qweight"), checkpoint.read(f"{module}.qzeros")
    scale_ZN = checkpoint.read(f"{module}.scales").float()
    if quantization.packing == "awq":
        codes_CN, zeros_ZN = _along_rows(words, AWQ_PLACES), _along_rows(zero_words, AWQ_PLACES)
        group_C = torch.arange(len(codes_CN)) // (len(codes_CN) // len(scale_ZN))
    else:
        # A word has as many zero points as codes.
        per_word = scale_ZN.shape[1] // zero_words.shape[1]
        places = tuple(range(per_word))
        codes_CN, zeros_ZN = _along_rows(words.t(), places).t(), _along_rows(zero_words, places)
        if quantization.packing == "gptq":
            zeros_ZN = (zeros_ZN + 1) % (1 << 32 // per_word)
        group_C = _groups(checkpoint, module, len(codes_CN), len(scale_ZN))
    return ((codes_CN - zeros_ZN[group_C]) * scale_ZN[group_C]).t()


def _groups(checkpoint: Checkpoint, module: str, num_columns: int, num_groups: int) -> Tensor:
    if f"{module}.g_idx" in checkpoint:
        return checkpoint.read(f"{module}.g_idx").long()
    return torch.arange(num_columns) // (num_columns // num_groups)


def _along_rows(words: Tensor, places: tuple[int, ...]) -> Tensor:
    """Codes [a, b · P] of int32 words [a, b]; column j of a word stands at places[j]."""
    bits = 32 // len(places)
    unsigned = words.long() % (1 << 32)
    parts = [unsigned // (1 << (bits * place)) % (1 << bits) for place in places]
    return torch.stack(parts, -1).flatten(1).float()
