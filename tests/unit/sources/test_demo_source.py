"""demo:// sources: instant to plan, exact about what they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trtx.errors import UsageProblem, VerificationFailed
from trtx.models.config import read_model_config
from trtx.models.demo import config
from trtx.models.sources import demo
from trtx.models.sources.base import Request, find_source

MODEL, DATA = Request("demo://tiny-llama", "model"), Request("demo://docs", "dataset")


def test_the_model_is_known_before_it_is_trained() -> None:
    resolved = demo.resolve(MODEL)
    shape = read_model_config(resolved.config)
    assert (shape.hidden_size % 128, shape.intermediate_size % 128, shape.head_dim % 2) == (0, 0, 0)
    assert shape.tie_word_embeddings
    assert "torch" in resolved.toolchain


def test_planning_imports_nothing_heavy() -> None:
    program = (
        "import sys; from trtx.models.sources.base import Request, find_source as find;"
        "find('demo://tiny-llama').resolve(Request('demo://tiny-llama', 'model'));"
        "find('demo://docs').resolve(Request('demo://docs', 'dataset'));"
        "heavy = {'torch', 'numpy', 'tokenizers', 'safetensors', 'huggingface_hub', 'fsspec'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("change", [{"seed": 8}, {"steps": 401}, {"learning_rate": 0.021}, {"num_layers": 3}])
def test_every_parameter_of_the_training_is_in_the_identity(change: dict[str, float]) -> None:
    assert config.model_identity(config.DemoConfig(**change)) != config.model_identity(config.DemoConfig())  # type: ignore[arg-type]


def test_another_python_has_another_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = demo.resolve(DATA).identity
    monkeypatch.setattr(config.platform, "python_version", lambda: "3.99.0")
    assert demo.resolve(DATA).identity != planned
    with pytest.raises(VerificationFailed, match="is not what was planned") as caught:
        demo.fetch(DATA, planned, Path("unused"), lambda done, total, unit: None)
    assert "3.99.0" in caught.value.why


@pytest.mark.parametrize(
    ("request_", "fix"),
    [
        (Request("demo://tiny-lama", "model"), "'tiny-llama'"),
        (Request("demo://doc", "dataset"), "'docs'"),
        (Request("demo://docs", "dataset", split="valid"), "'validation'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(request_: Request, fix: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        demo.resolve(request_)
    assert fix in caught.value.fix


def test_a_word_without_a_scheme_is_no_source() -> None:
    with pytest.raises(UsageProblem, match="is not a source") as caught:
        find_source("owner/name")
    assert "hf://owner/name" in caught.value.fix
