"""trtx as a wheel without build tools, and the exact versions beside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import trtx
from trtx.backends import shipping
from trtx.errors import EnvironmentProblem
from trtx.plan import facts


def test_every_pin_is_the_installed_version_and_trtx_is_not_among_them() -> None:
    pins = shipping.pinned_requirements()
    assert "trtx" not in pins
    assert {name: metadata.version(name) for name in pins} == pins
    assert list(pins) == sorted(pins)


def test_the_pins_are_complete_so_that_nothing_is_resolved_when_they_are_installed() -> None:
    pins = shipping.pinned_requirements()
    # pydantic → pydantic-core, fastapi → starlette → anyio: required by what is required.
    assert {"pydantic-core", "starlette", "anyio", "torch", "tokenizers", "safetensors", "uvicorn"} <= pins.keys()


def test_what_only_quantizes_or_tests_is_not_shipped() -> None:
    assert (
        not {"transformers", "nvidia-modelopt", "pytest", "mypy", "ruff", "hatchling"}
        & shipping.pinned_requirements().keys()
    )


def test_a_server_can_be_imported_with_nothing_but_what_is_pinned() -> None:
    script = """
import importlib, pkgutil, sys
from importlib.metadata import packages_distributions
from packaging.utils import canonicalize_name
from trtx.backends.shipping import pinned_requirements

kept = {*pinned_requirements(), "trtx"}
absent = {name for name, owners in packages_distributions().items() if not kept & set(map(canonicalize_name, owners))}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

assert {"transformers", "modelopt", "pytest"} <= absent
sys.meta_path.insert(0, Absent())
for package in map(importlib.import_module, ("trtx.serve", "trtx.runtime", "trtx.cli")):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_a_missing_package_is_named_with_the_way_to_install_it() -> None:
    with pytest.raises(EnvironmentProblem, match="no-such-distribution is not installed") as caught:
        shipping.pinned_requirements(("no-such-distribution",))
    assert "trtx[engine]" in caught.value.fix


def test_a_torch_build_from_outside_the_package_index_brings_its_index() -> None:
    text = shipping.requirements_text({"numpy": "2.4.6", "torch": "2.13.0+cu130"})
    assert text.splitlines() == [
        "--extra-index-url https://download.pytorch.org/whl/cu130",
        "numpy==2.4.6",
        "torch==2.13.0+cu130",
    ]


def test_a_torch_release_needs_no_other_index() -> None:
    assert shipping.requirements_text({"torch": "2.13.0"}) == "torch==2.13.0\n"


def test_the_same_sources_give_the_same_wheel(tmp_path: Path) -> None:
    first, second = (shipping.write_wheel(tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_the_wheel_has_the_folders_behind_links_and_no_compiled_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(shipping.write_wheel(tmp_path)) as archive:
        names = set(archive.namelist())
    assert {"trtx/__init__.py", "trtx/runners/local.py", "trtx/templates/package/entrypoint.py"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_pip_installs_the_wheel_and_it_is_the_same_trtx(tmp_path: Path) -> None:
    wheel = shipping.write_wheel(tmp_path)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    script = f"import sys; sys.path.insert(0, {str(site)!r}); import trtx, importlib.metadata as m; "
    script += "print(trtx.__file__, m.version('trtx'), [e.value for e in m.distribution('trtx').entry_points])"
    answer = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == f"{site / 'trtx' / '__init__.py'} {trtx.__version__} ['trtx.cli.main:run']"


def test_a_wheel_written_by_an_installed_wheel_is_the_same_again(tmp_path: Path) -> None:
    """So a package made from an editable install equals one made from the release it became."""
    wheel = shipping.write_wheel(tmp_path / "first")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    script = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from pathlib import Path; from trtx.backends import shipping; "
    )
    script += f"shipping.write_wheel(Path({str(tmp_path / 'second')!r}))"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert (tmp_path / "second" / wheel.name).read_bytes() == wheel.read_bytes()


def test_a_change_of_any_shipped_file_changes_the_digest_that_a_package_is_keyed_by(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("plan/facts.py", "py.typed"):
        (tmp_path / "trtx" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "trtx" / name).write_text("one")
    (tmp_path / "templates" / "package").mkdir(parents=True)
    template = tmp_path / "templates" / "package" / "Dockerfile.j2"
    template.write_text("one")
    (tmp_path / "trtx" / "templates").symlink_to("../templates")
    monkeypatch.setattr(facts, "__file__", str(tmp_path / "trtx" / "plan" / "facts.py"))
    seen = {facts.own_code_digest()}
    for path in (template, tmp_path / "trtx" / "py.typed", tmp_path / "trtx" / "plan" / "facts.py"):
        path.write_text("two")
        seen.add(facts.own_code_digest())
    assert len(seen) == 4
