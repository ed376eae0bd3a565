"""Asks one engine, for comparing it with its rebuild; run in a fresh process, as two kernel libraries of one name
cannot be loaded into the same:

    python -m trtx.backends.inductor.answers ENGINE WEIGHTS CHECKPOINT RESULT [EARLIER]

The prompts are the beginnings of the held-out text that calibration left beside the checkpoint, so always the same. The
first engine generates, and every engine is asked for its logits of what that one said, in EARLIER.
"""

from __future__ import annotations

import math
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trtx.backends.inductor.check import (
    NEW_TOKENS,
    NUM_COMPARED,
    PROMPT_TOKENS,
    collect_logits,
    distance,
    generate_greedily,
    load_heldout,
    make_batching,
)
from trtx.backends.inductor.evidence import write_failure
from trtx.backends.rebuilt import Outputs
from trtx.errors import TrtxError
from trtx.processes import die_with_parent
from trtx.runtime.card import load_card
from trtx.runtime.program import Programs, load_programs


def ask(engine: Path, weights: Path, checkpoint: Path, earlier: Path | None) -> dict[str, Tensor]:
    """`tokens`, int64 [K, T], of which the last ones are generated, and the `logits` [K, T, V] after each of them."""
    card = load_card(engine)
    length = min(PROMPT_TOKENS + NEW_TOKENS, card.limits.max_seq_len)
    sequences = max(NUM_COMPARED, make_batching(card, length).sequences)
    programs = load_programs(engine, weights, 1 + sequences * math.ceil(length / card.kv_cache.tokens_per_block))
    tokens_KT = load_file(earlier)["tokens"] if earlier else make_sequences(programs, checkpoint, length)
    return {"tokens": tokens_KT.contiguous(), "logits": collect_logits(programs, tokens_KT).float().contiguous()}


def make_sequences(programs: Programs, checkpoint: Path, length: int) -> Tensor:
    """Prompts with what the engine says after them, up to `length` tokens, [K, T].

    Raises VerificationFailed when the checkpoint has no held-out text.
    """
    limits = programs.card.limits
    prompt = min(PROMPT_TOKENS, limits.max_num_tokens, length - 1)
    prompts = load_heldout(checkpoint).tokens[: min(NUM_COMPARED, limits.max_batch_size), :prompt]
    return generate_greedily(programs, prompts, length - prompts.shape[1])


def compare_answers(entry: dict[str, Tensor], rebuilt: dict[str, Tensor], bound: float) -> Outputs:
    """What differs between two engines' logits [K, T, V] of the same tokens, of which those after the prompt count as
    generated."""
    before, after = entry["logits"], rebuilt["logits"]
    sequences, tokens = entry["tokens"].shape
    generated = slice(min(PROMPT_TOKENS, tokens) - 1, None)
    mismatches = (before[:, generated].argmax(-1) != after[:, generated].argmax(-1)).sum()
    return Outputs(
        sequences=sequences,
        tokens=tokens,
        largest=float((before - after).abs().max()),
        distance=distance(after, before),
        bound=bound,
        mismatches=int(mismatches),
    )


def main(arguments: list[str]) -> int:
    """Write the answers to RESULT; an error with a known cause goes to a file beside it."""
    die_with_parent(signal.SIGKILL)
    engine, weights, checkpoint, result, *earlier = map(Path, arguments)
    try:
        with torch.inference_mode():
            answers = ask(engine, weights, checkpoint, earlier[0] if earlier else None)
    except TrtxError as error:
        write_failure(result.parent, error)
        return 1
    save_file(answers, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
