"""The Python of the documents is one program each, which runs in a project with the quickstart."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.project import Project

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
    if BLOCK.search(path.read_text())
)


def test_the_python_api_is_documented_by_what_runs() -> None:
    assert "docs/python.md" in DOCUMENTS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_python_of_a_document_runs(document: str, quickstart: Project, tmp_path: Path) -> None:
    program = tmp_path / "document.py"
    # Blank lines keep the line numbers of the document.
    text = (ROOT / document).read_text()
    lines = [""] * len(text.splitlines())
    for block in BLOCK.finditer(text):
        first = text[: block.start(1)].count("\n")
        lines[first : first + block[1].count("\n")] = block[1].splitlines()
    program.write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=quickstart.folder,
        env=dict(quickstart.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
