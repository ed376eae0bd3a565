"""Machines of one process with caches of their own, that share remotes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.plans import plan_of
from support.remotes import Place, make_store
from support.steps import Behaviour, InlineRunner, Watcher, install_stage, states

from trtx.plan.execute import Execution
from trtx.plan.record import create_run
from trtx.plan.remotes import Remotes, open_remotes
from trtx.plan.steps import Plan
from trtx.plan.survey import State, survey


class Machine:
    """One machine, in this process: `apply` runs the plan against its own cache and the remotes."""

    def __init__(self, folder: Path, remotes: str, monkeypatch: pytest.MonkeyPatch, **environ: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.plan = plan_of(folder, select="cpu/fp32")
        self.store = make_store(Path(self.plan.cache_dir))
        self.runner = InlineRunner()
        self.environ = {"TRTX_CACHE_REMOTES": remotes, "XDG_CONFIG_HOME": str(folder), **environ}
        self.monkeypatch = monkeypatch

    def remotes(self) -> Remotes:
        remotes = open_remotes(self.environ)
        assert remotes is not None
        return remotes

    def survey(self) -> dict[str, State]:
        return states(survey(self.plan, self.store, None, self.remotes()))

    def apply(self, behaviours: dict[str, Behaviour] | None = None, **options: Any) -> Execution:
        install_stage(self.monkeypatch, behaviours)
        self.runner = InlineRunner()
        record = create_run(self.folder, self.plan)
        execution = Execution(self.plan, self.store, self.runner, record, {}, Watcher(), **options)
        execution.remotes = self.remotes()
        execution.run(survey(self.plan, self.store, None, execution.remotes))
        return execution


MakeMachine = Callable[..., Machine]


def remotes_of(place: Place, settings: str = "mode=read-write") -> str:
    endpoint = f";endpoint={place.endpoint}" if place.endpoint else ""
    return f"{place.url};name=shared;{settings}{endpoint}"


def leaf(plan: Plan) -> str:
    return plan.leaves()[0].id
