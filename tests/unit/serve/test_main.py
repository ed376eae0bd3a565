from __future__ import annotations

import json
import shlex
import socket
from pathlib import Path

import pytest

from trtx.errors import EnvironmentProblem
from trtx.serve.main import bind, curl_line, served_name, url_of


def test_a_port_in_use_is_a_problem_with_another_port_to_try() -> None:
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(EnvironmentProblem, match=f"cannot listen on 127.0.0.1:{port}") as problem:
            bind("127.0.0.1", port)
    assert problem.value.why == "another program listens there"
    assert f"--port {port + 1}" in problem.value.fix


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_a_problem(host: str) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot listen on") as problem:
        bind(host, 0)
    assert problem.value.why


def test_a_port_can_be_used_again_right_after_a_server_ended() -> None:
    with bind("127.0.0.1", 0) as first:
        first.listen()
        address = first.getsockname()
        with socket.create_connection(address) as client:
            accepted, _ = first.accept()
            accepted.close()
            assert client.recv(1) == b""
    bind(*address).close()


def test_events_are_not_held_back_by_the_network_stack() -> None:
    with bind("127.0.0.1", 0) as listener:
        # asyncio sets TCP_NODELAY on connections of such a socket, and of no other.
        assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")])  # noqa: S104
def test_the_url_is_one_that_a_client_on_this_machine_can_use(host: str, shown: str) -> None:
    with bind(host, 0) as listener:
        assert url_of(listener) == f"http://{shown}:{listener.getsockname()[1]}"


@pytest.mark.parametrize("chat", [True, False])
def test_the_line_to_paste_is_a_valid_request_even_for_an_odd_name(chat: bool) -> None:
    words = shlex.split(curl_line("http://127.0.0.1:8000", "it's\na model", chat=chat))
    assert words[:3] == ["curl", "-s", f"http://127.0.0.1:8000/v1/{'chat/' if chat else ''}completions"]
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == "it's\na model"
    assert ("messages" in body) == chat


def test_a_model_is_named_after_its_deployment_folder(tmp_path: Path) -> None:
    assert served_name(tmp_path / "llama-fp8" / "engine") == "llama-fp8"
    assert served_name(tmp_path / "llama-fp8") == "llama-fp8"
    assert served_name(Path("/engine")) == "model"
