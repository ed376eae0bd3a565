"""The embedded engine in a real Triton Inference Server: answers, streams, batches, cancels, refuses, unloads."""

from __future__ import annotations

import json
import queue
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from support.triton import Triton, edit, make_input, rename

import trtx
from trtx.runtime.engine import Completion, Engine
from trtx.runtime.params import SamplingParams

MODEL = "quickstart"
PROMPT = "Return the "
LONG = {"text_input": PROMPT, "max_tokens": 240, "ignore_eos": True}


@pytest.fixture(scope="module")
def expected(package: Path) -> Completion:
    """What the engine itself says, without a server."""
    engine = Engine.load(package, kv_cache_bytes=8 * 2**20)
    return engine.generate([PROMPT], SamplingParams(max_tokens=24, temperature=0, ignore_eos=True))[0]


@pytest.fixture
def server(embedded: Triton) -> Iterator[Triton]:
    """A server that every test leaves idle, with every block back in the pool."""
    yield embedded
    embedded.until(lambda: embedded.metric("trtx_kv_blocks_used", model=MODEL) == 0)


def stream_inputs(max_tokens: int) -> list[grpc.InferInput]:
    return [
        make_input("text_input", [[PROMPT.encode()]], np.object_, "BYTES"),
        make_input("max_tokens", [[max_tokens]], np.int32, "INT32"),
        make_input("stream", [[True]], np.bool_, "BOOL"),
        make_input("ignore_eos", [[True]], np.bool_, "BOOL"),
    ]


@pytest.mark.parametrize("model", [MODEL, "whole"])
def test_greedy_tokens_are_those_of_the_engine_itself(server: Triton, expected: Completion, model: str) -> None:
    answer = server.ask(model, {"text_input": PROMPT, "max_tokens": 24, "ignore_eos": True})
    assert answer["text_output"] == expected.text
    assert tuple(answer["output_ids"]) == expected.token_ids
    assert (answer["finish_reason"], answer["num_output_tokens"]) == ("length", 24)


def test_a_stream_over_grpc_joins_to_the_same_text(server: Triton) -> None:
    whole = server.ask(MODEL, LONG)
    answers: queue.Queue[Any] = queue.Queue()
    server.client.start_stream(callback=lambda result, error: answers.put(error or result))
    server.client.async_stream_infer(MODEL, stream_inputs(240), enable_empty_final_response=True)
    pieces, tokens, final = [], [], False
    while not final:
        answer = answers.get(timeout=30)
        response = answer.get_response()
        final = response.parameters["triton_final_response"].bool_param
        pieces.append(answer.as_numpy("text_output")[0, 0].decode())
        tokens += answer.as_numpy("output_ids")[0, 0].tolist()
    server.client.stop_stream()
    assert len(pieces) > 1
    assert ("".join(pieces), tokens) == (whole["text_output"], whole["output_ids"])


def test_server_sent_events_carry_the_same_pieces(server: Triton, expected: Completion) -> None:
    events = server.events(MODEL, {"text_input": PROMPT, "max_tokens": 24, "ignore_eos": True, "stream": True})
    assert "".join(event["text_output"] for event in events) == expected.text
    assert [event["finish_reason"] for event in events if event["finish_reason"]] == ["length"]


def test_a_batch_of_texts_is_answered_row_by_row(server: Triton, expected: Completion) -> None:
    inputs = [
        make_input("text_input", [[PROMPT.encode()], [b"import os"]], np.object_, "BYTES"),
        make_input("max_tokens", [[24], [24]], np.int32, "INT32"),
        make_input("ignore_eos", [[True], [True]], np.bool_, "BOOL"),
    ]
    answer = server.client.infer("whole", inputs)
    texts = answer.as_numpy("text_output")
    assert texts.shape == (2, 1)
    assert texts[0, 0].decode() == expected.text
    assert answer.as_numpy("output_ids").shape == (2, 1, 24)


@pytest.mark.parametrize("model", [MODEL, "whole"])
def test_concurrent_requests_share_the_engines_steps(server: Triton, model: str) -> None:
    def totals() -> tuple[float, float]:
        steps = [server.metric("trtx_steps_total", model=model, kind=kind) for kind in ("prefill", "decode")]
        return sum(steps), server.metric("trtx_output_tokens_total", model=model)

    steps, tokens = totals()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: server.ask(model, {**LONG, "max_tokens": 64}), range(16)))
    assert len({answer["text_output"] for answer in answers}) == 1
    server.until(lambda: totals()[1] == tokens + 16 * 64)
    # Alone each token takes a step of its own; the engine's batch has eight places.
    assert totals()[0] - steps < 16 * 64 / 2


def test_tritons_metrics_have_its_own_counts_and_the_engines(server: Triton) -> None:
    before = server.metric("nv_inference_request_success", model=MODEL)
    server.ask(MODEL, {"text_input": PROMPT, "max_tokens": 4})
    server.until(lambda: server.metric("nv_inference_request_success", model=MODEL) == before + 1)
    assert server.metric("trtx_kv_blocks", model=MODEL) > 0
    assert server.metric("trtx_requests_waiting", model=MODEL) == 0


def test_sampling_parameters_reach_the_engine(server: Triton) -> None:
    drawn = {"text_input": PROMPT, "max_tokens": 12, "temperature": 1.5, "seed": 3, "ignore_eos": True}
    first, again = server.ask(MODEL, drawn), server.ask(MODEL, drawn)
    other = server.ask(MODEL, {**drawn, "seed": 4})
    assert first["output_ids"] == again["output_ids"] != other["output_ids"]
    older = {**{name: value for name, value in drawn.items() if name != "seed"}, "random_seed": 3}
    assert server.ask(MODEL, older)["output_ids"] == first["output_ids"]
    text = server.ask(MODEL, {"text_input": PROMPT, "max_tokens": 24, "ignore_eos": True})["text_output"]
    word = text.split()[1]
    stopped = server.ask(MODEL, {"text_input": PROMPT, "max_tokens": 24, "stop_words": [word]})
    assert stopped["text_output"] == text[: text.index(word)]
    assert stopped["finish_reason"] == "stop"
    scored = server.ask(MODEL, {"text_input": PROMPT, "max_tokens": 4, "return_log_probs": True})
    assert len(scored["output_log_probs"]) == 4
    assert scored["cum_log_probs"] == pytest.approx(sum(scored["output_log_probs"]), abs=1e-4)
    kept = server.ask(MODEL, {"text_input": PROMPT, "max_tokens": 4, "exclude_input_in_output": False})
    assert kept["text_output"].startswith(PROMPT)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"max_tokens": 3}, "either text_input or input_ids"),
        ({"text_input": PROMPT, "max_tokens": 0}, "max_tokens must be at least 1"),
        ({"text_input": PROMPT, "temperature": -1.0}, "temperature must be 0 or more"),
        ({"text_input": PROMPT, "beam_width": 4}, "beam_width must be 1, not 4"),
        ({"text_input": PROMPT, "max_tokens": 100_000}, "this engine takes at most 256"),
        ({"text_input": PROMPT, "seed": 1, "random_seed": 1}, "either random_seed or seed"),
        ({"text_input": PROMPT, "max_tokens": "many"}, "Unable to parse"),
        ({"input_ids": [1_000_000]}, "1000000"),
        ({"text_input": PROMPT, "stream": True, "num_return_sequences": 2}, "one answer"),
    ],
)
def test_a_request_that_cannot_be_served_is_an_error_of_its_own(
    server: Triton, body: dict[str, Any], says: str
) -> None:
    assert says in server.ask(MODEL, body)["error"]
    assert "error" not in server.ask(MODEL, {"text_input": PROMPT, "max_tokens": 1})


def test_a_model_that_answers_at_once_refuses_to_stream(server: Triton) -> None:
    error = server.ask("whole", {"text_input": PROMPT, "stream": True})["error"]
    assert error.startswith("this model answers at once (its config.pbtxt")


def test_a_client_that_goes_away_frees_its_blocks(server: Triton) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    server.client.start_stream(callback=lambda result, error: answers.put(error or result))
    tokens = server.metric("trtx_output_tokens_total", model=MODEL)
    for _ in range(40):
        server.client.async_stream_infer(MODEL, stream_inputs(240))
    answers.get(timeout=30)
    server.client.stop_stream(cancel_requests=True)
    server.until(lambda: server.metric("trtx_kv_blocks_used", model=MODEL) == 0)
    assert server.metric("trtx_output_tokens_total", model=MODEL) < tokens + 40 * 240


def test_unloading_waits_for_the_requests_in_flight_and_loading_serves_again(server: Triton) -> None:
    with ThreadPoolExecutor(24) as threads:
        answers = [threads.submit(server.ask, MODEL, LONG) for _ in range(24)]
        server.until(lambda: server.metric("trtx_requests_running", model=MODEL) > 0)
        assert server.http.post(f"/v2/repository/models/{MODEL}/unload").status_code == 200
        lengths = [answer.result()["num_output_tokens"] for answer in answers]
    assert lengths == [240] * 24
    server.until(lambda: not server.is_ready(MODEL))
    assert server.load(MODEL) == ""
    assert "error" not in server.ask(MODEL, {"text_input": PROMPT, "max_tokens": 1})


def test_an_engine_for_another_machine_is_refused_in_one_sentence(
    server: Triton, package: Path, tmp_path: Path
) -> None:
    other = tmp_path / "engine"
    shutil.copytree(package / "engine", other)
    card = json.loads((other / "engine.json").read_bytes())
    card["compiled_for"]["cpu_flags"] = ["amx_of_another_day"]
    (other / "engine.json").unlink()
    (other / "engine.json").write_text(json.dumps(card))
    model = rename(server.repository / MODEL, "unfit")
    edit(model / "config.pbtxt", '"../../../engine"', f'"{other}"')
    assert "and this processor has no amx_of_another_day" in server.load("unfit")
    assert not server.is_ready("unfit")


def test_a_repository_of_another_version_of_trtx_is_refused(server: Triton) -> None:
    model = rename(server.repository / MODEL, "older")
    edit(model / "config.pbtxt", f'"{trtx.__version__}"', '"0.0.9"')
    assert "was written by trtx 0.0.9 and this server has trtx" in server.load("older")
