"""What an engine counts. Imports no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import get_args

from trtx.runtime.request import FinishReason


@dataclass
class EngineStats:
    """Totals since the engine started. Written by the engine's thread; any other may read."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    prefill_steps: int = 0
    decode_steps: int = 0
    finished: Counter[FinishReason] = field(default_factory=lambda: Counter(dict.fromkeys(get_args(FinishReason), 0)))


@dataclass(frozen=True)
class Load:
    """How full an engine is at one moment."""

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks: int
