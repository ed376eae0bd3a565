"""Runs are found by when they began, however close to one another."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

from trtx.plan.record import create_run, find_run, runs_newest_first


def test_runs_that_begin_in_one_second_stay_in_order(tmp_path: Path) -> None:
    plan = Mock(to_json=dict)
    runs = [create_run(tmp_path, plan).id for _ in range(40)]
    assert len(set(runs)) == 40
    assert runs == sorted(runs)
    assert [record.id for record in runs_newest_first(tmp_path)] == runs[::-1]
    assert find_run(tmp_path).id == runs[-1]
