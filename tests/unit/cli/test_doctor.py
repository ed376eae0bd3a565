"""`trtx doctor` says what is here and what is missing, and fails only when the quickstart cannot run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from trtx.cli.main import main
from trtx.hardware import host as host_module
from trtx.hardware import software


@pytest.fixture(autouse=True)
def no_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.setenv("TRTX_CACHE_DIR", str(tmp_path / "cache"))


def doctor(capsys: pytest.CaptureFixture[str], expected: int = 0) -> dict[str, Any]:
    assert main(["doctor", "-o", "json"]) == expected
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def features(answer: dict[str, Any]) -> dict[str, str]:
    return {row["feature"]: row["state"] for row in answer["features"]}


def test_this_machine_runs_the_quickstart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer = doctor(capsys)
    assert answer["quickstart"] is True
    assert answer["machine"]["num_cpus"] >= 1
    assert answer["machine"]["cache_dir"] == f"{tmp_path}/cache"
    assert features(answer)["build for gpu: cpu"] == "ok"
    assert features(answer)["build a package's image"] == "missing"
    assert features(answer)["runner of type slurm"] in ("ok", "missing")


def test_people_get_two_tables_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "this machine" in err
    assert "docker.sock: no such file or directory → install Docker, or set DOCKER_HOST" in err
    assert err.endswith("ok: the quickstart can run here\n")


def test_a_token_is_never_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert main(["doctor"]) == 0
    assert main(["doctor", "-o", "json"]) == 0
    out, err = capsys.readouterr()
    assert "hf_secret" not in out + err
    assert json.loads(out)["machine"]["hf_token"] is True


def test_without_a_compiler_the_quickstart_cannot_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["doctor"]) == 6
    err = capsys.readouterr().err
    assert "g++ is not installed → apt-get install g++" in err
    assert "error: the quickstart cannot run here: build for gpu: cpu" in err


def test_a_missing_or_wrong_package_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"torch": "2.11.0+cu130", "nvidia-modelopt": None}
    monkeypatch.setattr(software, "installed_version", lambda name: versions.get(name, "99999"))
    monkeypatch.setattr(software, "requirement_of", lambda name: ">=2.13,<2.14" if name == "torch" else "")
    answer = doctor(capsys, expected=6)
    details = {row["feature"]: row["detail"] for row in answer["features"]}
    assert details["calibrate (all algorithms)"] == (
        "torch is 2.11.0+cu130, and trtx needs >=2.13,<2.14; nvidia-modelopt is not installed"
        " → pip install 'trtx[engine]'"
    )


def test_an_old_processor_builds_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "read_cpuinfo", lambda path: ("Old CPU", frozenset({"sse"})))
    answer = doctor(capsys, expected=6)
    assert features(answer)["build for gpu: cpu"] == "missing"
    assert answer["machine"]["instruction_set"] is None


def test_a_machine_without_avx512_still_runs_the_quickstart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtx.hardware.gpus import V3_FLAGS

    monkeypatch.setattr(host_module, "read_cpuinfo", lambda path: ("Laptop", V3_FLAGS))
    answer = doctor(capsys)
    assert features(answer)["build for gpu: cpu-avx512"] == "missing"


def test_gpus_are_listed_by_the_catalogues_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-1, NVIDIA L40S, 8.9, 46068, 580.65.06'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert main(["doctor"]) == 0
    assert "0: NVIDIA L40S (l40s-48gb)" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert features(doctor(capsys, expected=6))["cache"] == "missing"


def test_a_full_disk_is_found(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtx.files.free_bytes", lambda path: 1 << 20)
    answer = doctor(capsys, expected=6)
    assert "only 1.0 MiB are free" in next(r["detail"] for r in answer["features"] if r["feature"] == "cache")


def test_the_interpreters_of_the_sites_runners_are_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runners = f"good: {{type: slurm, python: {sys.executable}}}, bad: {{type: slurm, python: /no/such/python}}"
    (tmp_path / "config.yaml").write_text(f"runners: {{{runners}}}\n")
    monkeypatch.setenv("TRTX_CONFIG", str(tmp_path / "config.yaml"))
    answer = doctor(capsys)
    rows = {row["feature"]: row for row in answer["features"]}
    assert rows["runner good of this site"]["state"] == "ok"
    assert rows["runner bad of this site"]["state"] == "missing"
    assert (
        "there is no interpreter /no/such/python → set runners.bad.python"
        in (rows["runner bad of this site"]["detail"])
    )
    (tmp_path / "config.yaml").write_text("runners: 3\n")
    rows = {row["feature"]: row for row in doctor(capsys)["features"]}
    assert rows["the site's runners"]["state"] == "missing"
