"""How a build hands on what an earlier one measured: to its compilers, into its log, its files and its summary."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.backends.test_build import make_spec

from trtx.backends.inductor import build as module
from trtx.backends.inductor.build import compile_code, find_compiler
from trtx.backends.inductor.choices import CHOICES_NAME, Choices, ProgramChoices
from trtx.backends.inductor.evidence import Evidence
from trtx.backends.inductor.process import Child, Ended
from trtx.backends.inductor.replay import Replay, read_replay
from trtx.backends.inductor.spec import CompileFacts, CompileJob, EngineSpec, make_card
from trtx.errors import UsageProblem
from trtx.files import write_json
from trtx.runtime.card import EngineCard
from trtx.stages import build as stage
from trtx.stages.base import StepContext
from trtx.stages.params import BuildParams

CONFIGS = {"kz/ckz": {"XBLOCK": 64}, "ab/cab": {"XBLOCK": 128}}
REPLAY = Replay(("bf16 16 4096 1024 00ff",), {"step": CONFIGS})


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (CONFIGS, "step program: replayed 2 of 2 kernel configurations, measured 0"),
        (CONFIGS | {"kz/ckz": {"XBLOCK": 32}}, "step program: replayed 1 of 2 kernel configurations, measured 1"),
    ],
)
def test_a_compiler_gets_the_configurations_and_the_log_says_which_it_took(
    found: dict[str, dict[str, int]], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_children(children: list[Child], _cwd: Path) -> list[Ended]:
        compiler = children[0]
        job = CompileJob.model_validate_json(Path(compiler.arguments[0]).read_bytes())
        assert job.configs == CONFIGS
        assert compiler.extra_environ["TRITON_DISABLE_LINE_INFO"] == "1"
        choices = ProgramChoices(vector_isa="", kernels=2, vector_kernels=0, settings={}, configs=found)
        write_json(Path(job.facts), CompileFacts(constants=(), choices=choices).model_dump(mode="json"))
        return [Ended(0, []) for _ in children]

    monkeypatch.setattr(module, "run_children", run_children)
    lines: list[str] = []
    facts = compile_code(make_spec(), find_compiler(), tmp_path / "engine", tmp_path, lines.append, REPLAY)
    assert facts["step"].choices.configs == found
    assert said in lines


def make_context(folder: Path, **choices: object) -> StepContext:
    for name in ("output", "work"):
        (folder / name).mkdir()
    inputs = dict.fromkeys(("weights", "checkpoint", "model"), folder)
    return StepContext(inputs, folder / "output", folder / "work", {"weights": "key"}, choices=choices)


def make_params() -> BuildParams:
    return BuildParams.model_validate(make_spec().model_dump(exclude={"attention"}))


def test_a_step_builds_with_its_choices_and_its_summary_has_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(spec: EngineSpec, output: Path, work: Path, say: object, replay: Replay) -> EngineCard:
        program = ProgramChoices(
            vector_isa="", kernels=2, vector_kernels=0, settings={}, configs=replay.configs["step"]
        )
        choices = Choices(programs={"step": program})
        write_json(output / CHOICES_NAME, choices.model_dump(mode="json", by_alias=True))
        return make_card(spec, {}, {}, "", None, replay.products)

    def run_check(*_arguments: object) -> Evidence:
        return Evidence(
            weights_key="key",
            weights_layout_sha256="0",
            programs={},
            perplexity=1.0,
            reference_perplexity=1.0,
            figures={},
            tolerances={},
            passed=True,
        )

    monkeypatch.setattr(stage, "build", build)
    monkeypatch.setattr(stage, "run_check", run_check)
    summary = stage.run(make_params(), make_context(tmp_path, **REPLAY.to_groups()))
    assert read_replay(summary["choices"]) == REPLAY


def test_a_step_with_choices_that_nobody_measured_is_refused_before_it_builds(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="cannot be read"):
        stage.run(make_params(), make_context(tmp_path, products={"bf16": "00ff"}))
    assert list((tmp_path / "output").iterdir()) == []
