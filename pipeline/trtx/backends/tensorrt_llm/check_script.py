"""What travels with an engine: a script that knows what built it, and refuses other containers and GPUs."""

from __future__ import annotations

from trtx.render import TEMPLATES

CHECK_SCRIPT = "check_engine.py"


def read_check_script() -> str:
    """The text of the check; it needs the standard library alone, of the Python of any release's image."""
    return (TEMPLATES / "tensorrt_llm" / CHECK_SCRIPT).read_text(encoding="utf-8")
