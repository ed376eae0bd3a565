"""An engine is built once more on its GPU: with the same records it has the same kernels and the same answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.gpu_flow import RECIPE, trtx

# Its head is in bf16, so that products of both kinds are in its records.
STEP = "build/h200/fp8"


def key_of(folder: Path) -> str:
    plan = json.loads(trtx(folder, "plan", "recipe.yaml", "--until", "build", "-o", "json").stdout)
    return str(next(row["key"] for row in plan["status"] if row["step"] == STEP))


def choices_of(folder: Path) -> dict[str, Any]:
    """The choices in the manifest of the engine's entry."""
    key = key_of(folder)
    manifest = json.loads((folder / "cache" / "entries" / key[:2] / key / "manifest.json").read_bytes())
    choices: dict[str, Any] = manifest["summary"]["choices"]
    return choices


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rebuild")
    (folder / "recipe.yaml").write_text(RECIPE)
    done = trtx(folder, "apply", "recipe.yaml", "--until", "build")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def verified(applied: Path) -> dict[str, Any]:
    """What `trtx verify --rebuild` says of the engine."""
    done = trtx(applied, "verify", "recipe.yaml", "--rebuild", "--keep", "kept", "-o", "json")
    assert done.stdout, f"exit code {done.returncode}\n{done.stderr[-3000:]}"
    [engine] = json.loads(done.stdout)["engines"]
    found: dict[str, Any] = engine
    return found


def log_of(folder: Path) -> str:
    path = folder / "kept" / STEP / "rebuild.log"
    return path.read_text(errors="replace") if path.is_file() else f"there is no {path}"


def describe(folder: Path, engine: dict[str, Any]) -> str:
    """All that tells why a verdict is what it is."""
    lines = [f"{STEP}: {engine['verdict']} after {engine['seconds']} s; outputs {engine['outputs']}"]
    lines += [f"  {part}: {json.dumps(engine[part])[:1500]}" for part in ("files", "choices", "records", "error")]
    return "\n".join([*lines, log_of(folder)[-3000:]])


def test_a_rebuild_chooses_the_same(
    applied: Path, verified: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    evidence = describe(applied, verified)
    with capsys.disabled():
        print(f"\n{evidence}")
    assert verified["verdict"] in ("bit-identical", "same choices"), evidence
    assert verified["records"]["count"] > 10 and verified["records"]["different"] == [], evidence
    assert verified["choices"]["different"] == [], evidence
    assert verified["outputs"]["mismatches"] == 0, evidence


def test_a_rebuild_measures_nothing(applied: Path, verified: dict[str, Any]) -> None:
    log = log_of(applied)
    assert f"replayed {verified['records']['count']} records in " in log, log[-2000:]
    assert re.findall(r"measured (\d+)", log) in ([], ["0"]), log[-2000:]
    tuned = json.loads((applied / "kept" / STEP / "output" / "products.json").read_bytes())
    assert {one["time_us"] for one in tuned} == {None}


def test_what_was_chosen_comes_back_under_the_same_lock_when_the_cache_has_lost_it(
    applied: Path, verified: dict[str, Any]
) -> None:
    before = choices_of(applied)
    removed = trtx(applied, "cache", "rm", key_of(applied))
    assert removed.returncode == 0, removed.stderr
    done = trtx(applied, "apply", "recipe.yaml", "--until", "build")
    assert done.returncode == 0, done.stderr[-3000:]
    assert choices_of(applied) == before
    log = trtx(applied, "logs", STEP).stdout
    assert f"replayed {len(before['products'])} records in " in log, log[-2000:]
