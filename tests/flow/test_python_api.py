"""`trtx.LLM` on models by every name they have, in a project with the quickstart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.project import Project

from trtx import LLM, SamplingParams
from trtx.errors import TrtxError, UsageProblem

GREEDY = SamplingParams(max_tokens=12, temperature=0)


@pytest.fixture
def here(quickstart: Project, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, as the folder that this process is in."""
    monkeypatch.chdir(quickstart.folder)
    monkeypatch.setenv("TRTX_CACHE_DIR", str(shared_cache))
    return quickstart.folder


def complete(llm: LLM, text: str = "The module") -> list[int]:
    return llm.generate(text, GREEDY)[0].outputs[0].token_ids


def test_a_cell_of_a_recipe_is_its_package(here: Path) -> None:
    with LLM("recipes/quickstart.yaml:cpu/fp32") as by_recipe, LLM("out/quickstart/cpu/fp32") as by_folder:
        assert complete(by_recipe) == complete(by_folder)


def test_a_recipe_with_several_engines_asks_which(here: Path) -> None:
    with pytest.raises(UsageProblem, match="has 3 engines") as refused:
        LLM("recipes/quickstart.yaml")
    assert "cpu/int8" in refused.value.why


def test_a_hugging_face_folder_is_built_once_and_gives_the_tokens_of_the_recipe(
    here: Path, quickstart: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (step,) = [s for s in quickstart.json("plan", "recipes/quickstart.yaml")["steps"] if s["id"] == "download/model"]
    model = tmp_path / "model"
    model.symlink_to(Path(quickstart.environ["TRTX_CACHE_DIR"]) / "entries" / step["key"][:2] / step["key"] / "output")
    limits = {"max_batch_size": 8, "max_num_tokens": 512, "max_seq_len": 256}
    with LLM(model, dtype="float32", **limits) as llm, LLM("out/quickstart/cpu/fp32") as by_recipe:
        assert complete(llm) == complete(by_recipe)
    said = capfd.readouterr().err
    assert "convert/here/variant done" in said
    # The program of the recipe, which depends on shapes and not on weights.
    assert "build/here/variant running" not in said
    with LLM(model, dtype="float32", **limits):
        assert "running" not in capfd.readouterr().err


def test_an_engine_that_is_another_than_was_asked_for_is_refused(here: Path) -> None:
    with pytest.raises(UsageProblem, match="has max_seq_len 256, not 512"):
        LLM("out/quickstart/cpu/fp32", max_seq_len=512)
    with pytest.raises(UsageProblem, match="has quantization int8_sq, not fp8"):
        LLM("out/quickstart/cpu/int8", quantization="fp8")


def test_a_build_that_fails_tells_why(here: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["NoSuchModel"], "model_type": "none"}))
    with pytest.raises(TrtxError, match="has no tokenizer") as refused:
        LLM(tmp_path)
    assert "save_pretrained" in refused.value.fix
    with pytest.raises(UsageProblem, match="is no model"):
        LLM(tmp_path / "nothing")
