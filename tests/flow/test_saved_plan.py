"""`trtx plan -o plan.json` and `trtx apply plan.json`: exactly that is run, or refused with the name of what moved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import make_llama
from support.project import Project
from support.small import write_small_project

from trtx.plan.saved import seal


@pytest.fixture
def planned(project: Project) -> Project:
    """A project with a saved plan of one download."""
    write_small_project(project)
    done = project.trtx("plan", "recipe.yaml", "--until", "download", "-o", "plan.json")
    assert done.returncode == 0, done.stderr
    assert "wrote plan.json" in done.stderr and "next: trtx apply plan.json" in done.stderr
    return project


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    body = json.loads(path.read_bytes())
    change(body)
    path.write_text(json.dumps(seal(body)))


def refusal(project: Project, *arguments: object) -> str:
    done = project.trtx("apply", "plan.json", *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.folder / ".trtx").exists()
    return done.stderr


def test_a_saved_plan_is_applied_as_it_is(planned: Project) -> None:
    done = planned.json("apply", "plan.json")
    kept = json.loads((planned.folder / "plan.json").read_bytes())
    assert [(row["step"], row["state"]) for row in done["status"]] == [("download/model", "done")]
    assert done["status"][0]["key"] == kept["steps"][0]["key"]
    executed = json.loads((planned.folder / ".trtx" / "runs" / done["run"] / "plan.json").read_bytes())
    assert seal(executed) == kept


def test_what_plan_prints_as_json_can_be_applied_too(planned: Project) -> None:
    done = planned.trtx("plan", "recipe.yaml", "--until", "download", "-o", "json")
    (planned.folder / "printed.json").write_text(done.stdout)
    assert planned.json("apply", "printed.json")["status"][0]["state"] == "done"


@pytest.mark.parametrize(
    "edit",
    [
        lambda body: body["steps"].pop(),
        lambda body: body["steps"].append(body["steps"][0]),
        lambda body: body["steps"][0].update(key="0" * 64),
        lambda body: body["steps"][0].update(id="../elsewhere"),
        lambda body: body["steps"][0].update(argv=[]),
        lambda body: body["steps"][0].update(stage="unknown"),
        lambda body: body["steps"][0]["params"].update(identity="another"),
        lambda body: body.update(cache_dir="elsewhere"),
        lambda body: body.update(max_parallel="many"),
        lambda body: body.update(added=1),
        lambda body: body.pop("digest"),
    ],
)
def test_a_plan_that_was_edited_is_refused(planned: Project, edit: Callable[[dict[str, Any]], None]) -> None:
    body = json.loads((planned.folder / "plan.json").read_bytes())
    edit(body)
    (planned.folder / "plan.json").write_text(json.dumps(body))
    assert "plan.json is not a whole plan" in refusal(planned)


def test_a_plan_that_was_formatted_anew_is_the_same_plan(planned: Project) -> None:
    path = planned.folder / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()), sort_keys=True, separators=(",", ":")))
    assert planned.json("apply", "plan.json")["status"][0]["state"] == "done"


def test_a_plan_can_be_applied_where_its_recipe_is_not(planned: Project) -> None:
    (planned.folder / "recipe.yaml").unlink()
    assert planned.json("apply", "plan.json")["status"][0]["state"] == "done"


def test_an_edited_recipe_is_named(planned: Project) -> None:
    with (planned.folder / "recipe.yaml").open("a") as stream:
        stream.write("# one more comment\n")
    assert "the plan is out of date: recipe.yaml was edited" in refusal(planned)


def test_a_changed_source_is_named(planned: Project) -> None:
    make_llama(planned.folder / "model", seed=1)
    assert f"file://{planned.folder / 'model'}: " in refusal(planned)


def test_every_input_that_moved_is_named(planned: Project) -> None:
    make_llama(planned.folder / "model", seed=1)
    (planned.folder / "recipe.yaml").write_text("schema: trtx/v1\n")
    said = refusal(planned)
    assert "2 inputs moved since" in said
    assert "recipe.yaml was edited" in said and "/model: " in said


def test_a_changed_tool_stage_machine_or_interpreter_is_named(planned: Project) -> None:
    def change(body: dict[str, Any]) -> None:
        step = body["steps"][0]
        step["factors"]["code"] = 0
        step["factors"]["toolchain"]["torch"] = "1.0"
        step["factors"]["machine"]["cpu"] = "another"
        step["argv"][0] = "/elsewhere/python"

    rewrite(planned.folder / "plan.json", change)
    said = refusal(planned)
    for part in (
        "the code of stage download: version 0 → ",
        "torch: 1.0 → 2.",
        "the machine's cpu: another → ",
        "the Python that runs steps: /elsewhere/python → ",
    ):
        assert part in said


@pytest.mark.parametrize(
    "option", [("--set", "name=other"), ("--unset", "name"), ("--until", "build"), ("--max-parallel", "4")]
)
def test_nothing_changes_a_plan_that_was_kept(planned: Project, option: tuple[str, str]) -> None:
    assert f"{option[0]} cannot change a plan that was kept" in refusal(planned, *option)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is not JSON"),
        ("[]", "it has no schema"),
        ('{"schema": "trtx.plan/v9"}', "its schema is trtx.plan/v9, and this trtx reads trtx.plan/v1"),
        ('{"schema": "trtx.plan/v1", "name": "x"}', "plan.json is not a whole plan"),
        ('{"schema": "trtx.plan/v1", "name": "x", "recipe": "", "cache_dir": "", "cells": 3}', "is not a whole plan"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(project: Project, content: str, message: str) -> None:
    (project.folder / "plan.json").write_text(content)
    assert message in refusal(project)


def test_a_missing_plan_says_how_to_make_one(project: Project) -> None:
    assert "`trtx plan RECIPE -o plan.json` writes one" in refusal(project)


def test_a_plan_that_cannot_be_written_is_an_environment_problem(planned: Project) -> None:
    done = planned.trtx("plan", "recipe.yaml", "--until", "download", "-o", "recipe.yaml/plan.json")
    assert done.returncode == 6
    assert "cannot write recipe.yaml/plan.json" in done.stderr


def test_another_output_is_refused_with_what_there_is(planned: Project) -> None:
    done = planned.trtx("plan", "recipe.yaml", "-o", "plan.yaml")
    assert done.returncode == 2
    assert "give table, json, or a file that ends in .json" in done.stderr
