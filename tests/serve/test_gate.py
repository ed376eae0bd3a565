"""Keys, sizes, names of requests, the queue's end and the log."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from support.engines import FakePrograms, make_card, make_engine, make_tokenizer
from support.servers import MODEL, RunningServer, running_server

from trtx import __version__
from trtx.runtime.engine import Engine
from trtx.serve.gate import Guard

PATH = "/v1/completions"
ASK: dict[str, Any] = {"prompt": "secret", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    return []


@pytest.fixture(scope="module")
def guarded(lines: list[dict[str, Any]]) -> Iterator[RunningServer]:
    guard = Guard(max_body_bytes=1000, api_keys=("first-key", "zweiter schlüssel"))
    with running_server(make_engine(), guard=guard, log=lines.append) as server:
        yield server
        server.until_idle()


def post(server: RunningServer, key: str | None, **kwargs: Any) -> httpx.Response:
    headers = {} if key is None else {"authorization": key.encode()}
    return server.client.post(PATH, headers=headers | kwargs.pop("headers", {}), **(kwargs or {"json": ASK}))


@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer other", "first-key", "Basic first-key"])
def test_without_a_key_that_is_known_nothing_is_answered(guarded: RunningServer, key: str | None) -> None:
    response = post(guarded, key)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")


@pytest.mark.parametrize("key", ["Bearer first-key", "bearer first-key", "Bearer zweiter schlüssel"])
def test_every_key_opens(guarded: RunningServer, key: str) -> None:
    assert post(guarded, key).status_code == 200


def test_the_official_client_sends_its_key_and_knows_the_error(guarded: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="first-key", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
    with (
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="API key"),
    ):
        client.models.list()


@pytest.mark.parametrize("path", ["/health", "/health_generate", "/version", "/metrics", "/stats"])
def test_machines_that_look_after_the_server_need_no_key(guarded: RunningServer, path: str) -> None:
    assert guarded.client.get(path).status_code == 200


def test_version_and_statistics(guarded: RunningServer) -> None:
    post(guarded, "Bearer first-key")
    assert guarded.client.get("/version").json() == {"version": __version__}
    guarded.until_idle()
    found = guarded.client.get("/stats").json()
    assert found["output_tokens"] >= 4
    assert (found["running"], found["waiting"], found["kv_blocks_used"]) == (0, 0, 0)
    assert sum(step["output_tokens"] for step in found["steps"]) == found["output_tokens"]


def test_a_body_that_is_too_large_is_not_read(guarded: RunningServer) -> None:
    long = json.dumps(ASK | {"prompt": "x" * 2000}).encode()
    kind = {"content-type": "application/json"}
    for content in (long, iter([long[:500], long[500:]])):  # the second does not say how long it is
        response = post(guarded, "Bearer first-key", content=content, headers=kind)
        assert response.status_code == 413
        assert "1000 bytes" in response.json()["error"]["message"]


@pytest.mark.parametrize("given", ["my-request-7", "a" * 128])
def test_a_request_keeps_the_name_that_its_client_gave_it(guarded: RunningServer, given: str) -> None:
    response = post(guarded, None, json=ASK, headers={"x-request-id": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "a" * 129, "a b", "a\tb"])
def test_a_request_without_a_good_name_gets_one(guarded: RunningServer, given: str | None) -> None:
    headers = {} if given is None else {"x-request-id": given}
    names = {post(guarded, None, json=ASK, headers=headers).headers["x-request-id"] for _ in range(2)}
    assert len(names) == 2
    assert given not in names


def test_the_log_has_a_line_a_request_and_no_prompts(guarded: RunningServer, lines: list[dict[str, Any]]) -> None:
    lines.clear()
    with guarded.client.stream(
        "POST", PATH, json=ASK | {"stream": True}, headers={"authorization": "Bearer first-key", "x-request-id": "s"}
    ) as response:
        response.read()
    post(guarded, "Bearer first-key", json=ASK | {"top_p": 7}, headers={"x-request-id": "bad"})
    guarded.until(lambda: len(lines) == 2)
    stream, bad = lines
    assert (stream["request_id"], stream["status"], stream["path"]) == ("s", 200, PATH)
    assert (stream["prompt_tokens"], stream["completion_tokens"]) == (7, 4)
    assert stream["finish_reasons"] == ["length"]
    assert stream["duration_s"] > 0
    assert (bad["request_id"], bad["status"]) == ("bad", 400)
    assert "secret" not in json.dumps(lines)
    assert "first-key" not in json.dumps(lines)


class GatedPrograms(FakePrograms):
    """Every step waits at a gate."""

    def __init__(self) -> None:
        super().__init__(make_card(max_batch_size=1))
        self.gate = threading.Semaphore(0)

    def step(self, *tensors: Any) -> Any:
        assert self.gate.acquire(timeout=20)
        return super().step(*tensors)


def test_a_full_queue_says_when_to_come_again_and_has_room_again_later() -> None:
    programs = GatedPrograms()
    with running_server(Engine(programs, make_tokenizer()), max_waiting=2) as server:
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(server.post(PATH, ASK).status_code)) for _ in "abc"]
        for thread in threads:
            thread.start()
        server.until(lambda: server.engine.load_now.waiting == 2 or server.engine.load_now.running == 1)
        server.until(lambda: server.post(PATH, ASK | {"n": 3}).status_code == 429)
        refused = server.post(PATH, ASK | {"stream": True, "n": 3})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        programs.gate.release(1000)
        for thread in threads:
            thread.join()
        assert statuses == [200] * 3
        assert server.post(PATH, ASK | {"n": 3}).status_code == 200
        assert server.post(PATH, ASK | {"n": 4}).status_code == 400
        server.until_idle()
