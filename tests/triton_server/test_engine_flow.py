"""The repository of TensorRT-LLM's engine flow in a real Triton, before a stand-in for its closed backend.

The stand-in repeats the prompt's tokens. What is tested is everything around it: text to tokens, names, types and
shapes of tensors, both fronts, tokens to text, refusals when a model is loaded.
"""

from __future__ import annotations

import json
import queue
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from support.engines import BOS_ID, EOS_ID, raw_tokenizer
from support.triton import Triton, edit, make_input, rename
from support.triton_specs import write_engine_folder

FRONTS = ("ensemble", "tensorrt_llm_bls")
Server = tuple[Triton, Path]


def last_inputs(seen: Path) -> dict[str, Any]:
    """What the stand-in was given last."""
    found: dict[str, Any] = json.loads(seen.read_text().splitlines()[-1])
    return found


def ids_of(text: str) -> list[int]:
    ids: list[int] = raw_tokenizer().encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("front", [*FRONTS, "tensorrt_llm_bls_at_once"])
def test_text_comes_back_as_text_through_every_front(engine_server: Server, front: str) -> None:
    server, seen = engine_server
    assert server.ask(front, {"text_input": "héllo", "max_tokens": 12})["text_output"] == "héllohéllo"
    found = last_inputs(seen)
    assert found["input_ids"] == [[BOS_ID, *ids_of("héllo")]]
    assert (found["input_lengths"], found["request_output_len"]) == ([7], [12])
    assert (found["end_id"], found["pad_id"]) == ([EOS_ID], [EOS_ID])


@pytest.mark.parametrize("front", FRONTS)
def test_parameters_of_a_request_reach_the_backend_under_its_names(engine_server: Server, front: str) -> None:
    server, seen = engine_server
    asked = {
        "text_input": "abcdef",
        "max_tokens": 6,
        "top_k": 5,
        "top_p": 0.5,
        "temperature": 0.25,
        "seed": 2,
        "min_tokens": 1,
        "length_penalty": 1.5,
        "beam_width": 1,
        "return_log_probs": True,
        "stop_words": ["zz", "fa"],
        "bad_words": ["q"],
        "end_id": 7,
        "pad_id": 9,
    }
    # From the third token on, up to the second stop word.
    assert server.ask(front, asked)["text_output"] == "cdefa"
    found = last_inputs(seen)
    assert (found["runtime_top_k"], found["runtime_top_p"], found["temperature"]) == ([5], [0.5], [0.25])
    assert (found["len_penalty"], found["beam_width"], found["return_log_probs"]) == ([1.5], [1], [True])
    # Which of two names this release reads is not established, so both have the value.
    assert found["seed"] == found["random_seed"] == [2]
    assert found["min_tokens"] == found["min_length"] == [1]
    assert (found["end_id"], found["pad_id"]) == ([7], [9])
    assert found["stop_words_list"] == [[[*ids_of("zz"), *ids_of("fa")], [2, 4, -1, -1]]]
    assert found["bad_words_list"] == [[ids_of("q"), [1]]]


def test_a_bias_on_words_becomes_one_on_tokens(engine_server: Server) -> None:
    server, seen = engine_server
    asked = {"text_input": "ab", "max_tokens": 1, "embedding_bias_words": ["b"], "embedding_bias_weights": [2.5]}
    assert "error" not in server.ask("ensemble", asked)
    (bias,) = last_inputs(seen)["embedding_bias"]
    assert len(bias) == 258
    assert {index: value for index, value in enumerate(bias) if value} == {ids_of("b")[0]: 2.5}


def test_what_the_bls_model_streams_joins_to_the_text(engine_server: Server) -> None:
    server, _ = engine_server
    asked = {"text_input": "aéa", "max_tokens": 8, "stream": True}
    pieces = [event["text_output"] for event in server.events("tensorrt_llm_bls", asked)]
    assert len(pieces) >= 8
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == "aéaaéa"


def test_a_character_that_never_ends_is_given_out_at_the_end(engine_server: Server) -> None:
    server, _ = engine_server
    asked = {"text_input": "aé", "max_tokens": 2, "stream": True}
    assert [event["text_output"] for event in server.events("tensorrt_llm_bls", asked)] == ["a", "", "\ufffd"]
    assert server.ask("tensorrt_llm_bls", {**asked, "stream": False})["text_output"] == "a\ufffd"


def test_the_ensemble_streams_the_text_of_each_response(engine_server: Server) -> None:
    server, _ = engine_server
    events = server.events("ensemble", {"text_input": "abc", "max_tokens": 5, "stream": True})
    assert [event["text_output"] for event in events] == ["a", "b", "c", "a", "b"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_request_in_the_backend(engine_server: Server, stream: bool) -> None:
    server, seen = engine_server
    text = f"a long one, {'piece by piece' if stream else 'at once'}"
    ids = [BOS_ID, *ids_of(text)]

    def notes() -> list[dict[str, Any]]:
        return [json.loads(line) for line in seen.read_text().splitlines()]

    answers: queue.Queue[Any] = queue.Queue()
    server.client.start_stream(callback=lambda result, error: answers.put(error or result))
    inputs = [
        make_input("text_input", [[text.encode()]], np.object_, "BYTES"),
        make_input("max_tokens", [[2000]], np.int32, "INT32"),
        make_input("stream", [[stream]], np.bool_, "BOOL"),
    ]
    server.client.async_stream_infer("tensorrt_llm_bls", inputs)
    server.until(lambda: any(note.get("input_ids") == [ids] for note in notes()))
    before = sum("stopped" in note for note in notes())
    server.client.stop_stream(cancel_requests=True)
    server.until(lambda: sum("stopped" in note for note in notes()) > before)
    assert [note for note in notes() if "stopped" in note][-1]["after"] < 2000


def test_the_bls_model_serves_requests_side_by_side(engine_server: Server) -> None:
    server, _ = engine_server

    def ask(index: int) -> str:
        return str(server.ask("tensorrt_llm_bls", {"text_input": f"text {index};", "max_tokens": 30})["text_output"])

    with ThreadPoolExecutor(16) as threads:
        texts = list(threads.map(ask, range(48)))
    assert texts == [(f"text {index};" * 5)[:30] for index in range(48)]


@pytest.mark.parametrize("front", [*FRONTS, "tensorrt_llm_bls_at_once"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"embedding_bias_words": ["a"]}, "one weight for each of embedding_bias_words"),
        ({"text_input": ""}, "cannot repeat an empty prompt"),
        ({"max_tokens": "x"}, "Unable to parse"),
    ],
)
def test_a_bad_request_is_an_error_of_its_own(
    engine_server: Server, front: str, change: dict[str, Any], says: str
) -> None:
    server, _ = engine_server
    assert says in server.ask(front, {"text_input": "abc", "max_tokens": 3} | change)["error"]
    assert server.ask(front, {"text_input": "abc", "max_tokens": 3})["text_output"] == "abc"


def test_text_that_is_not_utf8_and_tensors_of_another_type_are_refused(engine_server: Server) -> None:
    server, _ = engine_server
    text = make_input("text_input", [[b"\xff\xfe"]], np.object_, "BYTES")
    length = make_input("max_tokens", [[3]], np.int32, "INT32")
    with pytest.raises(grpc.InferenceServerException, match="a text is not UTF-8"):
        server.client.infer("tensorrt_llm_bls_at_once", [text, length])
    text = make_input("text_input", [[b"abc"]], np.object_, "BYTES")
    wrong = make_input("max_tokens", [[3]], np.int64, "INT64")
    with pytest.raises(grpc.InferenceServerException, match=r"max_tokens.*INT64.*INT32"):
        server.client.infer("tensorrt_llm_bls_at_once", [text, wrong])


def _remove_tokenizer(model: Path, folder: Path) -> None:
    edit(model / "config.pbtxt", f'"{folder}/tokenizer"', f'"{folder}/nothing"')


def _use_engine(make: Callable[[Path], None]) -> Callable[[Path, Path], None]:
    def change(model: Path, folder: Path) -> None:
        other = folder / f"engine-{model.name}"
        write_engine_folder(other, "0.20.0", ranks=2)
        make(other)
        edit(model / "config.pbtxt", f'"{folder}/engine"', f'"{other}"')

    return change


def _set_version(engine: Path) -> None:
    edit(engine / "config.json", '"0.20.0"', '"0.19.0"')


REFUSALS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "no tokenizer": (_remove_tokenizer, "there is no tokenizer in"),
    "another release": (_use_engine(_set_version), "was built by TensorRT-LLM 0.19.0 and this container has 0.20.0"),
    "another TensorRT": (
        _use_engine(lambda engine: (engine / "trtllm.json").write_text('{"tensorrt": "10.9.0.34"}')),  # type: ignore[arg-type, return-value]
        "was built with TensorRT 10.9.0.34 and this container has 10.10.0",
    ),
    "a rank is missing": (_use_engine(lambda engine: (engine / "rank1.engine").unlink()), "has no rank1.engine"),
    "no engine": (_use_engine(shutil.rmtree), "is not an engine of TensorRT-LLM"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_model_beside_an_engine_that_does_not_fit_is_not_loaded(engine_server: Server, case: str) -> None:
    server, seen = engine_server
    change, says = REFUSALS[case]
    model = rename(server.repository / "preprocessing", case.replace(" ", "-"))
    change(model, seen.parent)
    assert says in server.load(model.name)
    assert not server.is_ready(model.name)
