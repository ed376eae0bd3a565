"""Texts as tokens: batches to observe activations on. Shape suffixes: S tokens of all texts, B windows, T tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trtx.errors import VerificationFailed


def read_rows(path: Path) -> list[str]:
    """The texts of a .jsonl file the dataset step wrote.

    Raises VerificationFailed when it is missing or damaged.
    """
    try:
        return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerificationFailed(
            f"{path} is not a file of texts", why=str(error), fix="run the dataset step"
        ) from error


def encode_rows(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, special tokens included; the tokenizer is not told of the model's length."""
    return [tokenizer(text, verbose=False)["input_ids"] for text in texts]


def make_batches(rows: Sequence[Sequence[int]], max_length: int, batch_size: int) -> list[Tensor]:
    """Rows cut to `max_length` and laid end to end, in batches [B, T] int64 with T = max_length; the rest comes last.

    Nothing is padded: a padding token's activations would be observed like a real one's.
    """
    line_S = torch.tensor([token for row in rows for token in row[:max_length]], dtype=torch.int64)
    whole = len(line_S) // max_length * max_length
    windows_BT = line_S[:whole].view(-1, max_length)
    batches = [windows_BT[start : start + batch_size] for start in range(0, len(windows_BT), batch_size)]
    return batches if whole == len(line_S) else [*batches, line_S[whole:].view(1, -1)]
