"""The HTTP application: routes of the OpenAI API, health and metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from trtx import __version__
from trtx.runtime.engine import Engine
from trtx.runtime.loop import EngineThread
from trtx.serve.answers import EventAnswer, answer_whole
from trtx.serve.metrics import ServerMetrics
from trtx.serve.problems import ApiProblem, install_handlers
from trtx.serve.replies import ChatReply, CompletionReply, Reply
from trtx.serve.schema import Body, ChatBody, CompletionBody


class Service:
    """What the routes share: the engine in its thread, under the name that clients call it by."""

    def __init__(self, engine: Engine, model_name: str) -> None:
        self.engine = engine
        self.model_name = model_name
        self.metrics = ServerMetrics(engine)
        self.thread = EngineThread(engine, self.metrics.observe)
        self.started = int(time.time())

    async def complete(self, body: CompletionBody, http: Request) -> Response:
        """POST /v1/completions."""
        self._check_model(body)
        return await self._answer(body, body.prompt, body.num_tokens, CompletionReply(self.model_name), http)

    async def chat(self, body: ChatBody, http: Request) -> Response:
        """POST /v1/chat/completions."""
        self._check_model(body)
        ids = self.engine.tokenizer.render_chat([message.for_template() for message in body.messages])
        # Without a limit an answer may fill what the prompt leaves; the engine refuses a prompt that leaves nothing.
        num_tokens = body.num_tokens
        if num_tokens is None:
            num_tokens = max(1, self.engine.max_request_tokens - len(ids))
        return await self._answer(body, [ids], num_tokens, ChatReply(self.model_name), http)

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

    async def _answer(
        self, body: Body, prompts: Sequence[str | list[int]], num_tokens: int, reply: Reply, http: Request
    ) -> Response:
        params = body.sampling(num_tokens)
        stream = self.thread.stream([self.engine.make_request(prompt, params) for prompt in prompts])
        if body.stream:
            return EventAnswer(stream, reply, include_usage=body.include_usage)
        return await answer_whole(http, stream, reply)

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


def create_app(engine: Engine, *, model_name: str) -> FastAPI:
    """The application around an engine; the engine's thread lives as long as the application's lifespan."""
    service = Service(engine, model_name)

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
    app.add_api_route("/metrics", service.show_metrics, methods=["GET"], response_model=None)
    return app
