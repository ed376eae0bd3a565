"""What a plan needs the network for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub import Hub, Repository, commit_of, serve_hub
from support.plans import plan_of
from unit.sources.conftest import MODEL_FILES

from trtx.errors import EnvironmentProblem
from trtx.models.sources.base import Request, find_source
from trtx.plan.offline import check_offline
from trtx.plan.survey import State, StepStatus

OFFLINE = {"TRTX_OFFLINE": "1"}


def statuses(tmp_path: Path, url: str, state: State = State.TO_RUN) -> list[StepStatus]:
    plan = plan_of(tmp_path, {"model.source": url}, identity=commit_of("first"))
    return [StepStatus(plan.step("download/model"), state, "")]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as running:
        running.repositories["models/owner/tiny"] = Repository(dict(MODEL_FILES))
        yield running


@pytest.mark.parametrize("url", ["hf://owner/tiny", "s3://bucket/model", "https://example.org/model"])
def test_a_step_that_fetches_is_named_with_its_source(tmp_path: Path, url: str) -> None:
    environ = {**OFFLINE, "HF_HOME": str(tmp_path)}
    with pytest.raises(EnvironmentProblem, match="download/model needs the network") as caught:
        check_offline(statuses(tmp_path, url), environ)
    assert url in caught.value.why
    check_offline(statuses(tmp_path, url), {})
    check_offline(statuses(tmp_path, url, State.CACHED), environ)
    check_offline(statuses(tmp_path, url, State.NOT_NEEDED), environ)


@pytest.mark.parametrize("url", ["demo://tiny-llama", "file:///models/mine"])
def test_sources_of_this_machine_need_no_network(tmp_path: Path, url: str) -> None:
    check_offline(statuses(tmp_path, url), OFFLINE)


def test_a_commit_in_the_hubs_own_cache_is_at_hand_when_all_of_it_is_there(tmp_path: Path, hub: Hub) -> None:
    environ = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "TRTX_CACHE_DIR": str(tmp_path / "c")}
    request = Request("hf://owner/tiny", "model", environ=environ)
    (tmp_path / "out").mkdir()
    find_source(request.url).resolve(request)
    with pytest.raises(EnvironmentProblem):
        check_offline(statuses(tmp_path, request.url), {**environ, **OFFLINE})
    find_source(request.url).fetch(request, commit_of("first"), tmp_path / "out", lambda done, total, unit: None)
    check_offline(statuses(tmp_path, request.url), {**environ, **OFFLINE})
