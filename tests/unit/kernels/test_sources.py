from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from trtx.kernels.build import SOURCES
from trtx.kernels.sources import FOLDER, sources_digest


def digest_of_copy(folder: Path) -> str:
    return sources_digest.__wrapped__(str(folder))


def test_every_change_of_a_source_changes_the_digest_and_nothing_else_does(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    same = digest_of_copy(folder)
    assert same == sources_digest()
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "ops.pyc").write_bytes(b"code")
    assert digest_of_copy(folder) == same
    seen = {same}
    for path in (folder / "cpp" / "experts.cpp", folder / "cpp" / "simd.h", folder / "build.py"):
        path.write_text(path.read_text() + "\n")
        seen.add(digest_of_copy(folder))
    (folder / "cpp" / "simd.h").rename(folder / "cpp" / "vectors.h")
    seen.add(digest_of_copy(folder))
    assert len(seen) == 5


def test_every_file_that_is_compiled_is_a_source() -> None:
    assert {path.suffix for path in SOURCES.iterdir() if path.is_file()} == {".cpp", ".h"}


def test_the_control_plane_can_ask_without_torch_and_pydantic() -> None:
    script = (
        "import sys; from trtx.kernels.sources import sources_digest; sources_digest()\n"
        "sys.exit(bool({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
