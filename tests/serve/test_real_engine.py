"""`trtx serve` as a user runs it, on the engine of the quickstart."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess

import httpx
from support.project import Project

PACKAGE = "out/quickstart/cpu/int8"


def test_the_line_it_prints_gets_an_answer_and_a_stop_signal_ends_it_well(quickstart: Project) -> None:
    argv = quickstart.argv("serve", PACKAGE, "--port", 0, "--kv-cache-size", "8MiB")
    with subprocess.Popen(
        argv, cwd=quickstart.folder, env=dict(quickstart.environ), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            serving, _, line = (process.stderr.readline() for _ in range(3))
            found = re.search(r"serving quickstart on (http://127\.0\.0\.1:\d+)", serving)
            assert found, serving
            words = shlex.split(line)
            assert words[0] == "curl"
            assert words[2].startswith(found[1])
            answer = httpx.post(words[2], json=json.loads(words[-1]), timeout=60).json()
            assert answer["usage"]["completion_tokens"] > 0
            assert answer["choices"][0]["finish_reason"] in ("stop", "length")
            metrics = httpx.get(f"{found[1]}/metrics").text
            assert f"trtx_output_tokens_total {float(answer['usage']['completion_tokens'])}" in metrics
            process.send_signal(signal.SIGTERM)
            assert process.stderr.read() == "stopped\n"
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


def test_a_port_that_is_taken_is_one_message_and_an_exit_code(quickstart: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = quickstart.trtx("serve", PACKAGE, "--port", port)
    assert done.returncode == 6
    assert done.stderr.splitlines() == [
        f"error: cannot listen on 127.0.0.1:{port}",
        "  why: another program listens there",
        f"  fix: choose another port, such as --port {port + 1}",
    ]
