from __future__ import annotations

import math
from pathlib import Path

import pytest
from support.engines import make_card as make_any_card

from trtx.backends.inductor import evidence as module
from trtx.backends.inductor.evidence import (
    CALIBRATION_NAME,
    FAILURE_NAME,
    FIGURES,
    Evidence,
    ensure_checked,
    make_tolerances,
    make_verdict,
    out_of_bounds,
    read_evidence,
    read_failure,
    write_failure,
)
from trtx.errors import EnvironmentProblem, VerificationFailed
from trtx.files import write_json
from trtx.models.formats import ALGORITHMS, QuantFormat
from trtx.runtime.card import CARD_NAME, EngineCard, Program


def make_card(algorithm: str = "none", dtype: str = "float32", kv_cache: str = "auto") -> EngineCard:
    changes = {
        "quantization": QuantFormat.model_validate({"algorithm": algorithm, "kv_cache": kv_cache}),
        "dtype": dtype,
        "programs": {"step": Program(path="programs/step.pt2", sha256="d" * 64, constants=())},
    }
    return make_any_card().model_copy(update=changes)


def make_evidence(card: EngineCard, **changes: object) -> Evidence:
    bounds = make_tolerances(card)
    made = Evidence(
        weights_key="key",
        weights_layout_sha256=card.weights_layout_sha256,
        programs={name: code.sha256 for name, code in card.code.items()},
        perplexity=10.0,
        reference_perplexity=10.0,
        figures=dict.fromkeys(bounds, 0.0),
        tolerances=bounds,
        passed=True,
    )
    return made.model_copy(update=changes)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    write_json(tmp_path / "engine" / CARD_NAME, make_card().model_dump(mode="json", by_alias=True))
    return tmp_path / "engine"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names the weights of every check that is run, which then succeeds."""
    ran: list[str] = []

    def run_check(engine: Path, weights: Path, checkpoint: Path, model: Path, weights_key: str) -> Evidence:
        ran.append(weights_key)
        return make_evidence(make_card(), weights_key=weights_key)

    monkeypatch.setattr(module, "run_check", run_check)
    return ran


def ensure(engine: Path, weights_key: str, earlier: Path | None) -> Evidence:
    folder = engine.parent
    output = folder / "out.json"
    found = ensure_checked(engine, folder, folder, folder, weights_key, earlier, output)
    assert read_evidence(output) == found
    return found


def save(path: Path, evidence: Evidence) -> Path:
    write_json(path, evidence.model_dump(mode="json", by_alias=True))
    return path


def test_evidence_about_the_same_pair_is_used_again(engine: Path, checks: list[str]) -> None:
    earlier = save(engine / "check.json", make_evidence(make_card(), perplexity=9.0))
    assert ensure(engine, "key", earlier).perplexity == 9.0
    assert checks == []


def test_other_weights_are_checked_by_the_step_that_joins_them(engine: Path, checks: list[str]) -> None:
    earlier = save(engine / "check.json", make_evidence(make_card()))
    assert ensure(engine, "another key", earlier).weights_key == "another key"
    assert checks == ["another key"]


@pytest.mark.parametrize(
    "change",
    [
        {"programs": {"step program": "e" * 64}},
        {"weights_layout_sha256": "1" * 64},
        {"passed": False},
        {"tolerances": {"compiled_vs_eager": 0.5}},
    ],
)
def test_evidence_about_anything_else_is_not_used(engine: Path, checks: list[str], change: dict[str, object]) -> None:
    earlier = save(engine / "check.json", make_evidence(make_card(), **change))
    ensure(engine, "key", earlier)
    assert checks == ["key"]


@pytest.mark.parametrize("text", [None, "{}", "not json"])
def test_evidence_that_cannot_be_read_is_made_anew(engine: Path, checks: list[str], text: str | None) -> None:
    if text is not None:
        (engine / "check.json").write_text(text)
    ensure(engine, "key", engine / "check.json")
    assert checks == ["key"]


def test_a_figure_that_is_not_a_number_is_out_of_bounds() -> None:
    assert out_of_bounds({"a": math.nan, "b": 0.1, "c": 0.3}, {"a": 1.0, "b": 0.1, "c": 0.2}) == ["a", "c"]


def test_the_verdict_names_each_figure_and_its_bound() -> None:
    evidence = make_evidence(make_card(), figures={**make_evidence(make_card()).figures, "compiled_vs_eager": 0.5})
    text = make_verdict(evidence).render()
    assert "compiled_vs_eager" in text
    assert "is 0.5, bound 0.0001" in text


def test_every_format_has_bounds_that_a_message_can_name() -> None:
    for algorithm in ALGORITHMS:
        for dtype in ("float32", "bfloat16", "float16"):
            for kv_cache in ("auto", "fp8", "int8"):
                bounds = make_tolerances(make_card(algorithm, dtype, kv_cache))
                assert set(bounds) <= set(FIGURES)
                assert all(0 <= bound < 0.5 for bound in bounds.values())


def test_greedy_tokens_are_compared_where_nothing_is_rounded() -> None:
    assert make_tolerances(make_card())["greedy_mismatches"] == 0
    assert "greedy_mismatches" not in make_tolerances(make_card(dtype="bfloat16"))
    assert "greedy_mismatches" not in make_tolerances(make_card(kv_cache="fp8"))
    assert "greedy_mismatches" not in make_tolerances(make_card("int8_wo"))


def test_an_error_of_the_checking_process_arrives_as_it_was_raised(tmp_path: Path) -> None:
    write_failure(tmp_path, EnvironmentProblem("what", why="why", fix="fix"))
    error = read_failure(tmp_path / FAILURE_NAME, 1, [])
    assert type(error) is EnvironmentProblem
    assert error.render() == EnvironmentProblem("what", why="why", fix="fix").render()


@pytest.mark.parametrize(("code", "how"), [(-11, "signal SIGSEGV: last line"), (1, "exit code 1: last line")])
def test_programs_that_crash_fail_the_check(tmp_path: Path, code: int, how: str) -> None:
    error = read_failure(tmp_path / FAILURE_NAME, code, ["first line", "last line"])
    assert isinstance(error, VerificationFailed)
    assert error.why == how


def test_a_check_of_something_that_is_no_engine_says_so(tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match="is not an engine folder"):
        ensure_checked(tmp_path, tmp_path, tmp_path, tmp_path, "key", None, tmp_path / "check.json")


def test_weights_that_were_quantized_elsewhere_are_compared_with_the_checkpoint_alone(
    engine: Path, checks: list[str]
) -> None:
    write_json(engine.parent / CALIBRATION_NAME, {"kept": True})
    bounds = make_tolerances(make_card(), kept=True)
    assert "perplexity_vs_checkpoint" in bounds
    assert {"perplexity_vs_modelopt", "logits_vs_model"}.isdisjoint(bounds)
    ours = save(engine.parent / "ours.json", make_evidence(make_card()))
    ensure(engine, "key", ours)
    assert checks == ["key"]  # Evidence against figures that nobody took of these weights says nothing.
    theirs = make_evidence(make_card(), figures=dict.fromkeys(bounds, 0.0), tolerances=bounds)
    ensure(engine, "key", save(engine.parent / "theirs.json", theirs))
    assert checks == ["key"]
