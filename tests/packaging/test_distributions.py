"""What the wheel and the sdist hold."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import trtx

ROOT = Path(__file__).parents[2]
# Root folder of the repository → where it lies in the wheel.
PLACES = {"pipeline/trtx": "trtx", "runners": "trtx/runners", "templates": "trtx/templates", "recipes": "trtx/recipes"}
LINKS = ("runners", "templates", "recipes")


def tracked(*folders: str) -> list[str]:
    """Files of this tree that git knows or would take, by path from the root; links are left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *folders]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted({name for name in names if name and (ROOT / name).is_file() and not (ROOT / name).is_symlink()})


def expected_members() -> set[str]:
    return {f"{place}/{Path(name).relative_to(folder)}" for folder, place in PLACES.items() for name in tracked(folder)}


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_runner_template_and_recipe_and_nothing_else(wheel: Path) -> None:
    inside = {name for name in members(wheel) if not name.startswith(f"trtx-{trtx.__version__}.dist-info/")}
    assert inside == expected_members()


def test_trtx_is_the_only_import_name(wheel: Path) -> None:
    top_level = {name.partition("/")[0] for name in members(wheel)}
    assert top_level == {"trtx", f"trtx-{trtx.__version__}.dist-info"}


def test_the_wheel_holds_no_links(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        kinds = {info.filename: (info.external_attr >> 16) & 0o170000 for info in archive.infolist()}
    assert {name: kind for name, kind in kinds.items() if kind not in (0, 0o100000)} == {}


def test_the_wheel_names_its_command_licence_and_pinned_torch(wheel: Path) -> None:
    info = f"trtx-{trtx.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        assert b"Apache License" in archive.read(f"{info}/licenses/LICENSE")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "trtx = trtx.cli.main:run" in entry_points
    required = metadata.get_all("Requires-Dist") or []
    assert any(line.startswith("torch") and "extra == 'engine'" in line for line in required)
    assert not any(line.startswith("torch") and "extra" not in line for line in required)


def test_the_sdist_holds_sources_tests_and_documents_but_no_links(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {info.name.partition("/")[2]: info for info in archive.getmembers()}
    assert not [name for name, info in found.items() if info.issym() or info.islnk()]
    folders = ("pipeline/trtx", "runners", "templates", "recipes", "tests", "benchmarks")
    single = (
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Makefile",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
    )
    wanted = set(tracked(*folders)) | {name for name in single if (ROOT / name).exists()}
    assert wanted - set(found) == set()


@pytest.mark.parametrize("link", LINKS)
def test_the_sdist_leaves_the_links_of_the_source_tree_out(unpacked_sdist: Path, link: str) -> None:
    assert not (unpacked_sdist / "pipeline" / "trtx" / link).exists()
    assert (unpacked_sdist / link).is_dir()


def test_the_unpacked_sdist_builds_the_same_wheel(wheel: Path, wheel_from_sdist: Path) -> None:
    with zipfile.ZipFile(wheel) as direct, zipfile.ZipFile(wheel_from_sdist) as rebuilt:
        assert direct.namelist() == rebuilt.namelist()
        assert [name for name in direct.namelist() if direct.read(name) != rebuilt.read(name)] == []


@pytest.mark.parametrize("link", LINKS)
def test_the_links_of_the_source_tree_are_committed_and_relative(link: str) -> None:
    path = ROOT / "pipeline" / "trtx" / link
    assert path.is_symlink()
    assert path.readlink() == Path("../..") / link
    listed = subprocess.run(
        ["git", "ls-files", "--stage", "--", f"pipeline/trtx/{link}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert listed.startswith("120000 "), f"{link} is committed as a link"


def test_the_wheel_works_where_there_is_no_source_tree(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")  # noqa: S202
    script = "import trtx, trtx.runners, trtx.render as r; print(trtx.__file__); r.render('package/compose.yaml.j2')"
    answer = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(tmp_path / 'site'), *sys.path]!r}; {script}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout.strip() == str(tmp_path / "site" / "trtx" / "__init__.py")
    assert "UndefinedError" in answer.stderr, "the template is there, only its values are missing"
