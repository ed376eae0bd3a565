"""check.json: evidence that programs and weights answer right together, and how to come by it. Imports no torch."""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trtx.backends.inductor.process import Child, run_children
from trtx.errors import BY_NAME, TrtxError, VerificationFailed
from trtx.files import read_json, write_json
from trtx.models.config import uses_long_factors
from trtx.models.formats import (
    ALGORITHMS,
    DTYPE_LOGIT_TOLERANCE,
    DTYPE_PERPLEXITY_TOLERANCE,
    KV_CACHE_LOGIT_TOLERANCE,
    KV_CACHE_PERPLEXITY_TOLERANCE,
    MIXTURE_LOGIT_FACTOR,
)
from trtx.runtime.card import EngineCard, load_card

CHECK_NAME = "check.json"
FAILURE_NAME = "failure.json"
# What calibration writes beside a checkpoint.
CALIBRATION_NAME = "trtx_calibration.json"
# What rounding activations may do to a perplexity, by what it may do to logits. Measured on a small trained model: 0.23
# of the distance of the logits in mxfp4, 0.15 in int8_sq, 0.12 in nvfp4, 0.06 in fp8, less in others.
PERPLEXITY_OF_ROUNDING = 0.25

# What each figure is, for messages.
FIGURES = {
    "compiled_vs_eager": "relative distance of the compiled programs' logits from the same module's, not compiled",
    "logits_vs_checkpoint": "relative distance of the logits from transformers' with dequantized weights",
    "logits_vs_model": "relative distance of the logits from transformers' on the unquantized model",
    "perplexity_vs_checkpoint": "relative distance of the perplexity from transformers' with dequantized weights",
    "perplexity_vs_modelopt": "relative distance of the perplexity from the one ModelOpt measured on the same text",
    "greedy_mismatches": "greedily generated tokens that transformers would not have chosen",
}


class Evidence(BaseModel):
    """Content of check.json. `programs` are SHA-256 digests by name; `tolerances` bounds `figures`, name by name.

    `perplexity` is the one measured through the compiled programs, `reference_perplexity` ModelOpt's, or that of
    dequantized weights for a model that was quantized elsewhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["trtx.check/v1"] = Field(default="trtx.check/v1", alias="schema")
    weights_key: str
    weights_layout_sha256: str
    programs: dict[str, str]
    perplexity: float
    reference_perplexity: float
    figures: dict[str, float]
    tolerances: dict[str, float]
    passed: bool


def make_tolerances(card: EngineCard, *, kept: bool = False) -> dict[str, float]:
    """The bound of every figure that is taken of an engine; greedy tokens are compared where nothing is rounded.

    `kept` is about weights that were quantized elsewhere: the model they were made from is not known, nor what ModelOpt
    would say of them.
    """
    facts, kv_cache = ALGORITHMS[card.quantization.algorithm], card.quantization.kv_cache
    base = DTYPE_LOGIT_TOLERANCE[card.dtype] + KV_CACHE_LOGIT_TOLERANCE[kv_cache]
    factor = MIXTURE_LOGIT_FACTOR if card.model.num_experts else 1
    perplexity = DTYPE_PERPLEXITY_TOLERANCE[card.dtype] + KV_CACHE_PERPLEXITY_TOLERANCE[kv_cache]
    bounds = {
        # The same arithmetic in another order: few activations cross a rounding boundary.
        "compiled_vs_eager": factor * (base + facts.rounding_tolerance / 2),
        "logits_vs_checkpoint": factor * (base + facts.rounding_tolerance),
        "logits_vs_model": factor * (base + facts.logit_tolerance),
        "perplexity_vs_modelopt": perplexity + facts.perplexity_tolerance,
    }
    if kept:
        del bounds["logits_vs_model"], bounds["perplexity_vs_modelopt"]
        rounding = facts.rounding_tolerance * PERPLEXITY_OF_ROUNDING
        bounds["perplexity_vs_checkpoint"] = perplexity + facts.perplexity_tolerance + rounding
    if uses_long_factors(card.model.rope_scaling, card.limits.max_seq_len):
        # Calibration measures windows of text, which transformers encodes with the short factors.
        del bounds["perplexity_vs_checkpoint" if kept else "perplexity_vs_modelopt"]
    if card.dtype == "float32" and card.quantization.algorithm == "none" and kv_cache == "auto":
        bounds["greedy_mismatches"] = 0
    return bounds


def ensure_checked(
    engine: Path,
    weights: Path,
    checkpoint: Path,
    model: Path,
    weights_key: str,
    evidence: Path | None,
    output: Path,
) -> Evidence:
    """Have evidence in the file `output` that these programs and these weights answer right together.

    `evidence` is an earlier check.json, used when it is about exactly this pair. Else the check runs in a process of
    its own, which nothing that built the engine has touched.

    Raises VerificationFailed when a figure is out of bounds or the programs crash, EnvironmentProblem when the
    engine does not fit this machine.
    """
    card, kept = load_card(engine), was_kept(checkpoint)
    found = read_evidence(evidence) if evidence else None
    if found is None or not _is_about(found, card, weights_key, kept):
        found = run_check(engine, weights, checkpoint, model, weights_key)
    write_json(output, found.model_dump(mode="json", by_alias=True))
    return found


def run_check(engine: Path, weights: Path, checkpoint: Path, model: Path, weights_key: str) -> Evidence:
    """Run the check in a fresh process. Raises as ensure_checked does."""
    with tempfile.TemporaryDirectory(prefix="trtx-check-") as folder:
        result, log = Path(folder, CHECK_NAME), Path(folder, "check.log")
        paths = (engine, weights, checkpoint, model, result)
        arguments = (*(str(path.absolute()) for path in paths), weights_key)
        # Threads that spin while they wait take the processors from each other where other steps run too.
        child = Child("trtx.backends.inductor.check", arguments, log, {"OMP_WAIT_POLICY": "PASSIVE"})
        ended = run_children([child], Path(folder))[0]
        if ended.code != 0:
            raise read_failure(Path(folder, FAILURE_NAME), ended.code, ended.tail)
        checked = Evidence.model_validate_json(result.read_bytes())
    if not checked.passed:
        raise make_verdict(checked)
    return checked


def make_verdict(checked: Evidence) -> VerificationFailed:
    """The error for evidence that did not pass: it names the figures that are out of bounds."""
    wrong = out_of_bounds(checked.figures, checked.tolerances)
    worst = [f"{FIGURES[name]} is {checked.figures[name]:.4g}, bound {checked.tolerances[name]:.4g}" for name in wrong]
    return VerificationFailed(
        f"the engine does not answer like its model: {', '.join(wrong)}",
        why="; ".join(worst),
        fix="the programs or the weights are wrong: run `trtx apply` again, and report it if it stays",
    )


def out_of_bounds(figures: dict[str, float], tolerances: dict[str, float]) -> list[str]:
    """Names of figures beyond their tolerance; a figure that is not a number is."""
    return [name for name, bound in tolerances.items() if not figures[name] <= bound]


def was_kept(checkpoint: Path) -> bool:
    """Whether a checkpoint was quantized elsewhere: the calibration that left it only measured it."""
    try:
        return read_json(checkpoint / CALIBRATION_NAME).get("kept", False) is True
    except (OSError, ValueError, AttributeError):
        return False


def read_evidence(path: Path) -> Evidence | None:
    """Earlier evidence; None when there is none that this version can read."""
    try:
        return Evidence.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def write_failure(folder: Path, error: TrtxError) -> None:
    """How a checking process hands an error with a known cause to the step that started it."""
    facts = {"error": type(error).__name__, "what": error.what, "why": error.why, "fix": error.fix}
    write_json(folder / FAILURE_NAME, facts)


def read_failure(path: Path, code: int, tail: list[str]) -> TrtxError:
    """The error of a checking process that ended with `code`: the one it left, else that it crashed."""
    if path.is_file():
        facts: dict[str, Any] = json.loads(path.read_bytes())
        return BY_NAME[facts["error"]](facts["what"], why=facts["why"], fix=facts["fix"])
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return VerificationFailed(
        "the engine could not be checked: the process that ran it crashed",
        why=f"{how}: {tail[-1]}" if tail else how,
        fix="run `trtx apply` again, and report it if it stays",
    )


def _is_about(found: Evidence, card: EngineCard, weights_key: str, kept: bool) -> bool:
    programs = {name: code.sha256 for name, code in card.code.items()}
    return (
        found.passed
        and found.weights_key == weights_key
        and found.weights_layout_sha256 == card.weights_layout_sha256
        and found.programs == programs
        and found.tolerances == make_tolerances(card, kept=kept)
    )
