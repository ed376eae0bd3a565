"""Asks an engine and compares its answers; run in a fresh process:

    python -m trtx.backends.inductor.check ENGINE WEIGHTS CHECKPOINT MODEL RESULT WEIGHTS_KEY

Every sequence goes through the program in two or more chunks and token by token at its end, so that both ways and
the pool between them are asked. The text is the held-out windows on which calibration measured its perplexity. A model
that was quantized elsewhere is compared with transformers on its dequantized weights alone.

Legend: K sequences, T tokens, n tokens of each in one step, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from trtx.backends.inductor.evidence import (
    CALIBRATION_NAME,
    Evidence,
    make_tolerances,
    out_of_bounds,
    was_kept,
    write_failure,
)
from trtx.backends.inductor.module import load_eager
from trtx.backends.inductor.reference import Reference, load_checkpoint, load_model
from trtx.errors import TrtxError, UsageProblem, VerificationFailed
from trtx.files import write_json
from trtx.models.json_files import read_entry
from trtx.processes import die_with_parent
from trtx.runtime.card import EngineCard, load_card
from trtx.runtime.program import Programs, load_programs

HELDOUT_NAME = "trtx_heldout.safetensors"

# How much text the logits are compared on: full logits of a large vocabulary are large.
NUM_COMPARED, COMPARED_TOKENS = 4, 48
# Greedy generation: sequences, tokens of each prompt, tokens generated.
NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 12, 12
# Tokens at the end of each sequence that go through the program one by one.
DECODED_TOKENS = 8
# Logits held at a time, in numbers (256 MiB).
MAX_LOGITS = 1 << 26


@dataclass(frozen=True)
class Heldout:
    """Windows of token ids, int64 [num_windows, window + 1], and the perplexity that calibration measured on them."""

    tokens: Tensor
    perplexity: float


@dataclass(frozen=True)
class Batching:
    """How sequences are cut: `sequences` at a time, `chunk` tokens of each per step, the last `decoded` one by one."""

    sequences: int
    chunk: int
    decoded: int


def check(engine: Path, weights: Path, checkpoint: Path, model: Path, weights_key: str) -> Evidence:
    """Take all figures of an engine.

    Raises VerificationFailed when there is no held-out text or the artefacts do not belong together, UsageProblem
    when the engine is too short for the text.
    """
    card = load_card(engine)
    heldout = load_heldout(checkpoint)
    window = heldout.tokens.shape[1] - 1
    if window > card.limits.max_seq_len:
        raise UsageProblem(
            f"the engine cannot be checked: its max_seq_len of {card.limits.max_seq_len} is less than {window}",
            why=f"calibration measured the perplexity on windows of {window} tokens",
            fix="raise limits.max_seq_len or lower the calibration's max_length",
        )
    batching = make_batching(card, window)
    num_blocks = 1 + batching.sequences * math.ceil(window / card.kv_cache.tokens_per_block)
    programs = load_programs(engine, weights, num_blocks)
    tolerances = make_tolerances(card, kept=was_kept(checkpoint))
    compared = heldout.tokens[:NUM_COMPARED, : min(COMPARED_TOKENS, window)]
    answers = collect_logits(programs, compared)
    eager = collect_logits(load_eager(engine, weights, num_blocks), compared)
    perplexity = measure_perplexity(programs, heldout.tokens, batching)
    figures = {"compiled_vs_eager": distance(answers, eager)}
    for name in ("perplexity_vs_modelopt", "perplexity_vs_checkpoint"):
        if name in tolerances:
            figures[name] = abs(perplexity / heldout.perplexity - 1)
    limit, device = card.limits.max_seq_len, card.compiled_for.device
    reference = load_checkpoint(checkpoint, limit, device)
    figures["logits_vs_checkpoint"] = distance(answers, reference.logits(compared))
    if "greedy_mismatches" in tolerances:
        figures["greedy_mismatches"] = count_greedy_mismatches(programs, reference, heldout.tokens)
    del reference  # one float32 model at a time
    if "logits_vs_model" in tolerances:
        figures["logits_vs_model"] = distance(answers, load_model(model, limit, device).logits(compared))
    return Evidence(
        weights_key=weights_key,
        weights_layout_sha256=card.weights_layout_sha256,
        programs={name: code.sha256 for name, code in card.code.items()},
        perplexity=perplexity,
        reference_perplexity=heldout.perplexity,
        figures=figures,
        tolerances=tolerances,
        passed=not out_of_bounds(figures, tolerances),
    )


def load_heldout(checkpoint: Path) -> Heldout:
    """The windows and the figure that calibration left beside the checkpoint.

    Raises VerificationFailed when they are missing: an engine that cannot be checked must not be published.
    """
    path = checkpoint / HELDOUT_NAME
    if not path.is_file():
        raise VerificationFailed(
            f"the engine cannot be checked: {checkpoint} has no {HELDOUT_NAME}",
            why="its perplexity is compared on exactly the text that calibration measured",
            fix="run the calibrate step again",
        )
    figures = read_entry(checkpoint / CALIBRATION_NAME, "perplexity")
    return Heldout(load_file(path)["tokens"].long(), float(figures["after"]))


def make_batching(card: EngineCard, window: int) -> Batching:
    """At least two chunks and some decoding, within the engine's limits and a bounded amount of logits."""
    limits = card.limits
    rows = max(1, min(limits.max_num_tokens, MAX_LOGITS // card.model.vocab_size))
    decoded = min(DECODED_TOKENS, window // 4)
    chunk = min(rows, math.ceil((window - decoded) / 2))
    return Batching(sequences=max(1, min(limits.max_batch_size, rows // chunk)), chunk=chunk, decoded=decoded)


def iterate_logits(programs: Programs, tokens_KT: Tensor, batching: Batching) -> Iterator[tuple[int, Tensor]]:
    """Run K ≤ batching.sequences sequences; yields (first position, logits [K, n, V]) until T is reached."""
    count, length = tokens_KT.shape
    tables = make_tables(programs, count, length)
    prefilled = length - batching.decoded
    starts = [*range(0, prefilled, batching.chunk), *range(prefilled, length)]
    for start, stop in itertools.pairwise([*starts, length]):
        rows = torch.arange(count * (stop - start))
        yield start, run_step(programs, tokens_KT[:, start:stop], start, tables, rows).view(count, stop - start, -1)


def make_tables(programs: Programs, count: int, length: int) -> Tensor:
    """Block tables, int32 [K, W], for K sequences of `length` tokens."""
    width = math.ceil(length / programs.card.kv_cache.tokens_per_block)
    return torch.arange(1, 1 + count * width, dtype=torch.int32).view(count, width)


def run_step(programs: Programs, tokens_Kn: Tensor, start: int, tables_KW: Tensor, select_N: Tensor) -> Tensor:
    """Logits [N, V] of rows of the next n tokens of K sequences, which all have `start` tokens already."""
    count, length = tokens_Kn.shape
    size = programs.card.kv_cache.tokens_per_block
    positions = torch.arange(start, start + length)
    slots = tables_KW[:, positions // size].long() * size + positions % size
    return programs.step(
        tokens_Kn.flatten(),
        positions.repeat(count),
        slots.flatten(),
        tables_KW[:, : math.ceil((start + length) / size)],
        torch.arange(0, (count + 1) * length, length, dtype=torch.int32),
        torch.full((count,), start + length, dtype=torch.int32),
        select_N,
    )


def collect_logits(programs: Programs, tokens_KT: Tensor) -> Tensor:
    """All logits, [K, T, V], of a few short sequences, one batch after another."""
    batching = make_batching(programs.card, tokens_KT.shape[1])
    batches = torch.split(tokens_KT, batching.sequences)
    return torch.cat([torch.cat([part for _, part in iterate_logits(programs, b, batching)], 1) for b in batches])


def measure_perplexity(programs: Programs, windows: Tensor, batching: Batching) -> float:
    """exp of the mean negative log-likelihood of tokens 1…T of every window, given those before it."""
    total = 0.0
    for batch in torch.split(windows, batching.sequences):
        inputs, targets = batch[:, :-1], batch[:, 1:]
        for start, logits_KnV in iterate_logits(programs, inputs, batching):
            expected = targets[:, start : start + logits_KnV.shape[1]]
            total += F.cross_entropy(logits_KnV.flatten(0, 1), expected.flatten(), reduction="sum").item()
    return math.exp(total / windows[:, 1:].numel())


def count_greedy_mismatches(programs: Programs, reference: Reference, windows: Tensor) -> int:
    """Tokens of a greedy generation by the programs that are not the reference's choice after the same tokens."""
    limits = programs.card.limits
    prompts = windows[: min(NUM_PROMPTS, limits.max_batch_size), : min(PROMPT_TOKENS, limits.max_num_tokens)]
    answers = generate_greedily(programs, prompts, min(NEW_TOKENS, windows.shape[1] - 1 - prompts.shape[1]))
    expected = reference.logits(answers)[:, prompts.shape[1] - 1 : -1].argmax(-1)
    return int((expected != answers[:, prompts.shape[1] :]).sum())


def generate_greedily(programs: Programs, prompts_KT: Tensor, num_tokens: int) -> Tensor:
    """Prompts followed by `num_tokens` most likely tokens, [K, T + num_tokens]; the prompts go one by one."""
    count, length = prompts_KT.shape
    tables, last = make_tables(programs, count, length + num_tokens), torch.tensor([length - 1])
    first = [run_step(programs, prompts_KT[k : k + 1], 0, tables[k : k + 1], last) for k in range(count)]
    answers = torch.cat([prompts_KT, torch.cat(first).argmax(-1)[:, None]], 1)
    for position in range(length, length + num_tokens - 1):
        logits = run_step(programs, answers[:, -1:], position, tables, torch.arange(count))
        answers = torch.cat([answers, logits.argmax(-1)[:, None]], 1)
    return answers


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative distance of two sets of logits: the L2 norm of the difference by that of what was expected."""
    return float((found - expected).norm() / expected.norm())


def main(arguments: list[str]) -> int:
    """Check and write the evidence to RESULT; an error with a known cause goes to a file beside it."""
    die_with_parent(signal.SIGKILL)
    engine, weights, checkpoint, model, result = (Path(argument) for argument in arguments[:5])
    try:
        evidence = check(engine, weights, checkpoint, model, arguments[5])
    except TrtxError as error:
        write_failure(result.parent, error)
        return 1
    write_json(result, evidence.model_dump(mode="json", by_alias=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
