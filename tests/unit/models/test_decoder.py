from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import make_llama, make_unified
from support.modules import flatten, make_eager_engine, run_in_pieces
from transformers import LlamaForCausalLM

from trtx.models.config import DType


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def reference(model: LlamaForCausalLM, tokens_BT: torch.Tensor) -> torch.Tensor:
    return model(tokens_BT).logits


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 0.01), ("bfloat16", 0.03)])
def test_half_precision_stays_near_transformers_in_float32(tmp_path: Path, dtype: DType, bound: float) -> None:
    model = make_llama(tmp_path / "model", initializer_range=0.05)
    programs = make_eager_engine(tmp_path, tmp_path / "model", dtype)
    found, expected = run_in_pieces(programs, tokens(2, 20), (8,), 4), reference(model, tokens(2, 20))
    assert found.dtype == torch.float32
    assert (found - expected).norm() < bound * expected.norm()


def test_an_fp8_cache_rounds_keys_and_values_only(tmp_path: Path) -> None:
    checkpoint = make_unified(tmp_path / "model", "none", kv_cache="fp8", initializer_range=0.05)
    model = LlamaForCausalLM.from_pretrained(checkpoint.folder)
    programs = make_eager_engine(tmp_path, checkpoint.folder)
    assert {pool.dtype for pool in programs._pools} == {torch.uint8}
    found, expected = run_in_pieces(programs, tokens(2, 20), (8,), 4), reference(model, tokens(2, 20))
    distance = (found - expected).norm() / expected.norm()
    assert 1e-5 < distance < 0.05


def test_padding_changes_no_answer_and_writes_to_the_null_block_only(tmp_path: Path) -> None:
    make_llama(tmp_path / "model")
    programs = make_eager_engine(tmp_path, tmp_path / "model", num_blocks=4)
    new, tables = list(tokens(2, 6)), torch.tensor([[1], [2]])
    whole = programs.step(*flatten(new, [0, 0], tables, 8), torch.tensor([5, 11]))
    before = [pool.clone() for pool in programs._pools]
    # A third sequence of padding: three tokens in the null block; tables are padded with the null block.
    padding, padded_tables = torch.zeros(3, dtype=torch.int64), torch.tensor([[1, 0], [2, 0], [0, 0]])
    padded = programs.step(*flatten([*new, padding], [0, 0, 0], padded_tables, 8), torch.tensor([5, 11]))
    torch.testing.assert_close(padded, whole)
    for pool, earlier in zip(programs._pools, before, strict=True):
        torch.testing.assert_close(pool[1:], earlier[1:])
        assert pool.isfinite().all()


def test_sequences_may_share_blocks_of_a_common_prefix(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model")
    programs = make_eager_engine(tmp_path, tmp_path / "model", num_blocks=6)
    prefix, ends = tokens(1, 8), torch.tensor([[3, 9], [5, 1]])
    programs.step(*flatten([prefix[0]], [0], torch.tensor([[1]]), 8), torch.tensor([7]))
    inputs = flatten(list(ends), [8, 8], torch.tensor([[1, 2], [1, 3]]), 8)
    found = programs.step(*inputs, torch.tensor([1, 3]))
    expected = reference(model, torch.cat([prefix.expand(2, -1), ends], 1))[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
