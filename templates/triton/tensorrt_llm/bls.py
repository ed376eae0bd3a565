"""Triton model: the whole way from text to text in front of TensorRT-LLM's backend, by calls from Python.

Unlike the ensemble it sees a request's responses one after another, so the pieces that it streams join to the text.
With `accumulate_tokens` every response has the whole text so far.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokens import TextStream, Tokenizer, flag, parameter

# The backend hears so soon of a client that went away.
POLL_S = 0.1


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        try:
            self.tokenizer = Tokenizer(parameter(config, "tokenizer_dir"))
        except (FileNotFoundError, ValueError) as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.skip = flag(config, "skip_special_tokens", True)
        self.accumulate = flag(config, "accumulate_tokens", False)
        self.model = parameter(config, "tensorrt_llm_model_name")
        self.asked = _wiring(parameter(config, "preprocessing_inputs"))
        self.prepared = _wiring(parameter(config, "prepared_inputs"))
        self.passed = _wiring(parameter(config, "passed_inputs"))
        self.given = parameter(config, "given_outputs").split()
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        # A thread for every request that the engine works on at once; each waits for its own.
        self.threads = ThreadPoolExecutor(int(parameter(config, "max_requests")))
        # Requests with the backend, by the id they have there: the request itself, and its inputs.
        self.running: dict[str, tuple[Any, list[Any]]] = {}
        self.over = threading.Event()
        self.watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self.watcher.start()

    def execute(self, requests: list[Any]) -> list[Any] | None:
        if not self.decoupled:
            return list(self.threads.map(self._answer_once, requests))
        for request in requests:
            self.threads.submit(self._stream, request, request.get_response_sender())
        return None

    def finalize(self) -> None:
        self.threads.shutdown(wait=True)
        self.over.set()
        self.watcher.join()

    def _answer_once(self, request: Any) -> Any:
        try:
            *_, last = self._responses(request, stream=False)
            return last
        except Exception as error:  # noqa: BLE001 - the client must hear of it, whatever it is
            return pb_utils.InferenceResponse([], error=pb_utils.TritonError(str(error)))

    def _stream(self, request: Any, sender: Any) -> None:
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        try:
            # What comes after a cancellation goes nowhere, and is waited for all the same: the request has to end.
            for response in self._responses(request, stream=_is_set(request, "stream")):
                if not request.is_cancelled():
                    sender.send(response)
            sender.send(flags=final)
        except Exception as error:  # noqa: BLE001 - the client must hear of it, whatever it is
            sender.send(pb_utils.InferenceResponse([], error=pb_utils.TritonError(str(error))), flags=final)

    def _responses(self, request: Any, stream: bool) -> Iterator[Any]:
        """The responses of a request; without `stream` one, with everything in it."""
        if pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().shape[0] != 1:
            raise ValueError(
                "a request of tensorrt_llm_bls has one text; send several requests, the engine batches them"
            )
        prepared = self._call("preprocessing", _inputs(request, self.asked), list(self.prepared.values()))
        inputs = [_renamed(prepared[name], own) for own, name in self.prepared.items()]
        asked = set(request.requested_output_names())
        given = [name for name in self.given if name in asked]
        # Not asked for and yet needed: which of several sequences a response belongs to.
        needed = ["sequence_index"] if "sequence_index" in self.given and "sequence_index" not in asked else []
        outputs = ["output_ids", "sequence_length", *needed, *given]
        inputs += _inputs(request, self.passed)
        texts: dict[tuple[int, int], TextStream] = {}
        others: list[Any] | None = None
        for found in self._exec(request, inputs, outputs):
            tensors = _tensors(found)
            if "output_ids" not in tensors:
                continue
            pieces, whole = self._push(tensors, texts)
            others = [tensors[name] for name in given if name in tensors]
            if stream:
                yield _make(whole if self.accumulate else pieces, others)
        if others is None:
            raise ValueError("the backend gave no tokens")
        ends = [text.flush() for text in texts.values()]
        if not stream or (self.accumulate and any(ends)):
            yield _make([text.text for text in texts.values()], others)
        elif any(ends):
            yield _make(ends, others)

    def _push(
        self, tensors: Mapping[str, Any], texts: dict[tuple[int, int], TextStream]
    ) -> tuple[list[str], list[str]]:
        """Give a response's tokens to the texts of its beams: what is new, and all so far."""
        ids, lengths = tensors["output_ids"].as_numpy()[0], tensors["sequence_length"].as_numpy()[0]
        sequence = int(tensors["sequence_index"].as_numpy().reshape(-1)[0]) if "sequence_index" in tensors else 0
        pieces, whole = [], []
        for beam, length in enumerate(lengths.tolist()):
            text = texts.setdefault((sequence, beam), TextStream(self.tokenizer, self.skip))
            pieces.append(text.push(ids[beam, :length].tolist()))
            whole.append(text.text)
        return pieces, whole

    def _exec(self, request: Any, inputs: list[Any], outputs: list[str]) -> Iterator[Any]:
        """The backend's responses; a client that goes away meanwhile ends its request there, too."""
        name = uuid.uuid4().hex
        call = pb_utils.InferenceRequest(
            model_name=self.model, requested_output_names=outputs, inputs=inputs, request_id=name
        )
        if not self.decoupled:
            yield _checked(call.exec())
            return
        self.running[name] = (request, inputs)
        try:
            for response in call.exec(decoupled=True):
                yield _checked(response)
        finally:
            self.running.pop(name, None)

    def _watch(self) -> None:
        """End requests of clients that went away."""
        while not self.over.wait(POLL_S):
            for name, (request, inputs) in list(self.running.items()):
                if request.is_cancelled() and self.running.pop(name, None) is not None:
                    try:
                        self._stop(name, inputs)
                    except Exception as problem:  # noqa: BLE001 - the others are looked after all the same
                        pb_utils.Logger.log_warn(f"request {name} could not be ended: {problem}")

    def _stop(self, name: str, inputs: list[Any]) -> None:
        """Tell the backend to end the request of that name: it knows one by the id that both calls have."""
        stop = pb_utils.Tensor("stop", np.array([[True]], dtype=np.bool_))
        call = pb_utils.InferenceRequest(
            model_name=self.model, requested_output_names=["output_ids"], inputs=[*inputs, stop], request_id=name
        )
        for _ in call.exec(decoupled=True):
            pass

    def _call(self, model: str, inputs: list[Any], outputs: list[str]) -> dict[str, Any]:
        call = pb_utils.InferenceRequest(model_name=model, requested_output_names=outputs, inputs=inputs)
        return _tensors(_checked(call.exec()))


def _checked(response: Any) -> Any:
    if response.has_error():
        raise pb_utils.TritonModelException(response.error().message())
    return response


def _wiring(words: str) -> dict[str, str]:
    """name at the other model → name here."""
    pairs = (word.partition("=") for word in words.split())
    return {other: own for other, _, own in pairs}


def _inputs(request: Any, names: Mapping[str, str]) -> list[Any]:
    """Inputs for another model, of those that the request has."""
    found = ((own, pb_utils.get_input_tensor_by_name(request, name)) for own, name in names.items())
    return [_renamed(tensor, own) for own, tensor in found if tensor is not None]


def _renamed(tensor: Any, name: str) -> Any:
    return pb_utils.Tensor(name, tensor.as_numpy())


def _tensors(response: Any) -> dict[str, Any]:
    return {tensor.name(): tensor for tensor in response.output_tensors()}


def _is_set(request: Any, name: str) -> bool:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return tensor is not None and bool(tensor.as_numpy().reshape(-1)[0])


def _make(texts: Sequence[str], others: Sequence[Any]) -> Any:
    text = np.array([[piece.encode() for piece in texts]], dtype=np.object_)
    return pb_utils.InferenceResponse([pb_utils.Tensor("text_output", text), *others])
