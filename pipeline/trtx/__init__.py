"""trtx: one YAML recipe into inference engines and deployment folders for a GPU fleet."""

from __future__ import annotations

# As type checkers know it, but without importing `typing`: everything of trtx imports this file.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from trtx.llm import LLM
    from trtx.runtime.params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]

# The Python API. Imported when first used, because most of trtx must start fast and without torch.
_LAZY = {"LLM": "trtx.llm", "SamplingParams": "trtx.runtime.params"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'trtx' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
