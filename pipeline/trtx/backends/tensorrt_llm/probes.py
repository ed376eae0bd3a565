"""The tables that a step was planned with: shipped ones, or those of a probe that its parameters name by digest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.spec import CheckpointSpec
from trtx.errors import EnvironmentProblem, VerificationFailed
from trtx.files import sha256_file

# Where the probe file is on the machine that runs a step. The digest is in the key; where the file is cannot change it.
PROBE_VARIABLE = "TRTX_TRTLLM_PROBE"


def load_release(spec: CheckpointSpec, environ: Mapping[str, str] | None = None) -> Release:
    """The release of a spec, with its probe where it has one.

    Raises EnvironmentProblem when the probe file is not here, VerificationFailed when it is another one.
    """
    if spec.probe is None:
        return Release.load(spec.release)
    named = (os.environ if environ is None else environ).get(PROBE_VARIABLE)
    if not named or not Path(named).is_file():
        raise EnvironmentProblem(
            f"the probe of TensorRT-LLM {spec.release} is not here",
            why=f"{PROBE_VARIABLE} names {named or 'nothing'}, and the plan has the probe {spec.probe[:12]}",
            fix="put the file that `trtx probe --write` made where this machine sees it, and plan again",
        )
    found = sha256_file(Path(named))
    if found != spec.probe:
        raise VerificationFailed(
            f"the probe {named} is not the one that the step was planned with",
            why=f"its SHA-256 begins with {found[:12]}, planned was {spec.probe[:12]}",
            fix="plan again",
        )
    return Release.load(spec.release, probed=Path(named))
