"""The data set of one load for trtllm-bench: JSON lines of prompts as token ids."""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from pathlib import Path

from trtx.files import read_json, write_text


def write_dataset(
    path: Path,
    *,
    vocab_size: int,
    special: Collection[int],
    input_tokens: int,
    output_tokens: int,
    count: int,
    seed: str,
) -> None:
    """Write `count` requests of random ordinary tokens; the same for the same seed.

    Keys: tensorrt_llm/bench/utils/data.py of 1.3.0rc3. Token ids stand under `logits`, the name of 0.12 that later
    releases read beside `input_ids`.
    """
    ordinary = [token for token in range(vocab_size) if token not in special]
    draw = random.Random(seed)
    lines = (
        json.dumps({"task_id": index, "logits": draw.choices(ordinary, k=input_tokens), "output_tokens": output_tokens})
        for index in range(count)
    )
    write_text(path, "".join(f"{line}\n" for line in lines))


def special_tokens(tokenizer: Path) -> frozenset[int]:
    """Ids that mean something to the model beside text, by the folder's tokenizer.json; none where there is no such."""
    file = tokenizer / "tokenizer.json"
    if not file.is_file():
        return frozenset()
    return frozenset(token["id"] for token in read_json(file).get("added_tokens", ()))
