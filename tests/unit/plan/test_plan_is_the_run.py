"""For random recipes: processes get the argv, the environment and the job file that the saved plan has."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.plans import edited, make_facts, pin
from support.steps import Watcher, install_stage

from trtx.cache.store import Store
from trtx.files import write_text
from trtx.plan.environment import fill_environment
from trtx.plan.execute import Execution
from trtx.plan.make import Options, make_plan
from trtx.plan.record import create_run
from trtx.plan.saved import open_plan, save_plan
from trtx.plan.survey import survey
from trtx.recipe.cells import make_cells
from trtx.recipe.schema import Recipe
from trtx.runners.base import Ended
from trtx.runners.local import LocalRunner
from trtx.stages import worker
from trtx.stages.job import ATTEMPT_VARIABLE, JOB_NAME, PARENT_VARIABLE, RESULT_NAME, attempt_folder, dump_file

# Stands where the plan has the interpreter of the steps: what a process is really given ends up in files.
RECORDER = """#!/bin/sh
cat /proc/$$/cmdline > seen.argv
cat /proc/$$/environ > seen.environ
cat job.json > seen.job
"""
ENVIRON = {
    "PATH": os.environ["PATH"],
    "HOME": "/home/somebody",
    "HF_TOKEN": "hf_secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "UNRELATED": "must not reach a step",
}
# What a runner adds for itself; nothing of it can change what a step makes.
OF_THE_RUNNER = {ATTEMPT_VARIABLE, PARENT_VARIABLE}


class RecordingRunner(LocalRunner):
    """Starts real processes; when one ends, its job is done here, so that the steps after it can start."""

    def wait(self, timeout_s: float) -> list[Ended]:
        folders = {step: task.folder for step, (task, _) in self._running.items()}
        ended = super().wait(timeout_s)
        for end in ended:
            folder = attempt_folder(folders[end.step], 1)
            result = worker.run_job(worker.read_job(folders[end.step] / JOB_NAME), folder)
            write_text(folder / RESULT_NAME, dump_file(result))
        return ended


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Valid recipes with one or two variants, one or two targets, and everything that a step may depend on varied."""
    algorithms = draw(
        st.lists(st.sampled_from(["none", "int8_wo", "int8_sq", "fp8"]), min_size=1, max_size=2, unique=True)
    )
    names = [f"v{number}" for number in range(len(algorithms))]
    limits = {
        "max_batch_size": draw(st.integers(1, 16)),
        "max_num_tokens": draw(st.integers(128, 1024)),
        "max_seq_len": draw(st.integers(128, 512)),
    }
    targets: dict[str, Any] = {"cpu": {"gpu": "cpu"}}
    if draw(st.booleans()):
        targets["fast"] = {"gpu": "cpu-avx512", "quantization": names[:1], "engine": {"dtype": "bfloat16"}}
    workload = {"input_tokens": draw(st.integers(1, 64)), "output_tokens": draw(st.integers(1, 64)), "concurrency": [1]}
    return edited(
        {
            "name": draw(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)),
            "quantization": {
                name: {"algorithm": algorithm, "calibration": {"seed": draw(st.integers(0, 9)), "samples": 4}}
                for name, algorithm in zip(names, algorithms, strict=True)
            },
            "targets": targets,
            "engine": {"limits": limits, "kv_cache": {"tokens_per_block": draw(st.sampled_from([8, 16, 64]))}},
            "benchmark": {"workloads": {"chat": workload}, "repeats": draw(st.integers(1, 5))}
            if draw(st.booleans())
            else None,
            "package": {"image": draw(st.sampled_from(["registry.example.com/a", "local/b"]))},
            "serving": {"port": draw(st.integers(1, 65535))},
        }
    )


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    path = tmp_path / "recorder"
    path.write_text(RECORDER)
    path.chmod(0o755)
    return path


COUNTER = itertools.count()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=recipes(), max_parallel=st.integers(1, 3))
def test_what_was_executed_is_what_was_planned(
    recipe: dict[str, Any], max_parallel: int, recorder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_stage(monkeypatch)
    folder = tmp_path / str(next(COUNTER))
    made = Recipe.model_validate(recipe)
    facts = make_facts(folder)
    facts = type(facts)(**{**vars(facts), "python": str(recorder)})
    options = Options(max_parallel=max_parallel)
    save_plan(folder / "plan.json", make_plan(make_cells(made), Path("recipe.yaml"), pin(made), facts, options))
    planned = {step["id"]: step for step in json.loads((folder / "plan.json").read_bytes())["steps"]}

    plan = open_plan(folder / "plan.json")
    store, record = Store(facts.cache_dir), create_run(folder, plan)
    store.prepare()
    execution = Execution(plan, store, RecordingRunner(plan.max_parallel), record, ENVIRON, Watcher())
    execution.run(survey(plan, store))

    assert not execution.errors
    for step in plan.steps:
        seen, expected = record.step_folder(step.id), planned[step.id]
        argv = (seen / "seen.argv").read_bytes().decode().split("\0")[:-1]
        assert argv[-len(expected["argv"]) :] == expected["argv"]
        environ = dict(pair.split("=", 1) for pair in (seen / "seen.environ").read_text().split("\0")[:-1])
        assert {name: environ.pop(name) for name in OF_THE_RUNNER}[ATTEMPT_VARIABLE] == "1"
        assert environ == fill_environment(expected["environment"], tuple(expected["inherit"]), ENVIRON)
        assert (seen / "seen.job").read_text() == dump_file(step.job(plan))
        assert json.loads((seen / "seen.job").read_bytes())["key"] == expected["key"]
        if step.stage not in ("download", "dataset"):
            assert not {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"} & environ.keys()


def test_nothing_of_a_plan_is_lost_in_its_file(tmp_path: Path) -> None:
    made = Recipe.model_validate(edited({}))
    plan = make_plan(make_cells(made), Path("recipe.yaml"), pin(made), make_facts(tmp_path), Options(files={"a": "b"}))
    save_plan(tmp_path / "plan.json", plan)
    assert open_plan(tmp_path / "plan.json") == plan
