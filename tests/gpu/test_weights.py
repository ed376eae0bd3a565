"""Weights on their way from a file to the GPU, by many threads."""

from __future__ import annotations

import pytest
import torch

from trtx.runtime.cuda_load import PIECE_BYTES, READERS, copy_weights


@pytest.mark.parametrize("is_inference", [False, True])
def test_every_byte_arrives_whatever_mode_torch_is_in(is_inference: bool) -> None:
    with torch.inference_mode(is_inference):
        mapped = {
            "large": torch.randint(0, 256, (PIECE_BYTES + 12345,), dtype=torch.uint8),
            "matrix": torch.randn(300, 70).bfloat16(),
            "scalar": torch.tensor(0.5),
        }
        moved = copy_weights(mapped)
    assert all(torch.equal(moved[name].cpu(), tensor) for name, tensor in mapped.items())


@pytest.mark.timeout(60)
def test_pieces_that_cannot_be_read_end_the_load() -> None:
    unreadable = torch.empty((READERS + 3) * PIECE_BYTES, dtype=torch.uint8, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        copy_weights({"weight": unreadable})
