"""The front of the embedded engine for Triton, against a server's Python backend that is only its shapes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from support.engines import FakePrograms, expected_tokens, make_card, make_engine, make_tokenizer

from trtx.errors import EnvironmentProblem
from trtx.serve import triton
from trtx.serve.triton import TritonFront, check_version

PROMPT = "abc"


class TritonError:
    CANCELLED, INVALID_ARG, UNAVAILABLE, INTERNAL = "cancelled", "invalid", "unavailable", "internal"

    def __init__(self, text: str, code: str) -> None:
        self.text, self.code = text, code


@dataclass
class Tensor:
    label: str
    value: Any

    def name(self) -> str:
        return self.label

    def as_numpy(self) -> Any:
        return self.value


@dataclass
class Response:
    tensors: list[Tensor]
    error: TritonError | None = None


# What the server would print as metrics, by name and labels.
METRICS: dict[str, float] = {}


class Metric:
    def __init__(self, key: str) -> None:
        self.key = key

    def set(self, value: float) -> None:
        METRICS[self.key] = value

    def increment(self, value: float) -> None:
        assert value >= 0, "a counter never falls"
        METRICS[self.key] = METRICS.get(self.key, 0.0) + value


class Family:
    GAUGE, COUNTER = "gauge", "counter"

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.label = name

    def Metric(self, labels: dict[str, str]) -> Metric:
        return Metric("/".join([self.label, *labels.values()]))


class Backend:
    """triton_python_backend_utils, as far as a front looks."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    Tensor, InferenceResponse, TritonError, MetricFamily = Tensor, Response, TritonError, Family


@dataclass(eq=False)
class Request:
    """A request and what was sent for it; also its own sender."""

    tensors: dict[str, Any]
    asked: tuple[str, ...] = ("text_output", "output_ids", "finish_reason")
    cancelled: bool = False
    sent: list[Response] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, np.array(value)) for name, value in self.tensors.items()]

    def requested_output_names(self) -> tuple[str, ...]:
        return self.asked

    def is_cancelled(self) -> bool:
        return self.cancelled

    def get_response_sender(self) -> Request:
        return self

    def send(self, response: Response, flags: int = 0) -> None:
        assert not self.ended.is_set(), "nothing comes after the final response"
        self.sent.append(response)
        if flags:
            self.ended.set()

    def result(self) -> Response:
        assert self.ended.wait(20)
        return self.sent[-1]


def ask(front: TritonFront, **tensors: Any) -> Request:
    request = Request({"text_input": [[PROMPT.encode()]], **tensors})
    front.execute([request])
    return request


def error_of(request: Request) -> tuple[str, str]:
    error = request.result().error
    assert error is not None
    return error.code, error.text


@pytest.fixture
def programs() -> FakePrograms:
    return FakePrograms(make_card())


@pytest.fixture
def front(programs: FakePrograms) -> Iterator[TritonFront]:
    made = TritonFront(make_engine(programs), Backend, decoupled=True, labels={"model": "m", "version": "1"})
    yield made
    made.finalize()


def test_an_answer_is_the_engines(front: TritonFront) -> None:
    response = ask(front, max_tokens=[[8]]).result()
    found = {tensor.label: tensor.value for tensor in response.tensors}
    ids = make_tokenizer().encode(PROMPT)
    assert found["output_ids"].tolist() == [[expected_tokens(ids, 8)]]
    assert found["output_ids"].dtype == np.int32
    assert list(found) == ["finish_reason", "output_ids", "text_output"]


def test_only_what_is_asked_for_is_made(front: TritonFront) -> None:
    request = Request({"input_ids": np.array([[65, 66]], np.int32), "max_tokens": [[3]]}, asked=("num_output_tokens",))
    front.execute([request])
    assert [tensor.label for tensor in request.result().tensors] == ["num_output_tokens"]


def test_an_engine_that_fails_says_so_to_everybody_and_to_those_who_come_later(
    front: TritonFront, programs: FakePrograms
) -> None:
    programs.fail_with = RuntimeError("the program broke")
    assert error_of(ask(front)) == ("unavailable", "the engine has failed: the program broke")
    assert error_of(ask(front)) == ("unavailable", "the engine has failed: the program broke")


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"max_tokens": [[0]]}, "max_tokens must be at least 1"),
        ({"text_input": [[b"\xff"]]}, "text_input is not UTF-8"),
        ({"text_input": [[b"a"], [b"b"]], "stream": [[True], [True]]}, "a request that streams has one text, not 2"),
        ({"text_input": [[b"a"], [b"b"]], "top_k": [[1], [2]]}, "top_k must be the same for all texts"),
        ({"input_ids": [[65]]}, "either text_input or input_ids"),
        ({"stop_words": [[b"\xff"]]}, "stop_words is not UTF-8"),
        ({"max_tokens": [[1000]]}, "takes at most"),
    ],
)
def test_what_cannot_be_served_is_refused_and_queues_nothing(
    front: TritonFront, tensors: dict[str, Any], says: str
) -> None:
    code, text = error_of(ask(front, **tensors))
    assert code == "invalid"
    assert says in text
    assert "\n" not in text
    assert not front.engine.has_work


def test_a_batch_of_which_one_text_is_too_long_queues_none_of_it(front: TritonFront) -> None:
    assert error_of(ask(front, text_input=[[b"a"], [b"x" * 500]]))[0] == "invalid"
    assert not front.engine.has_work


def test_a_request_that_is_cancelled_ends_and_frees_its_blocks(front: TritonFront, programs: FakePrograms) -> None:
    slow = programs.step

    def step(*tensors: Any) -> Any:
        time.sleep(0.02)
        return slow(*tensors)

    programs.step = step  # type: ignore[method-assign]
    request = ask(front, max_tokens=[[50]], ignore_eos=[[True]], stream=[[True]])
    while not request.sent:
        time.sleep(0.005)
    request.cancelled = True
    assert error_of(request) == ("cancelled", "the request was cancelled")
    assert front.engine.load_now.kv_blocks_used == 0
    assert len(request.sent) < 50


def test_metrics_follow_the_engine(front: TritonFront) -> None:
    METRICS.clear()
    ask(front, max_tokens=[[5]], ignore_eos=[[True]]).result()
    deadline = time.monotonic() + 10
    while METRICS.get("trtx_output_tokens_total/m/1") != 5:
        assert time.monotonic() < deadline, METRICS
        time.sleep(0.01)
    steps = [METRICS[f"trtx_steps_total/m/1/{kind}"] for kind in ("prefill", "decode")]
    assert steps == [1, 4]


def test_unloading_waits_for_requests_and_gives_up_on_those_that_never_end(
    programs: FakePrograms, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TritonFront(make_engine(programs), Backend, decoupled=True, labels={})
    request = ask(made, max_tokens=[[40]], ignore_eos=[[True]])
    made.finalize()
    assert request.ended.is_set()
    assert request.result().error is None

    gate = threading.Event()
    slow = FakePrograms(make_card())
    step = slow.step
    slow.step = lambda *tensors: (gate.wait(20), step(*tensors))[1]  # type: ignore[method-assign]
    monkeypatch.setattr(triton, "UNLOAD_S", 0.1)
    stuck = TritonFront(make_engine(slow), Backend, decoupled=True, labels={})
    request = ask(stuck, max_tokens=[[40]])
    threading.Timer(0.3, gate.set).start()
    stuck.finalize()
    assert error_of(request) == ("unavailable", "the model was unloaded")


def test_another_version_of_trtx_is_refused() -> None:
    with pytest.raises(EnvironmentProblem, match=r"was written by trtx 0\.0\.1"):
        check_version("0.0.1")
