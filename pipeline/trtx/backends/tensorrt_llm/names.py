"""Names of files that other parts of trtx look for. Imports nothing."""

from __future__ import annotations

# What an engine folder, or an options file, was made by and for: trtx.backends.tensorrt_llm.card.
CARD_NAME = "trtllm.json"
