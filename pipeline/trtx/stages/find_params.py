"""Which class a step's parameters are of: the stage's, and for another backend than the embedded one that backend's.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trtx.errors import UsageProblem
from trtx.stages.params import PARAMS, Params


def find_params(stage: str, params: Mapping[str, Any]) -> type[Params]:
    """The class of parameters as JSON, by their `backend`. Raises UsageProblem for one that this version lacks."""
    backend = params.get("backend")
    if backend is None:
        return PARAMS[stage]
    from trtx.stages.params_trtllm import BACKEND, TRTLLM_PARAMS  # Its models take longer to import than all others.

    if backend != BACKEND or stage not in TRTLLM_PARAMS:
        raise UsageProblem(
            f"the stage {stage} has no backend {backend!r}", why="the job was planned by another version of trtx"
        )
    return TRTLLM_PARAMS[stage]


def read_params(stage: str, params: Mapping[str, Any]) -> Params:
    """Parameters from their JSON. Raises pydantic's ValidationError for what they are not."""
    return find_params(stage, params).model_validate(params)


def tables_digest(stage: str, params: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """The digest of what this trtx knows of the release that a step of TensorRT-LLM is for: its factor `tables`.

    Raises EnvironmentProblem or VerificationFailed where the step has a probe that is not here, or another one.
    """
    from trtx.backends.tensorrt_llm.probes import load_release

    return load_release(read_params(stage, params).spec, environ).digest  # type: ignore[attr-defined]  # All have one.


def all_params() -> Iterator[type[Params]]:
    """Every class of parameters, of all backends."""
    from trtx.stages.params_trtllm import TRTLLM_PARAMS

    yield from PARAMS.values()
    yield from TRTLLM_PARAMS.values()
