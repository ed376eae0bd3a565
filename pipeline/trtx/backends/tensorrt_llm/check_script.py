"""The script that travels with an engine: what built it, and whether this container fits it."""

from __future__ import annotations

from trtx.render import TEMPLATES

CHECK_SCRIPT = "check_engine.py"


def read_check_script() -> str:
    """Its text; it needs Python's standard library alone and runs on the Python of every release's image."""
    return (TEMPLATES / "tensorrt_llm" / CHECK_SCRIPT).read_text(encoding="utf-8")
