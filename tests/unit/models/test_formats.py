from __future__ import annotations

import typing

import pytest

from trtx.models.config import DType
from trtx.models.formats import (
    ALGORITHMS,
    DTYPE_LOGIT_TOLERANCE,
    DTYPE_PERPLEXITY_TOLERANCE,
    KV_CACHE_LOGIT_TOLERANCE,
    KV_CACHE_PERPLEXITY_TOLERANCE,
    NOT_CALIBRATED_FOR_EXPERTS,
    NOT_FOR_EXPERTS,
    Algorithm,
    KvCacheFormat,
    is_excluded,
)
from trtx.quant.experts import EXPERTS
from trtx.quant.linear import LINEARS


@pytest.mark.parametrize(
    "pattern", ["lm_head", "*head", "down_proj", "mlp.*", "model.layers.0", "model.layers.0*", "*"]
)
def test_a_pattern_may_name_a_module_its_tail_or_what_is_around_it(pattern: str) -> None:
    names = ["lm_head", "model.layers.0.mlp.down_proj"]
    assert any(is_excluded(name, [pattern]) for name in names)


@pytest.mark.parametrize("pattern", ["down", "layers.1", "head", "proj", "model.layers.0.self_attn*"])
def test_a_pattern_never_matches_a_part_of_a_word(pattern: str) -> None:
    assert not is_excluded("model.layers.0.mlp.down_proj", [pattern])
    assert not is_excluded("lm_head", [pattern])


def test_every_format_has_facts_a_module_and_tolerances() -> None:
    assert set(typing.get_args(Algorithm)) == set(ALGORITHMS) == set(LINEARS)
    assert set(EXPERTS) == set(ALGORITHMS) - set(NOT_FOR_EXPERTS)
    assert set(NOT_CALIBRATED_FOR_EXPERTS) < set(EXPERTS)
    assert set(typing.get_args(DType)) == set(DTYPE_LOGIT_TOLERANCE) == set(DTYPE_PERPLEXITY_TOLERANCE)
    assert set(typing.get_args(KvCacheFormat)) == set(KV_CACHE_LOGIT_TOLERANCE) == set(KV_CACHE_PERPLEXITY_TOLERANCE)
