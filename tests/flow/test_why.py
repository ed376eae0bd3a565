"""`trtx why`, as a user meets it: on the quickstart's engines, and on a small run that is easily broken."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.checkpoints import make_llama
from support.project import ROOT, Project
from support.small import write_small_project
from support.steps import corrupt


@pytest.fixture
def small(project: Project) -> Project:
    """A project whose one run fetched a small model and its texts."""
    write_small_project(project)
    done = project.trtx("apply", "recipe.yaml", "--until", "download")
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def engines(project_on_shared_cache: Project) -> Project:
    """A project with its own copy of the quickstart's recipe; the cache holds its engines."""
    text = (ROOT / "recipes" / "quickstart.yaml").read_text()
    (project_on_shared_cache.folder / "recipe.yaml").write_text(text)
    return project_on_shared_cache


def edit(project: Project, old: str, new: str) -> int:
    """Replace a text of the recipe; returns its line."""
    path = project.folder / "recipe.yaml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def explain(project: Project, *arguments: str) -> Any:
    (step,) = project.json("why", *arguments)["steps"]
    return step


def test_a_changed_limit_is_named_with_its_line_and_what_it_costs(engines: Project) -> None:
    line = edit(engines, "max_batch_size: 8", "max_batch_size: 5")
    step = explain(engines, "recipe.yaml", "build/cpu/int8")
    assert step["state"] == "to run"
    (cause,) = step["nearest"]["causes"]
    (change,) = cause["changes"]
    assert (change["factor"], change["old"], change["new"]) == ("params.limits.max_batch_size", 8, 5)
    assert change["origin"]["setting"] == "engine.limits.max_batch_size"
    assert change["origin"]["where"].startswith(f"recipe.yaml:{line}:")
    assert [one["step"] for one in step["cost"]["steps"]] == [
        "build/cpu/int8",
        "benchmark/cpu/int8",
        "package/cpu/int8",
    ]
    assert step["cost"]["known_s"] > 0
    assert step["cost"]["unknown"] == []
    shown = engines.trtx("why", "recipe.yaml", "build/cpu/int8").stderr
    assert f"params.limits.max_batch_size: 8 → 5  (engine.limits.max_batch_size, recipe.yaml:{line}:" in shown
    assert "cost: about" in shown


def test_what_follows_names_the_step_that_really_changed(engines: Project) -> None:
    edit(engines, "max_batch_size: 8", "max_batch_size: 5")
    step = explain(engines, "recipe.yaml", "benchmark/cpu/int8")
    (cause,) = step["nearest"]["causes"]
    assert cause["trail"] == ["benchmark/cpu/int8", "build/cpu/int8"]
    assert [change["factor"] for change in cause["changes"]] == ["params.limits.max_batch_size"]
    shown = engines.trtx("why", "recipe.yaml", "benchmark/cpu/int8").stderr
    assert "its input differs: benchmark/cpu/int8 ← build/cpu/int8" in shown


def test_a_hit_says_when_it_was_made_and_what_it_saves(engines: Project) -> None:
    step = explain(engines, "recipe.yaml", "build/cpu/int8")
    assert step["state"] == "cached"
    assert step["made"]["recipe"] == "quickstart"
    assert step["made"]["duration_s"] > 0
    assert step["cost"]["steps"] == []
    assert len(step["key"]) == len(step["nearest"]["key"]) == 64
    shown = engines.trtx("why", "recipe.yaml", "build/cpu/int8").stderr
    assert "saves" in shown
    assert "each with its recorded SHA-256" in shown


def test_recorded_factors_are_at_most_a_few_kilobytes(quickstart: Project) -> None:
    for step in quickstart.json("plan", "recipes/quickstart.yaml")["steps"]:
        assert len(yaml.safe_dump(step["factors"])) < 4096


def test_the_run_that_made_an_entry_is_named(small: Project) -> None:
    (run,) = [path.name for path in (small.folder / ".trtx" / "runs").iterdir()]
    assert explain(small, "recipe.yaml", "download/model")["made"]["run"] == run
    assert run in small.trtx("why", "recipe.yaml", "download/model").stderr


def test_a_changed_source_is_the_factor_that_differs(small: Project) -> None:
    make_llama(small.folder / "model", seed=1)
    step = explain(small, "recipe.yaml", "download/model")
    (change,) = step["nearest"]["causes"][0]["changes"]
    assert change["factor"] == "params.identity"
    assert (change["origin"]["kind"], change["origin"]["setting"]) == ("source", "model.source")


def test_a_corrupt_entry_is_the_reason_and_its_own_record_tells_the_cost(small: Project) -> None:
    corrupt(next(Path(small.environ["TRTX_CACHE_DIR"]).glob("entries/*/*/output/model.safetensors")))
    step = explain(small, "recipe.yaml", "download/model")
    assert step["corrupt"]
    assert "corrupt" in step["reason"]
    assert step["cost"]["steps"][0]["seconds"] is not None
    assert "corrupt" in small.trtx("why", "recipe.yaml", "download/model").stderr


def test_a_step_that_was_never_made_has_nothing_to_compare_with_and_an_unknown_cost(small: Project) -> None:
    step = explain(small, "recipe.yaml", "build/cpu/fp32")
    assert step["nearest"] is None
    assert "build/cpu/fp32" in step["cost"]["unknown"]
    shown = small.trtx("why", "recipe.yaml", "build/cpu/fp32").stderr
    assert "no other entry of the stage build" in shown
    assert "cost: unknown" in shown


def test_an_unknown_step_gets_the_nearest_name(small: Project) -> None:
    done = small.trtx("why", "recipe.yaml", "downlod/model")
    assert done.returncode == 2
    assert "did you mean 'download/model'?" in done.stderr


def test_a_glob_explains_several_steps(small: Project) -> None:
    steps = small.json("why", "recipe.yaml", "download/*")["steps"]
    assert [step["step"] for step in steps] == ["download/model", "download/docs"]


def test_without_a_step_all_are_listed_with_their_state(small: Project) -> None:
    assert "name a step" in small.trtx("why", "recipe.yaml").stderr
    assert small.json("why", "recipe.yaml")["status"][0]["state"] == "cached"


def test_without_a_recipe_or_a_run_there_is_nothing_to_explain(small: Project) -> None:
    done = small.trtx("why")
    assert done.returncode == 2
    assert "nothing to explain" in done.stderr


def test_a_step_of_a_run_is_explained_from_its_record(small: Project) -> None:
    (run,) = [path.name for path in (small.folder / ".trtx" / "runs").iterdir()]
    (small.folder / "recipe.yaml").unlink()
    step = explain(small, "--run", run, "download/model")
    assert step["state"] == "done"
    settings = {factor["factor"]: factor["origin"]["setting"] for factor in step["factors"]}
    assert settings["params.allow_pickle"] == "model.allow_pickle"
    assert small.trtx("why", "--run", "20000101-000000-0000", "download/model").returncode == 2


def test_what_is_on_disk_identifies_steps_and_entries_by_whole_digests(small: Project) -> None:
    cache = Path(small.environ["TRTX_CACHE_DIR"])
    manifests = list(cache.glob("entries/*/*/manifest.json"))
    runs = list((small.folder / ".trtx" / "runs").rglob("*.json"))
    assert {path.name for path in runs} >= {"plan.json", "job.json", "result.json"}
    found = [key for path in (*manifests, *runs) for key in _keys(json.loads(path.read_bytes()))]
    found += [path.parent.name for path in manifests]
    assert len(found) >= 5
    assert all(re.fullmatch(r"[0-9a-f]{64}", key) for key in found)


def _keys(value: Any) -> Iterator[str]:
    """Every value under the name `key`, at any depth."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        if name == "key":
            yield member
        yield from _keys(member)
