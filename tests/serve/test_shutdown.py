from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]


@contextmanager
def server_process(drain_s: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    argv = [sys.executable, "-m", "support.serve_slowly", str(drain_s)]
    with subprocess.Popen(
        argv, cwd=ROOT / "tests", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, process.stderr.read() if process.stderr else ""
            yield process, url
        finally:
            process.kill()


def ask(num_tokens: int) -> dict[str, object]:
    return {"prompt": [65], "max_tokens": num_tokens, "ignore_eos": True, "stream": True}


def test_a_stop_signal_lets_requests_end_takes_no_new_ones_and_is_no_failure() -> None:
    with server_process(drain_s=20) as (process, url):
        with httpx.Client() as client, client.stream("POST", f"{url}/v1/completions", json=ask(60)) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            refused = wait_until_refused(url)
            rest = [line for line in lines if line]
        out, err = process.communicate(timeout=20)
    assert refused
    assert rest[-1] == "data: [DONE]"
    assert (process.returncode, out, err) == (0, "stopped\n", "")


def wait_until_refused(url: str) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/health")
        except httpx.ConnectError:
            return True
    return False


def test_requests_that_outlast_the_drain_are_told_so_and_the_process_ends() -> None:
    with server_process(drain_s=1) as (process, url):
        with (
            httpx.Client() as client,
            client.stream("POST", f"{url}/v1/completions", json=ask(8000), timeout=20) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
        out, err = process.communicate(timeout=20)
    assert "the server is shutting down" in last
    assert (process.returncode, out, err) == (0, "stopped\n", "")
    assert time.monotonic() - started < 10


def test_a_second_signal_does_not_wait_for_the_drain() -> None:
    with server_process(drain_s=60) as (process, url):
        with (
            httpx.Client() as client,
            client.stream("POST", f"{url}/v1/completions", json=ask(8000), timeout=20) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            started = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert wait_until_refused(url)
            process.send_signal(signal.SIGINT)
            last = [line for line in lines if line][-1]
        out, err = process.communicate(timeout=20)
    assert "the server is shutting down" in last
    assert (process.returncode, out, err) == (0, "stopped\n", "")
    assert time.monotonic() - started < 20
