from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from support.engines import FakePrograms, expected_tokens, make_card, make_engine, make_tokenizer
from support.servers import MODEL, RunningServer, running_server

from trtx.runtime.engine import Engine

LONG: dict[str, Any] = {"prompt": [65], "max_tokens": 60, "temperature": 0, "ignore_eos": True}
ENDLESS = LONG | {"max_tokens": 4000}
LONG_TEXT = make_tokenizer().decode(expected_tokens([65], 60, stop=None))


class GatedPrograms(FakePrograms):
    """Decode waits at a gate, so that a test can act in the middle of a request, which is long."""

    def __init__(self) -> None:
        super().__init__(make_card(max_batch_size=1, max_seq_len=4096), num_blocks=1200)
        self.gate = threading.Semaphore(0)

    def step(self, *inputs: Any) -> Any:
        begins_a_prompt = 0 in inputs[1]
        assert begins_a_prompt or self.gate.acquire(timeout=20)
        return super().step(*inputs)

    def open(self) -> None:
        self.gate.release(100_000)


@pytest.fixture
def gated() -> Iterator[tuple[RunningServer, GatedPrograms]]:
    programs = GatedPrograms()
    with running_server(Engine(programs, make_tokenizer())) as server:
        yield server, programs
        programs.open()
        server.until_idle()


def read_metrics(server: RunningServer) -> dict[str, float]:
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = [line for line in response.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def step_until(gated: tuple[RunningServer, GatedPrograms], condition: Callable[[], bool]) -> None:
    """Let the engine run, one step after another, until something has happened."""
    server, programs = gated

    def look() -> bool:
        programs.gate.release()
        return condition()

    server.until(look)


def test_a_client_that_leaves_a_stream_frees_its_blocks(gated: tuple[RunningServer, GatedPrograms]) -> None:
    server, _ = gated
    with server.client.stream("POST", "/v1/completions", json=ENDLESS | {"stream": True}) as response:
        lines = response.iter_lines()  # httpx closes the connection with its iterator
        next(lines)
        assert server.engine.load_now.kv_blocks_used == 1
    step_until(gated, lambda: server.engine.load_now.kv_blocks_used == 0)
    assert server.engine.stats.finished["cancelled"] == 1


def test_a_client_that_leaves_a_whole_answer_frees_its_blocks(gated: tuple[RunningServer, GatedPrograms]) -> None:
    server, _ = gated
    with pytest.raises(httpx.ReadTimeout):
        server.client.post("/v1/completions", json=ENDLESS, timeout=0.2)
    step_until(gated, lambda: server.engine.load_now.kv_blocks_used == 0)
    assert server.engine.stats.finished["cancelled"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_waiting_is_taken_out_of_the_queue(
    gated: tuple[RunningServer, GatedPrograms], stream: bool
) -> None:
    server, _ = gated
    with server.client.stream("POST", "/v1/completions", json=ENDLESS | {"stream": True}) as first:
        lines = first.iter_lines()  # httpx closes the connection with its iterator
        next(lines)
        body = json.dumps(LONG | {"stream": stream})
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        with socket.create_connection((server.client.base_url.host, server.client.base_url.port)) as connection:
            connection.sendall(f"{head}content-type: application/json\r\n\r\n{body}".encode())
            step_until(gated, lambda: server.engine.load_now.waiting == 1)
        step_until(gated, lambda: server.engine.load_now.waiting == 0)
        assert server.engine.load_now.running == 1
        assert server.engine.stats.finished["cancelled"] == 1


def test_a_client_that_does_not_read_does_not_stop_others(server: RunningServer) -> None:
    with server.client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as slow:
        for _ in range(3):
            assert server.post("/v1/completions", LONG).status_code == 200
        events = [json.loads(line[6:]) for line in slow.iter_lines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == LONG_TEXT


def test_many_requests_at_once_all_get_their_own_answer(server: RunningServer) -> None:
    tokenizer = make_tokenizer()
    found: dict[int, str] = {}

    def ask(n: int) -> None:
        body = {"prompt": [n, n + 1], "max_tokens": 20, "temperature": 0}
        if n % 2:
            events = server.events("/v1/completions", body)
            found[n] = "".join(event["choices"][0]["text"] for event in events)
        else:
            found[n] = server.post("/v1/completions", body).json()["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: tokenizer.decode(expected_tokens([n, n + 1], 20)) for n in range(24)}


def test_health_and_models_describe_the_server(server: RunningServer) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    (model,) = server.client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == (MODEL, "model", 64)
    assert server.client.get(f"/v1/models/{MODEL}").json() == model


def test_metrics_count_requests_tokens_and_latencies() -> None:
    with running_server(make_engine()) as server:
        server.post("/v1/completions", LONG | {"max_tokens": 10})
        server.post("/v1/completions", LONG | {"n": 0})
        found = read_metrics(server)
    assert found['trtx_requests_total{reason="length"}'] == 1
    assert found["trtx_requests_refused_total"] == 1
    assert found["trtx_prompt_tokens_total"] == 1
    assert found["trtx_output_tokens_total"] == 10
    assert found["trtx_time_to_first_token_seconds_count"] == 1
    assert found["trtx_inter_token_latency_seconds_count"] == 9
    assert found["trtx_request_seconds_count"] == found["trtx_queue_seconds_count"] == 1
    assert found["trtx_request_seconds_sum"] >= found["trtx_time_to_first_token_seconds_sum"] > 0
    assert found["trtx_kv_cache_usage_ratio"] == 0
    assert found["trtx_preemptions_total"] == found["trtx_cached_prompt_tokens_total"] == 0
    assert found['trtx_steps_total{kind="decode"}'] == 9
    assert found["trtx_kv_blocks"] == 64


def test_metrics_show_what_runs_and_waits(gated: tuple[RunningServer, GatedPrograms]) -> None:
    server, programs = gated
    thread = threading.Thread(target=server.post, args=("/v1/completions", LONG | {"prompt": [[1], [2]]}))
    thread.start()
    server.until(lambda: server.engine.load_now.running == 1)
    found = read_metrics(server)
    assert (found["trtx_requests_running"], found["trtx_requests_waiting"]) == (1, 1)
    assert found["trtx_kv_blocks_used"] == 1
    programs.open()
    thread.join()


def test_two_servers_in_one_process_do_not_share_their_metrics(server: RunningServer) -> None:
    server.post("/v1/completions", LONG)
    with running_server(make_engine()) as other:
        assert read_metrics(other)["trtx_output_tokens_total"] == 0


def test_an_engine_failure_is_told_to_those_who_wait_and_makes_the_server_unhealthy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    programs = GatedPrograms()
    with running_server(Engine(programs, make_tokenizer())) as server:
        with server.client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            programs.fail_with = RuntimeError("index out of bounds")
            with caplog.at_level(logging.CRITICAL, "trtx"):
                programs.open()
                *_, last = [line for line in lines if line]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert re.search("the engine has failed: index out of bounds", error["message"])
        assert error["type"] == "server_error"
        health = server.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "unavailable")
        assert "index out of bounds" in health.json()["reason"]
        for stream in (False, True):
            later = server.post("/v1/completions", LONG | {"stream": stream})
            assert (later.status_code, later.json()["error"]["code"]) == (503, "engine_unavailable")


def test_streams_that_break_off_at_random_leave_no_block_behind(server: RunningServer) -> None:
    draw = random.Random(5)
    cuts = {n: draw.choice((None, 0, 1, 5)) for n in range(100)}
    texts: dict[int, str] = {}

    async def ask(client: httpx.AsyncClient, n: int) -> None:
        body = {"prompt": [n, 1], "max_tokens": 40, "temperature": 0, "ignore_eos": True, "stream": True}
        events = []
        async with client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            if cuts[n] == 0:
                return
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    events.append(json.loads(line[6:])["choices"][0]["text"])
                if len(events) == cuts[n]:
                    return
        texts[n] = "".join(events)

    async def ask_all() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
            await asyncio.gather(*(ask(client, n) for n in cuts))

    asyncio.run(ask_all())
    server.until_idle()
    decode = make_tokenizer().decode
    assert all(texts[n] == decode(expected_tokens([n, 1], 40, stop=None)) for n in texts)
    assert {n for n, cut in cuts.items() if cut is None} <= texts.keys()
