"""Perplexity of the demo model in every number format, beside the figure that ModelOpt measured of the same numbers.

Both see the same text, and in bfloat16 ModelOpt computes in bfloat16, too. Two bfloat16 programs that add up in another
order are not equal, and mxfp4 makes much of it (models/formats.py has figures): the perplexity of 16,384 tokens says no
more than half a percent about it, whoever computes. So its row in bfloat16 is taken on eight times as many.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from runtime_bench import Bench, Figure
from runtime_engines import TOKENS_PER_BLOCK, Kind

from trtx.backends.inductor.check import load_heldout, make_batching, measure_perplexity
from trtx.models.formats import READ_ONLY, SIMULATED_ON_CPU, Algorithm
from trtx.runtime.card import load_card
from trtx.runtime.program import load_programs

# What ModelOpt has, each alone, and formats of the KV cache.
ALGORITHMS = [algorithm for algorithm in get_args(Algorithm) if algorithm not in READ_ONLY]
WITH_CACHES = (("none", "fp8"), ("none", "int8"), ("fp8", "fp8"), ("int8_sq", "int8"))
LONG = 131072
FORMATS = [
    Kind("demo", algorithm, dtype, kv_cache, heldout=LONG if (algorithm, dtype) == ("mxfp4", "bfloat16") else 16384)
    for dtype in ("float32", "bfloat16")
    for algorithm, kv_cache in (*((algorithm, "auto") for algorithm in ALGORITHMS), *WITH_CACHES)
]
QUICK_FORMATS = [Kind("demo", algorithm, "float32") for algorithm in ("none", "int8_sq", "int4_awq")]


def measure_formats(bench: Bench) -> list[Figure]:
    """Through the compiled program: most tokens in chunks of prompts, the last of every sequence one by one."""
    torch.set_num_threads(bench.threads)
    return [_measure(bench, kind) for kind in (QUICK_FORMATS if bench.quick else FORMATS)]


def _measure(bench: Bench, kind: Kind) -> Figure:
    built = bench.built[kind]
    heldout = load_heldout(built.checkpoint)
    window = heldout.tokens.shape[1] - 1
    batching = make_batching(load_card(built.engine), window)
    num_blocks = 1 + batching.sequences * math.ceil(window / TOKENS_PER_BLOCK)
    programs = load_programs(built.engine, built.weights, num_blocks)
    perplexity = measure_perplexity(programs, heldout.tokens, batching)
    away = 100 * abs(perplexity / heldout.perplexity - 1)
    note = f"{perplexity:.4f}, ModelOpt {heldout.perplexity:.4f}"
    note += f", {heldout.tokens[:, 1:].numel():,} tokens"
    note += ", simulated on CPU" if kind.algorithm in SIMULATED_ON_CPU else ""
    name = f"{kind.dtype} {kind.algorithm}" + ("" if kind.kv_cache == "auto" else f", {kind.kv_cache} KV cache")
    return Figure(f"perplexity of {name} from ModelOpt's", away, "%", at_most=0.3, note=note)
