"""Verbs around a run that takes a moment: a random model that is only downloaded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.checkpoints import make_llama
from support.project import Project
from support.small import write_small_project


@pytest.fixture
def downloaded(project: Project) -> Project:
    """A project whose one run fetched a small model and its texts."""
    write_small_project(project)
    done = project.trtx("apply", "recipe.yaml", "--until", "download")
    assert done.returncode == 0, done.stderr
    return project


def test_the_log_of_a_step_is_printed_on_stdout_and_followed_to_its_end(downloaded: Project) -> None:
    for flags in ((), ("-f",)):
        done = downloaded.trtx("logs", "download/model", *flags)
        assert done.returncode == 0
        assert "download/model: published" in done.stdout


def test_an_unknown_step_gets_the_nearest_name(downloaded: Project) -> None:
    done = downloaded.trtx("logs", "download/modle")
    assert done.returncode == 2
    assert "did you mean 'download/model'?" in done.stderr


def test_an_attempt_that_was_not_made_is_refused_with_those_that_were(downloaded: Project) -> None:
    done = downloaded.trtx("logs", "download/model", "--attempt", 7)
    assert done.returncode == 2
    assert "attempts: 1" in done.stderr


def test_status_lists_the_run_as_a_table_and_as_json(downloaded: Project) -> None:
    assert "download/model  done" in downloaded.trtx("status").stderr
    status = downloaded.json("status")
    assert [(row["step"], row["state"]) for row in status["status"]] == [("download/model", "done")]
    assert status["driven"] is False


def test_an_unknown_run_and_a_folder_without_runs_are_usage_errors(downloaded: Project, project: Project) -> None:
    assert downloaded.trtx("status", "--run", "20000101-000000-0000").returncode == 2
    elsewhere = Project(downloaded.folder / "model", downloaded.environ)
    done = elsewhere.trtx("status")
    assert done.returncode == 2
    assert "there are no runs" in done.stderr


def test_only_json_is_on_stdout(downloaded: Project) -> None:
    for verb in (("plan", "recipe.yaml"), ("apply", "recipe.yaml", "--until", "download"), ("status",)):
        assert downloaded.trtx(*verb).stdout == ""
        json.loads(downloaded.trtx(*verb, "-o", "json").stdout)


def test_a_changed_model_is_downloaded_again_and_the_reason_says_so(downloaded: Project) -> None:
    make_llama(downloaded.folder / "model", seed=1)
    row = downloaded.json("plan", "recipe.yaml", "--until", "download")["status"][0]
    assert row["state"] == "to run"
    assert "changed since the last run: params.identity" in row["reason"]


def test_global_flags_may_stand_anywhere(downloaded: Project) -> None:
    assert downloaded.trtx("plan", "-q", "recipe.yaml").stderr == ""
    wrong = downloaded.trtx("plan", "absent.yaml", "-v")
    assert wrong.returncode == 2
    assert "Traceback" in wrong.stderr
    assert "Traceback" not in downloaded.trtx("plan", "absent.yaml").stderr


def test_a_step_runs_by_hand_from_its_job_file(downloaded: Project) -> None:

    job = next(downloaded.folder.glob(".trtx/runs/*/steps/download/model/job.json"))
    argv = [sys.executable, "-m", "trtx.stages.worker", str(job)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=dict(downloaded.environ))
    assert done.returncode == 0
    assert "adopted" in done.stdout
