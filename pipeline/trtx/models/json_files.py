"""Reading the JSON files of a checkpoint folder. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trtx.errors import VerificationFailed


def read_json_file(path: Path) -> Any:
    """Content of a JSON file that must be there. Raises VerificationFailed when it is not, or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError) as error:
        raise VerificationFailed(
            f"{path.parent} is not a whole checkpoint",
            why=f"{path.name} is {'missing' if isinstance(error, FileNotFoundError) else 'not JSON'}",
            fix="fetch or export the checkpoint again",
        ) from error


def read_entry(path: Path, name: str) -> Any:
    """One entry of a JSON object in a file. Raises VerificationFailed when the file or the entry is missing."""
    content = read_json_file(path)
    if not isinstance(content, dict) or name not in content:
        raise VerificationFailed(
            f"{path.parent} is not a whole checkpoint",
            why=f"{path.name} has no '{name}'",
            fix="fetch or export the checkpoint again",
        )
    return content[name]
