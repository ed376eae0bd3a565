"""`trtx verify --rebuild` as it is called: what is refused, what it leaves with, what it prints."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import yaml
from support.plans import edited

from trtx.backends.rebuilt import Compared, Comparison, Outputs
from trtx.cli.main import main
from trtx.cli.rebuild import decide_exit_code, tell_verdicts, to_json
from trtx.console import Console
from trtx.errors import EnvironmentProblem, StepFailed
from trtx.stages.job import Failure
from trtx.stages.rebuild_report import Report

GOOD = Comparison(files=Compared(count=4))
SAME = Compared(count=88)
BAD = Comparison(files=Compared(count=4, different=("rank0.engine",)), choices=Compared(count=2))


def report(comparison: Comparison | None = None, error: type[EnvironmentProblem | StepFailed] | None = None) -> Report:
    return Report(step="build/a", key="k", comparison=comparison, failure=Failure.of(error("no")) if error else None)


@pytest.mark.parametrize(
    ("reports", "code"),
    [
        ([report(GOOD), report(GOOD)], 0),
        ([report(GOOD), report(BAD)], 8),
        ([report(error=EnvironmentProblem), report(BAD)], 8),
        ([report(GOOD), report(error=EnvironmentProblem), report(error=StepFailed)], 6),
        ([report(error=StepFailed)], 1),
    ],
)
def test_a_difference_counts_most_and_then_what_could_not_be_rebuilt(reports: list[Report], code: int) -> None:
    assert decide_exit_code(reports) == code
    assert to_json("recipe.yaml", reports)["passed"] is (code == 0)


def test_json_has_the_evidence_of_every_engine_and_the_error_of_one_that_was_not_rebuilt() -> None:
    asked = GOOD.model_copy(
        update={"outputs": Outputs(sequences=4, tokens=24, largest=0.5, distance=0.001, bound=0.01, mismatches=0)}
    )
    body = json.loads(json.dumps(to_json("recipe.yaml", [report(asked), report(error=EnvironmentProblem)])))
    assert body["schema"] == "trtx.rebuild/v1"
    good, failed = body["engines"]
    assert (good["verdict"], good["files"], good["records"]) == ("bit-identical", {"count": 4, "different": []}, None)
    assert good["outputs"]["largest"] == 0.5 and good["error"] is None
    assert failed["verdict"] is failed["files"] is failed["outputs"] is None
    assert (failed["error"]["what"], failed["error"]["exit_code"]) == ("no", 6)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRTX_CACHE_DIR", str(tmp_path / "cache"))
    Path("recipe.yaml").write_text(yaml.safe_dump(edited({})))
    return "recipe.yaml"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rebuild", "--files-only"], "--files-only cannot be used with --rebuild"),
        (["--rebuild", "--strict-gpu"], "--strict-gpu cannot be used with --rebuild"),
        (["--keep", "there"], "--keep cannot be used without --rebuild"),
        (["--set", "name=other"], "--set cannot be used without --rebuild"),
        (["--offline"], "--offline cannot be used without --rebuild"),
        (["--rebuild", "--keep", "."], ". exists already"),
        (["--rebuild", "--set", "targets.cpu.gpu=nothing"], "nothing"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(
    recipe: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", recipe, *options]) == 2
    assert message in capsys.readouterr().err


def test_engines_that_were_never_built_are_told_one_by_one(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", f"{recipe}:cpu/*", "--rebuild", "-o", "json"]) == 6
    out, err = capsys.readouterr()
    errors = [engine["error"]["what"] for engine in json.loads(out)["engines"]]
    assert errors == ["build/cpu/fp32 has no entry to compare with", "build/cpu/int8 has no entry to compare with"]
    assert err.count("error: ") == 2 and "not rebuilt" not in err


def test_people_get_a_table_and_what_differs() -> None:
    console = Console(io.StringIO(), io.StringIO(), color=False)
    many = Compared(count=20, different=tuple(f"c{number}: 1 → 2" for number in range(10)))
    asked = Outputs(sequences=4, tokens=24, largest=0.5, distance=0.02, bound=0.01, mismatches=3)
    found = Comparison(files=Compared(count=4, different=("compile.json",)), choices=many, records=SAME, outputs=asked)
    tell_verdicts(console, [report(found), report(error=EnvironmentProblem)])
    assert isinstance(console.err, io.StringIO)
    lines = console.err.getvalue().splitlines()
    rows = [re.split(r"\s{2,}", line) for line in lines[1:3]]
    answers = "logits differ by 0.5 at most; distance 0.02 of 0.01, 3 other tokens"
    assert rows[0] == ["build/a", "differs", "3 of 4 equal", "10 of 20 equal", "88 of 88 equal", answers]
    assert rows[1] == ["build/a", "not rebuilt", "not told", "not told", "not told", "not asked"]
    assert lines[3:5] == ["build/a: file differs: compile.json", "build/a: choice differs: c0: 1 → 2"]
    assert lines[-1] == "build/a: and 2 more; -o json has all of them"


def test_a_folder_is_still_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "is neither a deployment nor an engine" in capsys.readouterr().err


def test_the_help_names_every_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for verdict in ("bit-identical", "same choices", "equal within a bound", "differs"):
        assert verdict in text
