"""The quickstart, applied once for real, and everything that must then be free."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.steps import corrupt

from trtx.cache.store import Store

RECIPE = "recipes/quickstart.yaml"
CELLS = ("cpu/fp32", "cpu/int8", "cpu/int4")


def test_every_step_of_the_quickstart_is_done_and_every_cell_packaged(quickstart) -> None:
    status = quickstart.json("status")
    assert {row["state"] for row in status["status"]} <= {"done", "cached"}
    for row in status["status"]:
        assert len(row["key"]) == 64
    packages = sorted(
        path.parent.parent.name for path in quickstart.folder.glob("out/quickstart/cpu/*/engine/engine.json")
    )
    assert packages
    for name in packages:
        assert (quickstart.folder / f"out/quickstart/cpu/{name}/benchmark/benchmark.json").is_file()


def test_a_second_apply_runs_no_step_starts_no_run_and_imports_no_torch(quickstart) -> None:
    runs = sorted((quickstart.folder / ".trtx" / "runs").iterdir())
    script = (
        "import sys; from trtx.cli.main import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'modelopt', 'numpy', 'huggingface_hub'} & set(sys.modules);"
        "heavy |= {'httpx', 'fsspec', 'docker', 'jinja2', 'rich', 'xml'} & set(sys.modules);"
        "heavy |= {'trtx.plan.execute', 'trtx.plan.lock_changes', 'trtx.plan.why', 'trtx.cli.why'} & set(sys.modules);"
        "assert not heavy, heavy; sys.exit(code)"
    )
    argv = [sys.executable, "-c", script, "apply", RECIPE, "-o", "json"]
    done = subprocess.run(
        argv, cwd=quickstart.folder, env=quickstart.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {row["state"] for row in answer["status"]} == {"cached"}
    assert all("same key as on" in row["reason"] for row in answer["status"])
    assert answer["run"] is None
    assert sorted((quickstart.folder / ".trtx" / "runs").iterdir()) == runs


def test_a_plan_of_a_finished_recipe_has_no_changes(quickstart) -> None:
    assert quickstart.trtx("plan", RECIPE, "--detailed-exitcode").returncode == 0


def test_a_larger_batch_replans_builds_but_no_calibration(quickstart, tmp_path: Path) -> None:
    recipe = yaml.safe_load((quickstart.folder / RECIPE).read_text())
    recipe["engine"]["limits"]["max_batch_size"] *= 2
    (quickstart.folder / "larger.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    done = quickstart.trtx("plan", "larger.yaml", "--detailed-exitcode")
    assert done.returncode == 5
    rows = quickstart.json("plan", "larger.yaml")["status"]
    again = {row["stage"] for row in rows if row["state"] != "cached"}
    assert again == {"build", "benchmark", "package"}
    assert "params.limits.max_batch_size" in next(row["reason"] for row in rows if row["stage"] == "build")


def test_every_pair_of_program_and_weights_has_evidence_that_it_answers_right(quickstart, shared_cache: Path) -> None:
    plan = quickstart.json("plan", RECIPE)
    store = Store(shared_cache)
    measured = [step for step in plan["steps"] if step["stage"] == "benchmark"]
    assert len(measured) == len(CELLS)
    for step in measured:
        check = json.loads((store.output(step["key"]) / "check.json").read_text())
        assert check["passed"] is True
        assert check["weights_key"] == step["inputs"]["weights"]["key"]


def test_a_flipped_byte_is_found_and_only_that_step_redone(quickstart, shared_cache: Path) -> None:
    step = next(step for step in quickstart.json("plan", RECIPE)["steps"] if step["id"] == "calibrate/fp32")
    corrupt(Store(shared_cache).output(step["key"]) / "trtx_calibration.json")
    row = next(row for row in quickstart.json("plan", RECIPE)["status"] if row["step"] == step["id"])
    assert (row["state"], "corrupt" in row["reason"]) == ("to run", True)
    rows = quickstart.json("apply", RECIPE)["status"]
    assert [row["step"] for row in rows if row["state"] == "done"] == [step["id"]]


def test_a_flipped_byte_in_weights_that_a_package_shares_redoes_both(quickstart, shared_cache: Path) -> None:
    step = next(step for step in quickstart.json("plan", RECIPE)["steps"] if step["id"] == "convert/cpu/fp32")
    corrupt(Store(shared_cache).output(step["key"]) / "rank0.safetensors")
    rows = quickstart.json("apply", RECIPE)["status"]
    assert [row["step"] for row in rows if row["state"] == "done"] == ["convert/cpu/fp32", "package/cpu/fp32"]
    assert sums_are_right(quickstart.folder / "out" / "quickstart" / "cpu" / "fp32")


def test_a_fine_tune_reuses_the_compiled_program_and_is_checked_by_the_benchmark(
    quickstart, project_on_shared_cache, shared_cache: Path, tmp_path: Path
) -> None:
    project, model = project_on_shared_cache, tmp_path / "fine-tune"
    plan = quickstart.json("plan", RECIPE)
    source = Store(shared_cache).output(next(step["key"] for step in plan["steps"] if step["id"] == "download/model"))
    shutil.copytree(source, model)
    change_weights(model)
    recipe = yaml.safe_load((quickstart.folder / RECIPE).read_text())
    recipe["model"] = {"source": f"file://{model}"}
    recipe["quantization"] = {"fp32": recipe["quantization"]["fp32"]}
    recipe["targets"]["cpu"].pop("quantization", None)
    (project.folder / "tuned.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    states = {row["step"]: row["state"] for row in project.json("apply", "tuned.yaml")["status"]}
    assert states["build/cpu/fp32"] == "cached"
    assert states["benchmark/cpu/fp32"] == "done"
    tuned = {step["id"]: step for step in project.json("plan", "tuned.yaml")["steps"]}
    store = Store(shared_cache)
    check = json.loads((store.output(tuned["benchmark/cpu/fp32"]["key"]) / "check.json").read_text())
    built = json.loads((store.output(tuned["build/cpu/fp32"]["key"]) / "check.json").read_text())
    assert check["passed"] is True
    assert check["weights_key"] == tuned["convert/cpu/fp32"]["key"] != built["weights_key"]


def change_weights(model: Path) -> None:
    """Scale one matrix a little, as a fine-tune would."""
    from safetensors.torch import load_file, save_file

    path = model / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.down_proj.weight"] *= 1.05
    path.chmod(0o644)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("cell", CELLS)
def test_a_package_verifies_with_sha256sum(quickstart, cell: str) -> None:
    assert sums_are_right(quickstart.folder / "out" / "quickstart" / cell)


def sums_are_right(folder: Path) -> bool:
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=False)
    return done.returncode == 0
