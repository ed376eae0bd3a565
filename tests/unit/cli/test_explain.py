"""What `trtx why` prints for states that are hard to bring about: a remote's entry, many factors of one origin."""

from __future__ import annotations

import io
from pathlib import Path

from support.plans import plan_of

from trtx.cli.explain import explain_json, print_explanation
from trtx.console import Console
from trtx.plan.factor_origins import Origins
from trtx.plan.survey import State, StepStatus
from trtx.plan.why import Entries, Explanation, explain


def explanation(tmp_path: Path, state: State) -> Explanation:
    plan = plan_of(tmp_path)
    statuses = [StepStatus(step, state, "reason") for step in plan.steps]
    return explain(plan, statuses, Entries(()), plan.step("build/cpu/int8"))


def shown(tmp_path: Path, state: State) -> str:
    console = Console(io.StringIO(), io.StringIO(), color=False)
    print_explanation(console, plan_of(tmp_path), explanation(tmp_path, state), Origins(), tmp_path)
    assert isinstance(console.err, io.StringIO)
    return console.err.getvalue()


def test_an_entry_that_a_remote_has_is_fetched_and_nothing_runs_for_it(tmp_path: Path) -> None:
    text = shown(tmp_path, State.REMOTE)
    assert "nothing runs for it" in text
    assert "cost" not in text


def test_a_model_s_shape_is_one_line_and_every_other_factor_has_its_own(tmp_path: Path) -> None:
    text = shown(tmp_path, State.TO_RUN)
    assert "params.model.*" in text
    assert "params.model.hidden_size" not in text
    assert "params.limits.max_seq_len" in text


def test_json_has_every_factor_and_what_is_in_no_key(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    body = explain_json(plan, [explanation(tmp_path, State.TO_RUN)], Origins(), tmp_path)
    names = [factor["factor"] for factor in body["steps"][0]["factors"]]
    assert "params.model.hidden_size" in names
    assert "step.runner" in body["not_in_keys"]
