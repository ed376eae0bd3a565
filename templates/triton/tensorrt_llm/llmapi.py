"""Triton model: TensorRT-LLM's LLM API, with the arguments of model.yaml beside this file.

Requests run at once and meet in the LLM's own batcher. Tensors have the names of the release's own model.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# Input → argument of SamplingParams, and how its value is read.
SAMPLING: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "sampling_param_temperature": ("temperature", float),
    "sampling_param_top_k": ("top_k", int),
    "sampling_param_top_p": ("top_p", float),
    "sampling_param_frequency_penalty": ("frequency_penalty", float),
    "sampling_param_presence_penalty": ("presence_penalty", float),
    "sampling_param_max_tokens": ("max_tokens", int),
    "sampling_param_best_of": ("best_of", int),
    "sampling_param_seed": ("seed", int),
}
# Seconds that all requests together have to end when the model is unloaded, and to hear that they are cancelled.
UNLOAD_S, CANCEL_S = 60, 5
POLL_S = 0.05


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        arguments = read_arguments(Path(__file__).with_name("model.yaml"))
        self.settings = arguments.pop("triton_config")
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        _check_release(config["parameters"]["release"]["string_value"])
        _check_folder(arguments["model"])
        from tensorrt_llm import LLM, SamplingParams

        self.sampling_params = SamplingParams
        self.llm = LLM(**arguments)
        # The LLM's outputs are awaited in one loop, which lives in a thread of its own beside the server's calls.
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="answers", daemon=True)
        self.thread.start()
        self.running: set[Future[Any]] = set()
        # Answers that are being made: the task → its request and what the LLM makes of it.
        self.live: dict[Any, tuple[Any, Any]] = {}
        self.watch = asyncio.run_coroutine_threadsafe(self._look_after(), self.loop)

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            task = asyncio.run_coroutine_threadsafe(self._answer(request, request.get_response_sender()), self.loop)
            self.running.add(task)
            task.add_done_callback(self.running.discard)

    def finalize(self) -> None:
        _, late = wait(list(self.running), timeout=UNLOAD_S)
        for task in late:
            task.cancel()
        wait(late, timeout=CANCEL_S)
        self.watch.cancel()
        try:
            self.llm.shutdown()
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()

    async def _answer(self, request: Any, sender: Any) -> None:
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        try:
            streaming = bool(_value(request, "streaming", False))
            if streaming and not self.decoupled:
                raise ValueError("this model answers at once: leave streaming out")
            generation = self._generate(request, streaming)
            self.live[asyncio.current_task()] = (request, generation)
            if not streaming:
                sender.send(self._respond(request, await generation, streaming=False), flags=final)
                return
            async for output in generation:
                sender.send(self._respond(request, output, streaming=True))
            sender.send(flags=final)
        except asyncio.CancelledError:
            error = pb_utils.TritonError("the request was cancelled")
            sender.send(pb_utils.InferenceResponse([], error=error), flags=final)
        except Exception as problem:  # noqa: BLE001 - the client must hear of it, whatever it is
            error = pb_utils.TritonError(str(problem))
            sender.send(pb_utils.InferenceResponse([], error=error), flags=final)
        finally:
            self.live.pop(asyncio.current_task(), None)

    async def _look_after(self) -> None:
        """End requests of clients that went away."""
        while True:
            await asyncio.sleep(POLL_S)
            for task, (request, generation) in list(self.live.items()):
                if request.is_cancelled():
                    try:
                        generation.abort()
                    except Exception as problem:  # noqa: BLE001 - the others are looked after all the same
                        pb_utils.Logger.log_warn(f"a request could not be aborted: {problem}")
                    task.cancel()

    def _generate(self, request: Any, streaming: bool) -> Any:
        prompt = _text(_value(request, "text_input", None))
        given = {}
        for name, (argument, read) in SAMPLING.items():
            value = _value(request, name, None)
            if value is not None:
                given[argument] = read(value)
        stops = pb_utils.get_input_tensor_by_name(request, "sampling_param_stop")
        if stops is not None:
            given["stop"] = [_text(word) for word in stops.as_numpy().reshape(-1)]
        return self.llm.generate_async(prompt, self.sampling_params(**given), streaming=streaming)

    def _respond(self, request: Any, output: Any, streaming: bool) -> Any:
        """A response of an output of the LLM: what is new where it streams, else all of it."""
        choices = output.outputs
        exclude = _value(request, "sampling_param_exclude_input_from_output", True)
        prompt = "" if exclude or streaming else _text(_value(request, "text_input", None))
        texts = [choice.text_diff if streaming else prompt + choice.text for choice in choices]
        tensors = [_strings("text_output", texts)]
        if _value(request, "return_finish_reason", False):
            tensors.append(_strings("finish_reason", [str(choice.finish_reason) for choice in choices]))
        if _value(request, "return_stop_reason", False):
            tensors.append(_strings("stop_reason", [str(choice.stop_reason) for choice in choices]))
        if _value(request, "return_cumulative_logprob", False):
            sums = [choice.cumulative_logprob or 0.0 for choice in choices]
            tensors.append(pb_utils.Tensor("cumulative_logprob", np.array(sums, dtype=np.float32)))
        return pb_utils.InferenceResponse(tensors)


def read_arguments(path: Path) -> dict[str, Any]:
    """model.yaml as trtx writes it: a key and a value in JSON on each line."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition(": ")
            found[key] = json.loads(value)
    return found


def _check_release(release: str) -> None:
    """Refuse another release than the one whose options model.yaml was checked against."""
    try:
        here = metadata.version("tensorrt_llm")
    except metadata.PackageNotFoundError:
        here = "none"
    if here != release:
        raise pb_utils.TritonModelException(
            f"this repository was written for TensorRT-LLM {release} and this container has {here}"
        )


def _check_folder(model: str) -> None:
    if not (Path(model) / "config.json").is_file():
        raise pb_utils.TritonModelException(f"there is no checkpoint in {model}: it has no config.json")


def _value(request: Any, name: str, default: Any) -> Any:
    """The first element of an input; `default` where the request has no such tensor."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return default
    values = tensor.as_numpy().reshape(-1)
    if len(values) != 1:
        raise ValueError(f"{name} must have one element, not {len(values)}")
    return values[0]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8")


def _strings(name: str, texts: Sequence[str]) -> Any:
    return pb_utils.Tensor(name, np.array([text.encode() for text in texts], dtype=np.object_))
