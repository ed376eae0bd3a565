"""The engine behind a Python model of Triton Inference Server: tensors in, tensors out, one engine for all requests.

Every request, whichever call of the server brought it, becomes a request of the one engine, so that concurrent ones
are batched in flight; answers leave as they come. `backend` is the server's own module triton_python_backend_utils,
which exists only in its processes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import trtx
from trtx.errors import EnvironmentProblem, TrtxError
from trtx.runtime.driver import EngineDriver
from trtx.runtime.engine import Engine
from trtx.runtime.generation import Generation, GenerationFailed
from trtx.runtime.owner import EngineFailed
from trtx.runtime.params import RequestRefused
from trtx.runtime.results import RequestOutput
from trtx.runtime.scheduler import SchedulerSettings
from trtx.serve.triton_metrics import TritonMetrics
from trtx.serve.triton_tensors import Asked, make_tensors, read_request

logger = logging.getLogger(__name__)

# A request that nobody waits for any more is ended so soon.
POLL_S = 0.05
# After that a model is unloaded even with requests in flight, which then fail.
UNLOAD_S = 60.0
LAST_WORDS_S = 5.0
# A compiled program holds the GIL; Python's own 5 ms would let the loop wait for many steps of a small model.
SWITCH_INTERVAL_S = 1e-4


class TritonFront:
    """One loaded model: `execute` and `finalize` are called by the server's Python backend."""

    def __init__(self, engine: Engine, backend: Any, *, decoupled: bool, labels: Mapping[str, str]) -> None:
        self.engine = engine
        self._backend = backend
        self._decoupled = decoupled
        self._driver = EngineDriver(engine)
        self._metrics = TritonMetrics(engine, backend, labels)
        self._running: dict[Any, list[Generation]] = {}
        # Answers are made in a loop that lives in a thread of its own beside the server's calls.
        self._over: asyncio.Event
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live(started)), name="answers", daemon=True)
        self._thread.start()
        self._loop = started.result()

    @classmethod
    def load(cls, args: Mapping[str, str], backend: Any) -> TritonFront:
        """The model whose folder the server names in `args`; its parameters say where the engine is.

        Raises the server's TritonModelException with one sentence for an engine that does not fit.
        """
        config = json.loads(args["model_config"])
        values = {name: item["string_value"] for name, item in config["parameters"].items()}
        folder = (Path(args["model_repository"]) / values["engine_dir"]).resolve()
        size = values["kv_cache_bytes"]
        try:
            check_version(values["trtx_version"])
            engine = Engine.load(
                folder,
                kv_cache_bytes=int(size) if size else None,
                memory_fraction=float(values["memory_fraction"]),
                settings=SchedulerSettings(
                    policy=values["policy"],
                    chunked_prefill=values["chunked_prefill"] == "true",
                    prefix_reuse=values["prefix_reuse"] == "true",
                ),
            )
        except TrtxError as error:
            raise backend.TritonModelException(sentence_of(error)) from error
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        decoupled = backend.using_decoupled_model_transaction_policy(config)
        labels = {"model": args["model_name"], "version": args["model_version"]}
        return cls(engine, backend, decoupled=decoupled, labels=labels)

    def execute(self, requests: list[Any]) -> None:
        """Take requests; answers leave through the requests' own senders, later, whatever the server's policy."""
        for request in requests:
            asyncio.run_coroutine_threadsafe(self._answer(request, request.get_response_sender()), self._loop)

    def finalize(self) -> None:
        """Wait for the requests in flight, at most UNLOAD_S, and end the engine; those that are left hear of it."""
        ended = asyncio.run_coroutine_threadsafe(self._until_idle(), self._loop)
        wait([ended], timeout=UNLOAD_S)
        self._driver.stop("the model was unloaded")
        wait([ended], timeout=LAST_WORDS_S)
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _live(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        self._over = asyncio.Event()
        started.set_result(asyncio.get_running_loop())
        watch = asyncio.create_task(self._look_after())
        await self._over.wait()
        watch.cancel()

    async def _answer(self, request: Any, sender: Any) -> None:
        """Answer a request: piece by piece where it asks for that, else at once."""
        final = self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        try:
            asked = read_request(request)
            if not asked.stream:
                sender.send(await self._whole(request, asked), flags=final)
                return
            self._check_streams()
            (generation,) = self._start(request, asked)
            async for output in generation:
                _check_cancelled([output])
                flags = final if output.finished else 0
                sender.send(self._response(make_tensors(asked, [output], whole=False)), flags=flags)
        except Exception as error:  # noqa: BLE001 - the client must hear of it, whatever it is
            sender.send(self._failure(error), flags=final)
        finally:
            self._running.pop(request, None)

    def _check_streams(self) -> None:
        if not self._decoupled:
            raise RequestRefused(
                "this model answers at once",
                param="stream",
                why="its config.pbtxt does not say decoupled: true",
                fix="leave stream out",
            )

    async def _whole(self, request: Any, asked: Asked) -> Any:
        outputs: list[RequestOutput] = [await generation for generation in self._start(request, asked)]
        _check_cancelled(outputs)
        return self._response(make_tensors(asked, outputs, whole=True))

    def _start(self, request: Any, asked: Asked) -> list[Generation]:
        """Queue every text of a request, or none when one of them is refused."""
        prepared = [
            [self.engine.make_request(prompt, choice) for choice in asked.params.choices()] for prompt in asked.prompts
        ]
        generations = [Generation(self._driver, requests, None, streaming=asked.stream) for requests in prepared]
        self._running[request] = generations
        return generations

    async def _look_after(self) -> None:
        """End what was cancelled, and keep the server's metrics up to date."""
        while True:
            await asyncio.sleep(POLL_S)
            self._metrics.update()
            for request, generations in list(self._running.items()):
                if request.is_cancelled():
                    for generation in generations:
                        generation.abort()

    async def _until_idle(self) -> None:
        while self._running:
            await asyncio.sleep(POLL_S)

    def _response(self, tensors: Mapping[str, Any]) -> Any:
        made = [self._backend.Tensor(name, value) for name, value in tensors.items()]
        return self._backend.InferenceResponse(made)

    def _failure(self, error: Exception) -> Any:
        if isinstance(error, Cancelled):
            return self._error("the request was cancelled", "CANCELLED")
        if isinstance(error, TrtxError):
            return self._error(sentence_of(error), "INVALID_ARG")
        if isinstance(error, EngineFailed):
            return self._error(str(error), "UNAVAILABLE")
        if not isinstance(error, GenerationFailed):
            logger.error("a request failed", exc_info=error)
        return self._error(str(error), "INTERNAL")

    def _error(self, text: str, code: str) -> Any:
        kind: Callable[..., Any] = self._backend.TritonError
        return self._backend.InferenceResponse([], error=kind(text, getattr(kind, code)))


class Cancelled(Exception):
    """Nobody waits for the request any more."""


def _check_cancelled(outputs: Sequence[RequestOutput]) -> None:
    if any(choice.finish_reason == "cancelled" for output in outputs for choice in output.outputs):
        raise Cancelled


def check_version(written_by: str) -> None:
    """Refuse a repository that another version of trtx wrote. Raises EnvironmentProblem."""
    if written_by != trtx.__version__:
        raise EnvironmentProblem(
            f"this model was written by trtx {written_by} and this server has trtx {trtx.__version__}",
            fix="install the wheel of the deployment folder, or make the folder again with trtx apply",
        )


def sentence_of(error: TrtxError) -> str:
    """An error of trtx in one line, as an answer of the server."""
    parts = [error.what, f"({error.why})" if error.why else "", f"- {error.fix}" if error.fix else ""]
    return " ".join(part for part in parts if part)
