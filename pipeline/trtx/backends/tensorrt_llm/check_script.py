"""What travels with an engine: a script that knows what built it, and one that starts a server only where it fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trtx.files import write_json, write_text
from trtx.render import TEMPLATES

CHECK_SCRIPT = "check_engine.py"
START_SCRIPT = "start.py"
LAUNCH_NAME = "launch.json"


def read_check_script() -> str:
    """The text of the check; it needs the standard library alone, of the Python of any release's image."""
    return (TEMPLATES / "tensorrt_llm" / CHECK_SCRIPT).read_text(encoding="utf-8")


def write_start(folder: Path, argv: Sequence[str], engine: str | None) -> None:
    """Write an entrypoint into `folder`: start.py, check_engine.py and launch.json.

    `argv` are the words of the server; `engine` is its folder as the container sees it, None where there is nothing
    to check. Run by: python3 start.py
    """
    write_text(folder / CHECK_SCRIPT, read_check_script())
    write_text(folder / START_SCRIPT, (TEMPLATES / "tensorrt_llm" / START_SCRIPT).read_text(encoding="utf-8"))
    write_json(folder / LAUNCH_NAME, {"argv": list(argv), "engine": engine})
