"""Starts a server of TensorRT-LLM: checks that the engine fits this container, then becomes the server.

    python start.py [more words for the server]

launch.json beside this file has `argv`, the words of the server, and `engine`, the folder that is checked first (null
for a checkpoint of the PyTorch backend). Exit code 6: the engine does not fit, with one sentence on stderr.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from check_engine import EXIT_ENVIRONMENT, Mismatch, check_folder

HERE = Path(__file__).resolve().parent


def prepare(settings: dict[str, Any], extra: list[str]) -> list[str]:
    """The words of the server. Raises Mismatch for an engine that does not fit, or a server that is not here."""
    if settings["engine"] is not None:
        check_folder(settings["engine"])
    argv = [*settings["argv"], *extra]
    program = shutil.which(argv[0])
    if program is None:
        raise Mismatch(f"this container has no {argv[0]}; use the image that the engine was packaged for")
    return [program, *argv[1:]]


def main() -> None:
    """Replace this process with the server, or say why not and exit."""
    try:
        argv = prepare(json.loads((HERE / "launch.json").read_text(encoding="utf-8")), sys.argv[1:])
    except Mismatch as mismatch:
        print(f"error: {mismatch}", file=sys.stderr)
        sys.exit(EXIT_ENVIRONMENT)
    os.execv(argv[0], argv)  # noqa: S606


if __name__ == "__main__":
    main()
