"""The HTTP application: routes of the OpenAI API, health, metrics and statistics."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from trtx import __version__
from trtx.runtime.admission import check_ids
from trtx.runtime.engine import Engine
from trtx.runtime.loop import EngineThread, Stream
from trtx.runtime.owner import EngineFailed
from trtx.runtime.report import describe_engine
from trtx.runtime.request import SamplingParams
from trtx.serve.answers import Call, EventAnswer, answer_whole
from trtx.serve.gate import Gate, Guard
from trtx.serve.metrics import ServerMetrics
from trtx.serve.problems import ApiProblem, install_handlers
from trtx.serve.replies import ChatReply, CompletionReply, Reply
from trtx.serve.schema import Body, ChatBody, CompletionBody
from trtx.serve.tool_calls import ToolAnswer, ToolCallParser
from trtx.serve.tool_formats import AUTO, choose_format

# Requests that may wait beside those that run; more are told to come again.
DEFAULT_MAX_WAITING = 1024
# Clients that are told to come again wait so long.
RETRY_AFTER_S = 1
# An engine that has not given one token within this time is not healthy.
HEALTH_TIMEOUT_S = 30


class Service:
    """What the routes share: the engine in its thread, under the name that clients call it by.

    `max_waiting` requests may wait for a place in the batch. `tool_call_parser` names how the model writes tool calls
    (serve/tool_formats.py); `auto` finds it in the chat template. Raises UsageProblem for a name that is none.
    """

    def __init__(
        self,
        engine: Engine,
        model_name: str,
        max_waiting: int = DEFAULT_MAX_WAITING,
        tool_call_parser: str = AUTO,
    ) -> None:
        self.engine = engine
        self.model_name = model_name
        self.metrics = ServerMetrics(engine)
        self.thread = EngineThread(engine, self.metrics.observe)
        self.started = int(time.time())
        template = engine.tokenizer.chat_template
        self.tool_format = choose_format(
            tool_call_parser, (template.with_tools or template).source if template else None
        )
        self._max_open = engine.card.limits.max_batch_size + max_waiting
        self._open = 0

    async def complete(self, body: CompletionBody, http: Request) -> Response:
        """POST /v1/completions."""
        self._check_model(body)
        encode, decode = self.engine.tokenizer.encode, self.engine.tokenizer.decode
        prompts = [encode(prompt) if isinstance(prompt, str) else prompt for prompt in body.prompt]
        params = body.sampling(body.num_tokens)
        for prompt in prompts:
            check_ids(prompt, params.choices()[0], self.engine.card.model.vocab_size)
        texts = [p if isinstance(p, str) else decode(p) for p in body.prompt] if body.echo else []
        echoes = [text for text in texts for _ in range(params.n)]
        scored = params.prompt_logprobs is not None and params.logprobs is not None
        reply = CompletionReply(self.model_name, uuid.uuid4().hex, self.engine.tokenizer, echoes, scored=scored)
        return await self._answer(body, prompts, params, reply, http)

    async def chat(self, body: ChatBody, http: Request) -> Response:
        """POST /v1/chat/completions."""
        self._check_model(body)
        messages = [message.for_template() for message in body.messages]
        ids = self.engine.tokenizer.render_chat(messages, **body.template_variables)
        # Without a limit an answer may fill what the prompt leaves; the engine refuses a prompt that leaves nothing.
        num_tokens = body.num_tokens
        if num_tokens is None:
            num_tokens = max(1, self.engine.max_request_tokens - len(ids))
        params, take_apart = body.sampling(num_tokens), None
        if (form := self.tool_format) and body.offered:
            names = frozenset(tool.function.name for tool in body.offered)
            only_one = body.parallel_tool_calls is False
            take_apart = lambda: ToolAnswer(ToolCallParser(form, names), only_one)  # noqa: E731
            # Otherwise what tells a call from a text would be left out of it.
            if self.engine.tokenizer.is_special(form.marker):
                params = replace(params, skip_special_tokens=False)
        reply = ChatReply(self.model_name, uuid.uuid4().hex, self.engine.tokenizer, take_apart)
        return await self._answer(body, [ids], params, reply, http)

    async def describe_models(self) -> dict[str, Any]:
        """GET /v1/models."""
        return {"object": "list", "data": [await self.describe_model(self.model_name)]}

    async def describe_model(self, name: str) -> dict[str, Any]:
        """GET /v1/models/{name}."""
        self._check_name(name)
        return {
            "id": self.model_name,
            "object": "model",
            "created": self.started,
            "owned_by": "trtx",
            "max_model_len": self.engine.max_request_tokens,
        }

    async def health(self) -> JSONResponse:
        """GET /health: 503 with the reason when the engine serves nobody."""
        failure = self.thread.failure
        if failure is not None:
            return JSONResponse({"status": "unavailable", "reason": failure}, 503)
        return JSONResponse({"status": "ok"})

    async def show_metrics(self) -> Response:
        """GET /metrics."""
        return Response(self.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def health_generate(self) -> JSONResponse:
        """GET /health_generate: 503 unless the engine gives a token in time."""
        request = self.engine.make_request([0], SamplingParams(max_tokens=1, temperature=0))
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                with self.thread.stream([request]) as stream:
                    async for _ in stream:
                        pass
        except EngineFailed as failed:
            return JSONResponse({"status": "unavailable", "reason": str(failed)}, 503)
        except TimeoutError:
            return JSONResponse({"status": "unavailable", "reason": f"no token in {HEALTH_TIMEOUT_S} s"}, 503)
        return JSONResponse({"status": "ok"})

    async def version(self) -> dict[str, str]:
        """GET /version."""
        return {"version": __version__}

    async def show_stats(self) -> dict[str, Any]:
        """GET /stats: totals, how full the engine is, and its last steps one by one."""
        return describe_engine(self.engine)

    async def _answer(
        self, body: Body, prompts: Sequence[list[int]], params: SamplingParams, reply: Reply, http: Request
    ) -> Response:
        choices = params.choices()
        requests = [self.engine.make_request(prompt, choice) for prompt in prompts for choice in choices]
        release = self._take_places(len(requests))
        call = Call(Stream(self.thread, requests), reply, len(choices), http.state.figures, release)
        if body.stream:
            return EventAnswer(call, include_usage=body.include_usage)
        return await answer_whole(http, call)

    def _take_places(self, count: int) -> Callable[[], None]:
        """Places for requests until what is returned is called. Raises ApiProblem when the queue is full."""
        if count > self._max_open:
            raise ApiProblem(f"{count} choices are more than the {self._max_open} that this server takes", param="n")
        if self._open + count > self._max_open:
            raise ApiProblem(
                f"{self._open} requests run or wait, and this server takes {self._max_open}",
                status=429,
                code="queue_full",
                headers={"retry-after": str(RETRY_AFTER_S)},
            )
        self._open += count

        def release() -> None:
            self._open -= count

        return release

    def _check_model(self, body: Body) -> None:
        if body.model is not None:
            self._check_name(body.model)

    def _check_name(self, name: str) -> None:
        if name != self.model_name:
            raise ApiProblem(
                f"there is no model {name!r} here; this server has {self.model_name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )


def create_app(
    engine: Engine,
    *,
    model_name: str,
    max_waiting: int = DEFAULT_MAX_WAITING,
    tool_call_parser: str = AUTO,
    guard: Guard = Guard(),  # noqa: B008 - frozen
    log: Callable[[dict[str, Any]], None] | None = None,
) -> FastAPI:
    """The application around an engine; the engine's thread lives as long as the application's lifespan.

    `log` gets a dictionary for every request that has been answered. Raises as Service does.
    """
    service = Service(engine, model_name, max_waiting, tool_call_parser)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.thread.start()
        yield
        await service.thread.stop()

    # No documentation pages: they would load scripts from another host.
    app = FastAPI(title="trtx", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    install_handlers(app, service.metrics.refused.inc)
    app.add_api_route("/v1/completions", service.complete, methods=["POST"], response_model=None)
    app.add_api_route("/v1/chat/completions", service.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", service.describe_models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", service.describe_model, methods=["GET"])
    app.add_api_route("/health", service.health, methods=["GET"], response_model=None)
    app.add_api_route("/health_generate", service.health_generate, methods=["GET"], response_model=None)
    app.add_api_route("/version", service.version, methods=["GET"])
    app.add_api_route("/stats", service.show_stats, methods=["GET"])
    app.add_api_route("/metrics", service.show_metrics, methods=["GET"], response_model=None)
    app.add_middleware(Gate, guard=guard, log=log)
    return app
