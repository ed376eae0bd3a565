"""The official client, unchanged."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from support.engines import expected_tokens, make_tokenizer
from support.servers import MODEL, RunningServer

TOKENIZER = make_tokenizer()
USER = {"role": "user", "content": "hi"}
CHAT_TEXT = TOKENIZER.decode(expected_tokens(TOKENIZER.render_chat([USER]), 8))


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_completions_whole_and_streamed(client: openai.OpenAI) -> None:
    expected = TOKENIZER.decode(expected_tokens(TOKENIZER.encode("hello"), 8))
    asked = {"model": MODEL, "prompt": "hello", "max_tokens": 8, "temperature": 0}
    assert client.completions.create(**asked).choices[0].text == expected
    with client.completions.create(**asked, stream=True) as stream:
        assert "".join(event.choices[0].text for event in stream) == expected


def test_chat_whole_and_streamed_with_usage(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": [USER], "max_completion_tokens": 8, "temperature": 0, "user": "me"}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == CHAT_TEXT
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    with client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        *pieces, last = list(stream)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == CHAT_TEXT
    assert last.usage == answer.usage


def test_an_answer_goes_back_into_the_conversation(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=[USER], max_tokens=4).choices[0].message
    answer.content = "ok"
    client.chat.completions.create(model=MODEL, messages=[USER, answer, USER], max_tokens=4)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "trtx"


def test_errors_arrive_as_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens") as refused:
        client.completions.create(model=MODEL, prompt="a", max_tokens=0)
    assert refused.value.param == "max_tokens"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-9", prompt="a")
    assert missing.value.code == "model_not_found"
