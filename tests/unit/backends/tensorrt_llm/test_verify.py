"""`trtx verify`: what is damaged, and what does not run here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.engines import make_card as make_embedded_card
from support.trtllm_specs import make_spec
from support.trtllm_standins import GPU_NAME, activate, install
from support.trtllm_workshop import Workshop

from trtx.backends.tensorrt_llm.run_build import build
from trtx.backends.tensorrt_llm.run_package import Deployment, package
from trtx.backends.tensorrt_llm.spec import Ranks
from trtx.backends.verify import verify_folder
from trtx.cli.main import main
from trtx.errors import UsageProblem
from trtx.files import sha256_bytes, write_json
from trtx.runtime.card import Program

Enter = Callable[..., Workshop]
SERVED = Deployment("demo", "h100/base", None, 8000, ("compose",), {"engine": "e" * 64})


@pytest.fixture
def engine(open_workshop: Enter) -> Path:
    """An engine of two ranks, built in a container of 1.2.1."""
    shop = open_workshop("1.2.1")
    spec = make_spec("1.2.1", ranks=Ranks(tensor=2))
    step = shop.step(checkpoint=shop.checkpoint(spec))
    build(spec, step)
    return Path(step.output)


@pytest.fixture
def deployment(engine: Path, tmp_path: Path) -> Path:
    spec = make_spec("1.2.1", ranks=Ranks(tensor=2))
    step = Workshop(tmp_path / "package", None, tmp_path)
    step.folder.mkdir()
    made = step.step(engine=engine)
    package(spec, made, SERVED)
    return Path(made.output)


def test_an_engine_in_its_own_container_runs_here(engine: Path) -> None:
    verdict = verify_folder(engine)
    assert verdict.is_good
    assert (verdict.kind, verdict.backend) == ("engine", "tensorrt-llm")
    assert verdict.made_for == "TensorRT-LLM 1.2.1, 2 rank(s), compute capability 9.0"


@pytest.mark.parametrize(
    ("other", "misfit"),
    [
        ({"library": "1.2.0"}, "it is of TensorRT-LLM 1.2.1, and 1.2.0+standin is installed here"),
        (
            {"tensorrt": "10.9.0.34"},
            "it was built with TensorRT 10.14.1.48+standin, and 10.9.0.34+standin is installed",
        ),
        ({"gpus": 1}, "it needs 2 GPU(s), and 1 are visible here"),
        ({"sm": 80}, f"it was built for compute capability 9.0 ({GPU_NAME}), which {GPU_NAME} does not have"),
    ],
)
def test_a_container_that_an_engine_does_not_run_in_is_named(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any], misfit: str
) -> None:
    activate(install(tmp_path / "other", "1.2.1", **other), monkeypatch)
    (found,) = verify_folder(engine).misfits
    assert misfit in found


def test_the_name_of_the_gpu_counts_in_strict_mode_only(engine: Path) -> None:
    card = json.loads((engine / "trtllm.json").read_text())
    (engine / "trtllm.json").unlink()
    write_json(engine / "trtllm.json", {**card, "gpu": "NVIDIA H100 PCIe"})
    assert verify_folder(engine).is_good
    assert verify_folder(engine, strict_gpu=True).misfits == (
        f"it was built on NVIDIA H100 PCIe, and {GPU_NAME} is here",
    )


def test_an_engine_that_trtx_did_not_build_is_known_by_its_config(engine: Path) -> None:
    (engine / "trtllm.json").unlink()
    verdict = verify_folder(engine)
    assert (verdict.is_good, verdict.made_for) == (True, "TensorRT-LLM 1.2.1, 2 rank(s)")


def test_ranks_that_are_missing_are_damage(engine: Path) -> None:
    (engine / "rank1.engine").unlink()
    assert verify_folder(engine).damage == ("rank1.engine is missing, and there are 2 ranks",)


def test_every_file_of_a_deployment_is_compared(deployment: Path) -> None:
    assert verify_folder(deployment).is_good
    (deployment / "extra").write_text("x")
    (deployment / "engine/rank0.engine").unlink()
    readme = deployment / "README.md"
    readme.write_text(readme.read_text() + "x")
    assert verify_folder(deployment, files_only=True).damage == (
        "engine/rank0.engine is missing",
        "extra is not in SHA256SUMS",
        "README.md has other bytes",
        "rank0.engine is missing, and there are 2 ranks",
    )
    (deployment / "SHA256SUMS").unlink()
    assert "SHA256SUMS is missing" in verify_folder(deployment, files_only=True).damage


def test_the_verb_leaves_with_eight_and_prints_the_verdict(
    deployment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["verify", str(deployment), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    activate(install(tmp_path / "other", "1.2.1", sm=80), monkeypatch)
    assert main(["verify", str(deployment), "-o", "json"]) == 8
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["passed"], len(shown["misfits"])) == ("trtx.verify/v1", False, 1)
    assert main(["verify", str(deployment)]) == 8
    assert "error: it was built for compute capability 9.0" in capsys.readouterr().err
    assert main(["verify", str(deployment), "--files-only"]) == 0


def test_a_folder_of_something_else_is_a_usage_problem(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="neither a deployment nor an engine"):
        verify_folder(tmp_path)
    assert main(["verify", str(tmp_path / "nothing")]) == 2


def test_an_embedded_engine_is_compared_with_its_card(tmp_path: Path) -> None:
    code = b"compiled"
    program = Program(path="programs/step.pt2", sha256=sha256_bytes(code), constants=())
    card = make_embedded_card().model_copy(update={"programs": {"step": program}})
    write_json(tmp_path / "engine.json", card.model_dump(mode="json", by_alias=True))
    assert verify_folder(tmp_path, files_only=True).damage == ("programs/step.pt2 is missing",)
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs/step.pt2").write_bytes(code)
    verdict = verify_folder(tmp_path, files_only=True)
    assert (verdict.is_good, verdict.backend) == (True, "inductor")
    (tmp_path / "programs/step.pt2").write_bytes(b"other")
    assert verify_folder(tmp_path, files_only=True).damage == ("programs/step.pt2 has other bytes",)
    assert not replace(verdict, misfits=("no",)).is_good
