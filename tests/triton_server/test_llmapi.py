"""The repository of TensorRT-LLM's PyTorch flow in a real Triton, with a stand-in for the package tensorrt_llm."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.triton import Triton, edit, make_input, rename, running_triton
from support.triton_specs import make_spec, write_distribution

from trtx.backends.tensorrt_llm.triton import TritonServing, write_repository

RELEASE = "1.2.1"
MODEL = "tensorrt_llm"
STAND_IN = Path(__file__).parents[1] / "support" / "llm_stand_in"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    folder = tmp_path_factory.mktemp("llmapi")
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    write_distribution(folder / "site", "tensorrt_llm", RELEASE)
    serving = TritonServing(engine_dir=str(folder / "checkpoint"), tokenizer_dir=str(folder / "checkpoint"))
    options = {"kv_cache_config": {"free_gpu_memory_fraction": 0.85}}
    write_repository(make_spec(RELEASE, "pytorch"), folder / "models", serving=serving, options=options)
    with running_triton(folder / "models", folder, load=(MODEL,), paths=(STAND_IN, folder / "site")) as triton:
        yield triton


def test_answers_come_whole_or_in_pieces(server: Triton) -> None:
    asked = {"text_input": "one two three", "sampling_param_max_tokens": 5}
    answer = server.ask(MODEL, asked | {"return_finish_reason": True, "return_cumulative_logprob": True})
    assert answer["text_output"] == "one two three one two "
    assert (answer["finish_reason"], answer["cumulative_logprob"]) == ("length", -1.5)
    events = server.events(MODEL, asked | {"streaming": True})
    assert [event["text_output"] for event in events] == ["one ", "two ", "three ", "one ", "two "]
    assert server.ask(MODEL, asked | {"sampling_param_stop": ["three"]})["text_output"] == "one two "
    kept = server.ask(MODEL, asked | {"sampling_param_exclude_input_from_output": False})
    assert kept["text_output"] == "one two threeone two three one two "


def test_requests_meet_in_the_llms_own_batcher(server: Triton) -> None:
    asked = {"text_input": "one", "sampling_param_max_tokens": 2, "return_stop_reason": True}
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: server.ask(MODEL, asked), range(8)))
    # The stand-in says there how many requests it had at once.
    assert max(int(answer["stop_reason"].split()[0]) for answer in answers) > 1


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_goes_away_ends_its_request(server: Triton, streaming: bool) -> None:
    def counts() -> tuple[int, int]:
        answer = server.ask(MODEL, {"text_input": "one", "sampling_param_max_tokens": 1, "return_stop_reason": True})
        words = answer["stop_reason"].split()
        return int(words[3]), int(words[5])

    aborted, begun = counts()
    inputs = [
        make_input("text_input", [b"one"], np.object_, "BYTES"),
        make_input("sampling_param_max_tokens", [1000], np.int32, "INT32"),
        make_input("streaming", [streaming], np.bool_, "BOOL"),
    ]
    server.client.start_stream(callback=lambda result, error: None)
    server.client.async_stream_infer(MODEL, inputs)
    asked = itertools.count(1)
    # Each look is a request of its own; the long one makes one more.
    server.until(lambda: counts()[1] - begun > next(asked))
    server.client.stop_stream(cancel_requests=True)
    server.until(lambda: counts()[0] == aborted + 1)


def test_a_request_that_the_llm_refuses_is_an_error_of_its_own(server: Triton) -> None:
    assert "at least 1" in server.ask(MODEL, {"text_input": "one", "sampling_param_max_tokens": 0})["error"]
    assert "error" not in server.ask(MODEL, {"text_input": "one"})


def test_another_release_and_a_missing_checkpoint_and_an_unknown_option_are_refused(server: Triton) -> None:
    other = rename(server.repository / MODEL, "other")
    edit(other / "config.pbtxt", f'"{RELEASE}"', '"1.1.0"')
    assert "was written for TensorRT-LLM 1.1.0 and this container has 1.2.1" in server.load("other")
    missing = rename(server.repository / MODEL, "missing")
    edit(missing / "1" / "model.yaml", "checkpoint", "nothing")
    assert "there is no checkpoint in" in server.load("missing")
    unknown = rename(server.repository / MODEL, "unknown")
    edit(unknown / "1" / "model.yaml", "max_seq_len", "max_seq_length")
    assert "unknown LLM arguments: ['max_seq_length']" in server.load("unknown")
