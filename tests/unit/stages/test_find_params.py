"""Which class a step's parameters are of is decided by their backend."""

from __future__ import annotations

import pytest
from support.trtllm_specs import make_spec

from trtx.errors import UsageProblem
from trtx.stages.base import BACKEND_STAGES, load_stage
from trtx.stages.find_params import all_params, find_params, read_params
from trtx.stages.params import PARAMS, ConvertParams
from trtx.stages.params_trtllm import TRTLLM_PARAMS, TrtllmBuildParams, TrtllmConvertParams


def test_parameters_without_a_backend_are_the_embedded_ones() -> None:
    params = read_params("convert", {"dtype": "float32", "tensor": 1, "pipeline": 1})
    assert params == ConvertParams(dtype="float32", tensor=1, pipeline=1)


def test_parameters_of_a_backend_come_back_as_they_were() -> None:
    params = TrtllmBuildParams(spec=make_spec("1.2.1", algorithm="fp8"))
    assert read_params("build", params.model_dump(mode="json")) == params


@pytest.mark.parametrize(("stage", "backend"), [("build", "onnx"), ("download", "tensorrt-llm")])
def test_a_backend_that_is_not_there_is_a_usage_problem(stage: str, backend: str) -> None:
    with pytest.raises(UsageProblem, match="has no backend"):
        find_params(stage, {"backend": backend})


def test_every_class_has_a_module_that_runs_it() -> None:
    assert set(BACKEND_STAGES) == {f"tensorrt-llm/{stage}" for stage in TRTLLM_PARAMS}
    for name in BACKEND_STAGES:
        assert callable(load_stage(name).run)
    assert len(list(all_params())) == len(PARAMS) + len(TRTLLM_PARAMS)


def test_a_checkpoint_knows_nothing_of_gpus_and_limits() -> None:
    params = TrtllmConvertParams(spec=make_spec("1.2.1", converter="trtx").checkpoint)
    written = params.model_dump(mode="json")["spec"]
    assert not {"device", "sizes", "pool", "batching", "plugins"} & written.keys()
    assert written["container"] is None
    assert TrtllmConvertParams(spec=make_spec("1.2.1").checkpoint).spec.container is not None
