"""What CI systems read: Markdown and annotations for GitHub, JUnit XML, and JSON also when a verb fails."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.project import Project
from support.small import write_small_project


@pytest.fixture
def small(project: Project) -> Project:
    """A project with a recipe whose model has a tokenizer that no library can read: calibrate fails at once."""
    return write_small_project(project)


def test_plan_prints_a_summary_and_adds_it_to_the_file_that_github_names(small: Project) -> None:
    summary = small.folder / "summary.md"
    summary.write_text("# before\n")
    done = small.trtx("plan", "recipe.yaml", "--format", "github", GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("## trtx plan recipe.yaml\n\n**6 of 6 steps to run, 0 cached**\n")
    assert "| `download/model` | to run |" in done.stdout
    assert summary.read_text() == "# before\n" + done.stdout


def test_the_folder_of_the_summary_is_made(small: Project) -> None:
    summary = small.folder / "not" / "there" / "summary.md"
    done = small.trtx("plan", "recipe.yaml", "--format", "github", GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == 0, done.stderr
    assert summary.read_text() == done.stdout


def test_without_the_variable_the_summary_is_only_printed(small: Project) -> None:
    done = small.trtx("plan", "recipe.yaml", "--format", "github", GITHUB_STEP_SUMMARY="")
    assert "## trtx plan recipe.yaml" in done.stdout


def test_problems_become_annotations_of_their_lines(small: Project) -> None:
    text = (small.folder / "recipe.yaml").read_text()
    (small.folder / "recipe.yaml").write_text(text + "gpus: 3\nnmae: x\n")
    line = len(text.splitlines()) + 1
    for verb in ("plan", "apply", "validate"):
        done = small.trtx(verb, "recipe.yaml", "--format", "github")
        assert done.returncode == 2
        assert f"::error file=recipe.yaml,line={line},col=1::unknown key 'gpus'" in done.stderr
        assert f"::error file=recipe.yaml,line={line + 1},col=1::unknown key 'nmae'%0A" in done.stderr


def test_an_error_without_a_line_is_an_annotation_too(small: Project) -> None:
    done = small.trtx("plan", "recipe.yaml:gpu/*", "--format", "github")
    assert "::error title=trtx::no cell of the recipe matches 'gpu/*'%0A" in done.stderr


def test_apply_reports_every_step_as_junit_and_in_the_summary(small: Project) -> None:
    done = small.trtx("apply", "recipe.yaml", "--junit", "report.xml", "--format", "github")
    assert done.returncode != 0
    assert "## trtx apply recipe.yaml" in done.stdout
    assert "1 step failed" in done.stdout
    suite = ElementTree.parse(small.folder / "report.xml").getroot()[0]
    assert (suite.get("name"), suite.get("failures")) == ("small", "1")
    cases = {case.get("name"): case for case in suite}
    assert len(cases) == int(suite.get("tests", 0)) == 6
    assert cases["download/model"].find("failure") is None and cases["download/model"].find("skipped") is None
    failure = cases["calibrate/fp32"].find("failure")
    assert failure is not None and failure.get("message") and "error: " in (failure.text or "")
    skipped = cases["build/cpu/fp32"].find("skipped")
    assert skipped is not None and "blocked" in skipped.get("message", "")


def test_a_run_with_nothing_to_do_is_reported_as_passed(small: Project) -> None:
    for _ in range(2):
        done = small.trtx("apply", "recipe.yaml", "--until", "download", "--junit", "report.xml")
        assert done.returncode == 0, done.stderr
    suite = ElementTree.parse(small.folder / "report.xml").getroot()[0]
    assert [suite.get(name) for name in ("tests", "failures", "skipped")] == ["1", "0", "0"]


def test_a_report_that_cannot_be_written_is_an_environment_problem(small: Project) -> None:
    done = small.trtx("apply", "recipe.yaml", "--until", "download", "--junit", "recipe.yaml/report.xml")
    assert done.returncode == 6
    assert "cannot write recipe.yaml/report.xml" in done.stderr


def test_a_failed_apply_prints_every_step_and_the_error_as_json(small: Project) -> None:
    done = small.trtx("apply", "recipe.yaml", "-o", "json")
    body = json.loads(done.stdout)
    assert body["schema"] == "trtx.apply/v1"
    assert body["error"]["exit_code"] == done.returncode != 0
    states = {row["step"]: row["state"] for row in body["status"]}
    assert states["download/model"] == "done" and states["calibrate/fp32"] == "failed"
    assert body["error"]["what"].startswith("calibrate/fp32 failed: ")


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (("plan", "nothing.yaml"), "UsageProblem", 2),
        (("plan", "recipe.yaml", "--no-such-option"), "UsageProblem", 2),
        (("status",), "UsageProblem", 2),
        (("apply", "broken.yaml"), "RecipeInvalid", 2),
        (("logs", "download/model"), "UsageProblem", 2),
        (("serve", "nowhere"), "UsageProblem", 2),
    ],
)
def test_an_error_is_json_on_stdout_and_a_message_on_stderr(
    small: Project, arguments: tuple[str, ...], kind: str, code: int
) -> None:
    (small.folder / "broken.yaml").write_text("schema: trtx/v1\n")
    done = small.trtx(*arguments, "-o", "json")
    body = json.loads(done.stdout)
    assert (body["schema"], body["error"]["kind"]) == ("trtx.error/v1", kind)
    assert body["error"]["exit_code"] == done.returncode == code
    assert done.stderr
    if kind == "RecipeInvalid":
        assert {problem["what"] for problem in body["error"]["problems"]} >= {"the key 'name' is missing"}


def test_the_log_of_a_step_is_one_document(small: Project) -> None:
    small.trtx("apply", "recipe.yaml", "--until", "download")
    body = small.json("logs", "download/model")
    assert body["schema"] == "trtx.logs/v1" and body["ended"] is True
    assert any("download/model: published" in line for line in body["lines"])
    assert Path(small.folder, body["path"]).read_text().splitlines() == body["lines"]
    assert small.trtx("logs", "download/model", "-f", "-o", "json").returncode == 2


def test_a_problem_in_an_option_is_an_annotation_without_a_file(small: Project) -> None:
    done = small.trtx("plan", "recipe.yaml", "--set", "engine.dtype=float33", "--format", "github")
    assert done.returncode == 2
    assert "::error title=--set::engine.dtype cannot be " in done.stderr


def test_a_run_that_cannot_begin_is_an_error_in_the_report_of_no_earlier_run(small: Project) -> None:
    (small.folder / "report.xml").write_text("an earlier run's")
    done = small.trtx("apply", "recipe.yaml:gpu/*", "--junit", "report.xml")
    assert done.returncode == 2
    suite = ElementTree.parse(small.folder / "report.xml").getroot()[0]
    assert [suite.get(name) for name in ("tests", "errors", "failures")] == ["1", "1", "0"]
    error = suite[0].find("error")
    assert error is not None and error.get("message") == "no cell of the recipe matches 'gpu/*'"


@pytest.mark.parametrize("verb", [("plan",), ("apply", "--until", "download")])
def test_with_json_on_stdout_the_summary_goes_to_its_file_alone(small: Project, verb: tuple[str, ...]) -> None:
    name, *options = verb
    body = small.json(name, "recipe.yaml", *options, "--format", "github", GITHUB_STEP_SUMMARY="summary.md")
    assert body["schema"] == f"trtx.{name}/v1"
    assert (small.folder / "summary.md").read_text().startswith(f"## trtx {name} recipe.yaml")


def test_a_recipe_from_a_pipe_is_applied_and_gets_no_lock(small: Project) -> None:
    text = (small.folder / "recipe.yaml").read_text()
    for verb, code in (("apply", 0), ("lock", 2)):
        command = [*small.argv(verb, "/dev/stdin"), *(("--until", "download") if verb == "apply" else ())]
        done = subprocess.run(
            command, cwd=small.folder, env=dict(small.environ), input=text, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
    assert not Path("/dev/stdin.lock.yaml").exists()
