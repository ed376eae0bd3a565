"""Laws of the source tree that no single module can see."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
MAX_LINES = 400
CONTROL_PLANE = ("cli", "plan", "recipe", "cache", "hardware", "runners")
HEAVY = ("torch", "transformers", "modelopt", "safetensors", "tokenizers", "numpy", "fastapi", "uvicorn")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def python_files() -> list[Path]:
    folders = ("pipeline/trtx", "runners", "templates", "tests", "benchmarks")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def declared_requirements(project: dict[str, Any]) -> list[Requirement]:
    """Of the core and of every extra."""
    groups = (project["project"]["dependencies"], *project["project"]["optional-dependencies"].values())
    return [Requirement(text) for group in groups for text in group]


def test_imports_point_down_and_the_control_plane_is_light() -> None:
    answer = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports; exit(lint_imports(no_cache=True))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_importing_the_whole_control_plane_loads_nothing_heavy() -> None:
    script = f"""
import importlib, json, pkgutil, sys
import trtx
for name in {CONTROL_PLANE!r}:
    package = importlib.import_module("trtx." + name)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r}))))
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == []


def test_a_file_has_one_concern_and_at_most_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_every_package_folder_has_an_init_file() -> None:
    folders = {path.parent for path in python_files() if path.is_relative_to(ROOT / "pipeline" / "trtx")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_no_file_holds_a_promise_instead_of_code() -> None:
    unfinished = re.compile(r"\b(TODO|FIXME|XXX)\b|NotImplementedError")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in python_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if unfinished.search(line)
    ]
    assert found == []


def test_the_constraints_are_versions_that_the_project_accepts(project: dict[str, Any]) -> None:
    declared: dict[str, list[Requirement]] = {}
    for requirement in [*declared_requirements(project), *map(Requirement, project["dependency-groups"]["dev"])]:
        declared.setdefault(requirement.name.lower().replace("_", "-"), []).append(requirement)
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        (specifier,) = pin.specifier
        assert specifier.operator == "==", f"{line}: a constraint is one exact version"
        for requirement in declared.get(pin.name, []):
            assert requirement.specifier.contains(specifier.version), f"{line} contradicts {requirement}"


def test_torch_is_constrained_to_the_release_with_a_cpu_build() -> None:
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


def test_every_module_the_sources_import_is_declared(project: dict[str, Any]) -> None:
    """An import that only another package's dependencies satisfy breaks with that package's next release."""
    script = """
import json, sys
from grimp import build_graph
graph = build_graph("trtx", include_external_packages=True, cache_dir=None)
names = {module.partition(".")[0] for module in graph.modules}
print(json.dumps(sorted(names - {"trtx"} - sys.stdlib_module_names)))
"""
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(json.loads(answer.stdout))
    # Import names that differ from the distribution's; pydantic and fastapi keep parts of their API in the others.
    names = {
        "yaml": "pyyaml",
        "huggingface_hub": "huggingface-hub",
        "pydantic_core": "pydantic",
        "starlette": "fastapi",
    }
    names |= {"prometheus_client": "prometheus-client", "modelopt": "nvidia-modelopt"}
    declared = {requirement.name for requirement in declared_requirements(project)}
    undeclared = sorted(name for name in imported if names.get(name, name) not in declared)
    assert undeclared == []


def test_every_stage_architecture_and_backend_named_in_a_table_exists() -> None:
    script = """
from trtx.models.config import ARCHITECTURES
from trtx.stages.base import STAGES
import importlib.util, json
modules = [*STAGES.values(), *ARCHITECTURES.values()]
print(json.dumps([name for name in modules if importlib.util.find_spec(name) is None]))
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []


def test_the_package_is_importable_under_its_own_name_only() -> None:
    for name in ("pipeline", "runners", "templates", "recipes"):
        assert importlib.util.find_spec(name) is None, f"{name} is importable as a top-level name"
