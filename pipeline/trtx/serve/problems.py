"""Errors in the shape of the OpenAI API: https://platform.openai.com/docs/guides/error-codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from trtx.runtime.owner import EngineFailed
from trtx.runtime.request import RequestRefused

# Parts of a path that name fields and items; what pydantic adds after them are its own types.
PATH_DEPTH = {"messages": 3, "stream_options": 2, "tools": 4}
# Types of errors that have a name of their own, by status.
KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class ApiProblem(Exception):
    """A request that gets an error; `param` names the field at fault, `code` is for programs."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The JSON of the error."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def install_handlers(app: FastAPI, on_refused: Callable[[], None]) -> None:
    """Make every error of the application one of this shape; `on_refused` is called for each that the client caused."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        problem = to_problem(request, error)
        if problem.status < 500:
            on_refused()
        headers = error.headers if isinstance(error, HTTPException) else problem.headers
        return JSONResponse(problem.body(), problem.status, headers=headers)

    for kind in (ApiProblem, RequestRefused, RequestValidationError, EngineFailed, HTTPException):
        app.add_exception_handler(kind, answer)


def to_problem(request: Request, error: Exception) -> ApiProblem:
    """The problem that an exception of a route stands for."""
    match error:
        case ApiProblem():
            return error
        case RequestRefused():
            message = f"{error.what}; {error.fix}" if error.fix else error.what
            return ApiProblem(message, param=error.param, code=error.code)
        case RequestValidationError():
            return _describe_invalid(error.errors())
        case EngineFailed():
            return engine_unavailable(error)
        case HTTPException():
            path = request.url.path
            messages = {404: f"there is no {path} here", 405: f"{path} does not take {request.method}"}
            return ApiProblem(messages.get(error.status_code, error.detail), status=error.status_code)
        case _:
            raise error


def engine_unavailable(failed: EngineFailed) -> ApiProblem:
    """The problem of every request once the engine has stopped."""
    return ApiProblem(str(failed), status=503, code="engine_unavailable")


def _describe_invalid(errors: Sequence[Mapping[str, Any]]) -> ApiProblem:
    """The first of pydantic's errors about a body; `loc` begins with "body"."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiProblem(f"the body is not JSON: {first['ctx']['error']}")
    names = first["loc"][1:]
    path = ".".join(str(part) for part in names[: PATH_DEPTH.get(names[0], 1)]) if names else ""
    # Errors of the whole body name their field themselves.
    field = (first.get("ctx") or {}).get("field") or path
    if not field:
        return ApiProblem("the body must be a JSON object, sent with content-type: application/json")
    return ApiProblem(first["msg"] if field in first["msg"] else f"{field}: {first['msg']}", param=field)
