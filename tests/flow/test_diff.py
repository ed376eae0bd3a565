"""`trtx diff`, as a user meets it: recipes, locks and runs."""

from __future__ import annotations

import json

import pytest
from support.project import ROOT, Project


@pytest.fixture
def recipes(project: Project) -> Project:
    """Two recipes: b.yaml has another batch size and is written differently."""
    text = (ROOT / "recipes" / "quickstart.yaml").read_text()
    (project.folder / "a.yaml").write_text(text)
    changed = text.replace("max_batch_size: 8", "max_batch_size: 5").replace("64MiB", "65536KiB")
    (project.folder / "b.yaml").write_text("# other words\n" + changed)
    return project


def test_recipes_differ_in_what_they_mean_with_both_places_and_the_keys_that_move(recipes: Project) -> None:
    diff = recipes.json("diff", "a.yaml", "b.yaml")
    (change,) = diff["changes"]
    assert (change["setting"], change["old"], change["new"]) == ("engine.limits.max_batch_size", 8, 5)
    assert change["old_origin"].startswith("a.yaml:")
    assert change["new_origin"].startswith("b.yaml:")
    moved = {step["step"].split("/")[0] for step in diff["steps"]["changed"]}
    assert moved == {"build", "benchmark", "package"}
    shown = recipes.trtx("diff", "a.yaml", "b.yaml").stderr
    assert "engine.limits.max_batch_size" in shown
    assert "9 steps changed" in shown


def test_equal_recipes_are_said_to_be_and_the_exit_code_tells_them_apart_on_request(recipes: Project) -> None:
    assert "mean the same" in recipes.trtx("diff", "a.yaml", "a.yaml").stderr
    for arguments, code in (
        (("a.yaml", "a.yaml", "--detailed-exitcode"), 0),
        (("a.yaml", "b.yaml", "--detailed-exitcode"), 5),
        (("a.yaml", "b.yaml"), 0),
    ):
        assert recipes.trtx("diff", *arguments).returncode == code


def test_cells_that_a_selection_leaves_out_are_only_in_one_of_the_two(recipes: Project) -> None:
    diff = recipes.json("diff", "a.yaml", "a.yaml:cpu/fp32")
    assert diff["cells"] == {"both": ["cpu/fp32"], "added": [], "removed": ["cpu/int8", "cpu/int4"]}


def test_recipes_that_cannot_be_planned_here_are_still_compared(recipes: Project) -> None:
    for name in ("a.yaml", "b.yaml"):
        path = recipes.folder / name
        path.write_text(
            path.read_text().replace("demo://tiny-llama", "file:///nowhere").replace("demo://docs", "file:///x")
        )
    diff = recipes.json("diff", "a.yaml", "b.yaml")
    assert [change["setting"] for change in diff["changes"]] == ["engine.limits.max_batch_size"]
    assert diff["steps"] is None
    assert diff["steps_unknown"]
    assert "which keys move is not known" in recipes.trtx("diff", "a.yaml", "b.yaml").stderr


def test_things_of_two_kinds_are_refused_with_what_each_is(recipes: Project) -> None:
    done = recipes.trtx("diff", "a.yaml", "b.lock.yaml")
    assert done.returncode == 2
    assert "a.yaml is a recipe, b.lock.yaml is a lock" in done.stderr


def test_what_is_not_there_is_a_usage_error(recipes: Project) -> None:
    for side, word in (
        ("c.yaml", "there is no recipe c.yaml"),
        ("c.lock.yaml", "there is no lock c.lock.yaml"),
        ("20000101-000000-0000", "there are no runs"),
    ):
        done = recipes.trtx("diff", side, side)
        assert done.returncode == 2
        assert word in done.stderr


def test_locks_differ_by_fact_in_the_words_of_their_sections(project: Project) -> None:
    for name, identity in (("a", "1" * 40), ("b", "2" * 40)):
        lock = {
            "schema": "trtx.lock/v1",
            "models": {"hf://owner/name@main": {"identity": identity}},
            "stages": {"build": 1},
        }
        (project.folder / f"{name}.lock.yaml").write_text(json.dumps(lock))
    (change,) = project.json("diff", "a.lock.yaml", "b.lock.yaml")["changes"]
    assert (change["section"], change["name"], change["part"]) == ("models", "hf://owner/name@main", "identity")
    assert (change["old"], change["new"]) == ("1" * 40, "2" * 40)
    assert "model hf://owner/name@main" in project.trtx("diff", "a.lock.yaml", "b.lock.yaml").stderr
    assert "pin the same" in project.trtx("diff", "a.lock.yaml", "a.lock.yaml").stderr


def test_runs_are_compared_by_id_or_folder(quickstart: Project) -> None:
    run = sorted((quickstart.folder / ".trtx" / "runs").iterdir())[0]
    diff = quickstart.json("diff", run.name, str(run))
    assert diff["kind"] == "run"
    assert diff["equal"]
    assert diff["outcomes"]["package/cpu/int8"][0] == diff["outcomes"]["package/cpu/int8"][1]
    shown = quickstart.trtx("diff", run.name, run.name).stderr
    assert "the same 17 steps" in shown
