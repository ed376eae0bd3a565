"""The part of a deployment folder that is for Triton Inference Server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from support.triton_specs import parameters_of, parse_config

import trtx
from trtx.backends.inductor.triton import INPUTS, OUTPUTS, model_name
from trtx.backends.triton.config import Tensor, TritonModel, render_config
from trtx.errors import UsageProblem
from trtx.runtime.scheduler import SchedulerSettings
from trtx.serve.triton_tensors import NUMBERS

BASE = "nvcr.io/nvidia/tritonserver:25.08-py3"


class Deploy(Protocol):
    def __call__(self, folder: str = ..., emit: tuple[str, ...] = ..., **changes: Any) -> Path: ...


@pytest.fixture
def with_triton(deploy: Deploy) -> Path:
    return deploy(emit=("compose", "triton"), triton_base=BASE)


def test_the_repository_finds_the_engine_beside_it(with_triton: Path) -> None:
    folder = with_triton / "triton-server" / "models" / "llama"
    config = parse_config(folder)
    values = parameters_of(config)
    assert (folder / values["engine_dir"]).resolve() == (with_triton / "engine").resolve()
    assert values["trtx_version"] == trtx.__version__
    assert (values["kv_cache_bytes"], values["memory_fraction"]) == (str(2**20), "0.5")
    assert config.max_batch_size == 4
    assert config.model_transaction_policy.decoupled
    assert "from trtx.serve.triton import TritonFront" in (folder / "1" / "model.py").read_text()


def test_settings_of_the_recipe_reach_the_model(deploy: Deploy) -> None:
    settings = SchedulerSettings(policy="guaranteed-no-evict", chunked_prefill=False, prefix_reuse=False)
    package = deploy(emit=("triton",), triton_base=BASE, scheduler=settings, kv_cache_bytes=None)
    values = parameters_of(parse_config(package / "triton-server" / "models" / "llama"))
    assert values["kv_cache_bytes"] == ""
    chosen = (values["policy"], values["chunked_prefill"], values["prefix_reuse"])
    assert chosen == ("guaranteed-no-evict", "false", "false")


def test_the_container_is_built_of_files_that_are_there(with_triton: Path) -> None:
    text = (with_triton / "triton-server" / "Dockerfile").read_text()
    assert f"\nFROM {BASE}\n" in text
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in shlex.split(line)[:-1]]
    assert copied
    assert all((with_triton / name).exists() for name in copied)
    compose = yaml.safe_load((with_triton / "triton-server" / "compose.yaml").read_text())
    service = compose["services"]["triton"]
    assert service["build"] == {"context": "..", "dockerfile": "triton-server/Dockerfile"}
    assert service["image"].endswith("-triton")


@pytest.mark.parametrize("name", ["x\nRUN touch /pwned\nUSER root", 'a" && echo "', "$(touch pwned) ${HOME}"])
def test_no_name_breaks_out_of_the_files(deploy: Deploy, name: str) -> None:
    folder = deploy(emit=("compose", "triton"), triton_base=BASE, name=name) / "triton-server"
    lines = (folder / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    assert not any(line.startswith("RUN touch") for line in lines)
    assert yaml.safe_load((folder / "compose.yaml").read_text())["services"].keys() == {"triton"}
    (model,) = (folder / "models").iterdir()
    assert parse_config(model).name == model.name


def test_numpy_is_left_to_the_image_and_everything_else_is_pinned(with_triton: Path) -> None:
    pinned = (with_triton / "requirements.txt").read_text().splitlines()
    own = (with_triton / "triton-server" / "requirements.txt").read_text().splitlines()
    assert [line for line in pinned if not line.startswith("numpy==")] == own
    assert len(own) == len(pinned) - 1


def test_without_triton_there_is_none_of_it(deploy: Deploy) -> None:
    package = deploy()
    assert not (package / "triton-server").exists()
    assert "Triton" not in (package / "README.md").read_text()


def test_the_readme_says_how_to_start_it(with_triton: Path) -> None:
    text = (with_triton / "README.md").read_text()
    assert "docker build --file triton-server/Dockerfile" in text
    assert "/v2/models/llama/generate" in text


def test_an_image_that_is_not_pinned_is_refused(deploy: Deploy) -> None:
    with pytest.raises(UsageProblem, match="is not pinned") as caught:
        deploy(emit=("triton",), triton_base="nvcr.io/nvidia/tritonserver:latest")
    assert "package.triton_base" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "expected"), [("llama-3.1", "llama-3.1"), ("größe/1 b", "gr-e-1-b"), ("---", "model")]
)
def test_names_that_urls_cannot_hold_are_changed(name: str, expected: str) -> None:
    assert model_name(name) == expected


def test_every_number_that_is_read_is_an_input_of_the_model() -> None:
    declared = {tensor.name: tensor.data_type for tensor in INPUTS}
    kinds = {int: ("TYPE_INT32", "TYPE_UINT64"), float: ("TYPE_FP32",), bool: ("TYPE_BOOL",)}
    for name, (_, kind) in NUMBERS.items():
        assert declared[name] in kinds[kind], name
    assert all(tensor.optional for tensor in INPUTS)
    assert len({tensor.name for tensor in OUTPUTS}) == len(OUTPUTS)


def test_a_model_needs_a_name_that_can_be_a_folder() -> None:
    tensors = (Tensor("x", "TYPE_INT32"),)
    with pytest.raises(UsageProblem, match="cannot be the name of a Triton model"):
        render_config(TritonModel("../up", "python", tensors, tensors))
