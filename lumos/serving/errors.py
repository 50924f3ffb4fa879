"""Every error that a route can end in: its status, what it means in the OpenAPI document, and the answer in words.

The form is OpenAI's: {"error": {"message", "type", "param", "code"}} (guard.error_body).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from lumos.serving.ask import Refused
from lumos.serving.engine import Engine, Unready
from lumos.serving.fair import Full
from lumos.serving.guard import error_body

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": words, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    for status, words in {
        400: "something is wrong with the request; the message says what and how to mend it",
        401: "the key is missing or wrong",
        403: "refused, as it comes from another web site",
        404: "there is no such video",
        408: "the body came too slowly",
        409: "the video is not finished, or has failed",
        413: "the body is too large",
        416: "the range lies outside the file",
        429: "this client has enough requests waiting",
        503: "the queue is full, or the model is starting again; Retry-After says when to come back",
    }.items()
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route's description says of these, and of those that every route may answer with."""
    return {status: ERRORS[status] for status in (400, 401, 403, *statuses)}


def add_errors(app: FastAPI, engine: Engine) -> None:
    """Turn every exception of a route into an answer, and count it."""

    def answer(
        status: int,
        code: str,
        message: str,
        field: str | None = None,
        wait: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> JSONResponse:
        headers = {"retry-after": str(wait)} if wait else headers
        engine.counts["refused"] += 1
        return JSONResponse(error_body(status, code, message, field), status, headers)

    def handle(kind: type[Exception], make: Callable[[Any], JSONResponse]) -> None:
        async def handler(request: Request, error: Exception) -> JSONResponse:
            return make(error)

        app.add_exception_handler(kind, handler)

    def full(error: Full) -> JSONResponse:
        wait = engine.wait_estimate()
        if error.mine:
            return answer(429, "too_many_waiting", f"you have enough requests waiting; come back in {wait} s", wait=wait)
        return answer(503, "queue_full", f"the queue is full; come back in {wait} s", wait=wait)

    def invalid(error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return answer(400, "invalid_request", f"{name}: {str(first['msg']).lower()}", name)

    handle(Refused, lambda error: answer(error.status, error.code, error.message, error.field))
    handle(Full, full)
    handle(Unready, lambda _: answer(503, "starting", "the model is being loaded; come back in 10 s", wait=10))
    handle(RequestValidationError, invalid)

    async def other(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        headers = error.headers
        if error.status_code == 405:  # the library names the methods of the first route of this path only
            routes = [route for route in app.routes if isinstance(route, APIRoute) and route.path_regex.match(request.url.path)]
            headers = {"allow": ", ".join(sorted({method for route in routes for method in route.methods or ()}))}
        return answer(error.status_code, "http_error", str(error.detail).lower(), headers=headers)

    app.add_exception_handler(HTTPException, other)
