"""A real Prometheus scrapes a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.engines import make_engine
from support.servers import RunningServer, running_server

from trtx.serve.main import bind

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="there is no prometheus: run tests/install")
LONG: dict[str, Any] = {"prompt": [65], "max_tokens": 20, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def busy_server() -> Iterator[RunningServer]:
    """A server that has answered three requests."""
    with running_server(make_engine()) as server:
        for _ in range(3):
            assert server.post("/v1/completions", LONG).status_code == 200
        yield server


@pytest.fixture(scope="module")
def prometheus(busy_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A Prometheus that looks at the server every half second."""
    folder: Path = tmp_path_factory.mktemp("prometheus")
    target = busy_server.url.removeprefix("http://")
    scrape = {"job_name": "trtx", "scrape_interval": "500ms", "static_configs": [{"targets": [target]}]}
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    assert PROMETHEUS is not None
    argv = [PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*argv, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait(timeout=30)


def ask(prometheus: httpx.Client, query: str) -> list[dict[str, Any]]:
    """What a query finds, as soon as it finds something."""
    deadline = time.monotonic() + 60
    while True:
        try:
            found: list[dict[str, Any]]
            found = prometheus.get("/api/v1/query", params={"query": query}).json()["data"]["result"]
        except (httpx.TransportError, ValueError, KeyError):  # it is still starting
            found = []
        if found:
            return found
        assert time.monotonic() < deadline, f"nothing for {query} within 60 s"
        time.sleep(0.1)


def test_prometheus_finds_what_the_server_counted(prometheus: httpx.Client) -> None:
    expected = {
        'up{job="trtx"}': 1,
        "trtx_output_tokens_total": 60,
        "trtx_inter_token_latency_seconds_count": 57,
        "trtx_time_to_first_token_seconds_count": 3,
        "trtx_request_seconds_count": 3,
        "trtx_queue_seconds_count": 3,
        'trtx_requests_total{reason="length"}': 3,
        "trtx_kv_cache_usage_ratio": 0,
        "trtx_preemptions_total": 0,
    }
    found = {query: float(ask(prometheus, query)[0]["value"][1]) for query in expected}
    assert found == expected


def test_quantiles_can_be_asked_for(prometheus: httpx.Client) -> None:
    query = "histogram_quantile(0.9, sum by (le) (trtx_inter_token_latency_seconds_bucket))"
    assert 0 < float(ask(prometheus, query)[0]["value"][1]) < 2.5


def test_the_names_follow_the_rules_of_prometheus(busy_server: RunningServer) -> None:
    assert PROMTOOL is not None
    text = busy_server.client.get("/metrics").content
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
