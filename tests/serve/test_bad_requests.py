from __future__ import annotations

import json
from typing import Any

import pytest
from support.servers import RunningServer

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT: dict[str, Any] = {"prompt": "hello"}
MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def refused(server: RunningServer, path: str, body: dict[str, Any], status: int = 400) -> dict[str, Any]:
    """The error of a request that must be refused in OpenAI's shape."""
    response = server.post(path, body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        # Out of range.
        (TEXT, {"max_tokens": 0}, "max_tokens"),
        (TEXT, {"max_tokens": -3}, "max_tokens"),
        (TEXT, {"temperature": -1}, "temperature"),
        (TEXT, {"top_p": 0}, "top_p"),
        (TEXT, {"top_p": 2}, "top_p"),
        (TEXT, {"top_k": -2}, "top_k"),
        (TEXT, {"min_p": 2}, "min_p"),
        (TEXT, {"n": 0}, "n"),
        (TEXT, {"n": 129}, "n"),
        (TEXT, {"logprobs": 21}, "logprobs"),
        (TEXT, {"logprobs": -1}, "logprobs"),
        (TEXT, {"logit_bias": {"5": 101}}, "logit_bias"),
        (TEXT, {"logit_bias": {"999": 1}}, "logit_bias"),
        (TEXT, {"logit_bias": {"five": 1}}, "logit_bias"),
        (TEXT, {"logit_bias": {"5": "1"}}, "logit_bias"),
        (TEXT, {"presence_penalty": 2.5}, "presence_penalty"),
        (TEXT, {"frequency_penalty": -2.5}, "frequency_penalty"),
        (TEXT, {"repetition_penalty": 0}, "repetition_penalty"),
        (TEXT, {"min_tokens": 17}, "min_tokens"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (TEXT, {"stop": ""}, "stop"),
        (TEXT, {"stop": ["a", ""]}, "stop"),
        (TEXT, {"stop_token_ids": [999]}, "stop_token_ids"),
        (TEXT, {"max_tokens": 1000}, "max_tokens"),
        (TEXT, {"prompt": "x" * 64, "max_tokens": 1}, "prompt"),
        (CHAT, {"max_tokens": 1000}, "max_tokens"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 64}]}, "prompt"),
        # Of the wrong type.
        (TEXT, {"prompt": 5}, "prompt"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": [[]]}, "prompt"),
        (TEXT, {"prompt": ["a", 1]}, "prompt"),
        (TEXT, {"prompt": [True]}, "prompt"),
        (TEXT, {"prompt": [1.5]}, "prompt"),
        (TEXT, {"prompt": [-1]}, "prompt"),
        (TEXT, {"prompt": None}, "prompt"),
        (TEXT, {"max_tokens": "5"}, "max_tokens"),
        (TEXT, {"max_tokens": 5.5}, "max_tokens"),
        (TEXT, {"max_tokens": True}, "max_tokens"),
        (TEXT, {"temperature": "hot"}, "temperature"),
        (TEXT, {"stream": "yes"}, "stream"),
        (TEXT, {"stop": 5}, "stop"),
        (TEXT, {"stop": [5]}, "stop"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        (TEXT, {"model": 5}, "model"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hi"}, "messages"),
        (CHAT, {"messages": [{"role": "wizard", "content": "hi"}]}, "messages.0.role"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": "hi", "mood": "good"}]}, "messages.0.mood"),
        (CHAT, {"messages": [{"role": "user", "content": "hi", "tool_calls": []}]}, "messages.0.tool_calls"),
        # What this server cannot do.
        (TEXT, {"n": True}, "n"),
        (TEXT, {"best_of": 3}, "best_of"),
        (TEXT, {"suffix": "end"}, "suffix"),
        (TEXT, {"logprobs": True}, "logprobs"),
        (CHAT, {"tools": "f"}, "tools"),
        (CHAT, {"tool_choice": "required"}, "tool_choice"),
        (CHAT, {"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
        # Unknown, or contradicting each other.
        (TEXT, {"temprature": 1}, "temprature"),
        (TEXT, {"max_completion_tokens": 5}, "max_completion_tokens"),
        (CHAT, {"prompt": "hi"}, "prompt"),
        (TEXT, {"stream_options": {"include_usage": True}}, "stream_options"),
        (TEXT, {"stream": True, "stream_options": {"include_cost": True}}, "stream_options.include_cost"),
        (CHAT, {"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"messages": [{"role": "user", "content": "a", "tool_call_id": "1"}]}, "messages.0.tool_call_id"),
        (CHAT, {"messages": [{"role": "assistant"}]}, "messages.0.content"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(
    server: RunningServer, path: str, fields: dict[str, Any], param: str
) -> None:
    error = refused(server, path, (PROMPT if path == TEXT else MESSAGES) | fields)
    assert error["param"] == param
    assert param.split(".")[-1] in error["message"]


def test_a_mistyped_field_is_answered_with_the_nearest_name(server: RunningServer) -> None:
    assert "did you mean 'temperature'?" in refused(server, TEXT, PROMPT | {"temprature": 1})["message"]


def test_a_request_too_long_for_the_engine_has_a_code_for_programs(server: RunningServer) -> None:
    error = refused(server, TEXT, PROMPT | {"max_tokens": 100})
    assert error["code"] == "context_length_exceeded"
    assert "takes at most 64" in error["message"]


def test_a_refused_stream_is_an_error_and_not_a_stream(server: RunningServer) -> None:
    refused(server, TEXT, PROMPT | {"max_tokens": 100, "stream": True})


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_another_model_is_not_found(server: RunningServer, path: str) -> None:
    error = refused(server, path, PROMPT | MESSAGES | {"model": "gpt-9"}, 400)
    assert error["param"] in ("messages", "prompt")
    body = PROMPT if path == TEXT else MESSAGES
    assert refused(server, path, body | {"model": "gpt-9"}, 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"prompt": "hello", "prompt',
        b"\xff\xfe",
        b'{"prompt": "\\ud800"}',
        b'{"\\ud800": 1, "prompt": "a"}',
        b'{"prompt": "a", "stop": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}",
        b'{"prompt": "a", "seed": 1e400}',
        b'{"prompt": ' + b"[" * 100_000,
    ],
)
def test_a_body_that_makes_no_sense_is_a_bad_request(server: RunningServer, content: bytes) -> None:
    response = server.client.post(TEXT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


def test_a_body_that_is_not_sent_as_json_is_told_how(server: RunningServer) -> None:
    response = server.client.post(TEXT, content=json.dumps(PROMPT), headers={"content-type": "text/plain"})
    assert response.status_code == 400
    assert "content-type: application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2/nothing", 404), ("GET", TEXT, 405), ("POST", "/health", 405), ("GET", "/v1/models/other", 404)],
)
def test_unknown_paths_and_methods_have_the_same_shape_of_error(
    server: RunningServer, method: str, path: str, status: int
) -> None:
    response = server.client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"
