"""The build step: compile the programs of an engine and have them checked before they count."""

from __future__ import annotations

from typing import Any

from trtx.backends.inductor.build import build
from trtx.backends.inductor.choices import CHOICES_NAME, Choices
from trtx.backends.inductor.evidence import CHECK_NAME, run_check
from trtx.backends.inductor.replay import read_replay
from trtx.backends.inductor.spec import EngineSpec
from trtx.files import write_json
from trtx.stages.base import StepContext
from trtx.stages.params import BuildParams


def run(params: BuildParams, context: StepContext) -> dict[str, Any]:
    """Write engine.json, compile.json, programs/ and check.json. Witnesses: weights, checkpoint, model.

    The programs depend on the parameters alone, and on what the fastest choices were measured to be, here or by the
    build whose choices the context has. The witnesses are read by the check and by nothing else.

    Raises VerificationFailed when the engine does not answer like its model, EnvironmentProblem when this machine
    cannot compile or run it, StepFailed when compiling fails.
    """
    spec = EngineSpec.model_validate(params.model_dump())
    card = build(spec, context.output, context.work, context.say, read_replay(context.choices))
    inputs = context.inputs
    evidence = run_check(
        context.output, inputs["weights"], inputs["checkpoint"], inputs["model"], context.keys["weights"]
    )
    write_json(context.output / CHECK_NAME, evidence.model_dump(mode="json", by_alias=True))
    for name, value in evidence.figures.items():
        context.say(f"check {name}: {value:.4g} (bound {evidence.tolerances[name]:.4g})")
    sizes = [(context.output / code.path).stat().st_size for code in card.code.values()]
    return {
        "isa": card.compiled_for.isa,
        "simulated": card.compiled_for.simulated,
        "bytes": sum(sizes),
        "figures": evidence.figures,
        "perplexity": evidence.perplexity,
        "choices": Choices.model_validate_json((context.output / CHOICES_NAME).read_bytes()).summarize(card.products),
    }
