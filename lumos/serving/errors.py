"""Every error that a route can end in: its status, what it means in the OpenAPI document, and the answer in words.

The form is OpenAI's: {"error": {"message", "type", "param", "code"}} (access.error_body).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from lumos.serving.access import error_body
from lumos.serving.queue import QueueFull
from lumos.serving.request import RequestError
from lumos.serving.service import Service, WorkerUnavailable

log = logging.getLogger("lumos.serving")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class Error(BaseModel):
    error: ErrorDetail


MEANINGS = {
    400: "something is wrong with the request; the message says what and how to mend it",
    401: "the key is missing or wrong",
    403: "refused, as it comes from another web site",
    404: "there is no such video",
    408: "the body came too slowly",
    409: "the video is not finished, or has failed",
    412: "the file is not the one that the request's conditions name",
    413: "the body is too large",
    416: "the range lies outside the file",
    429: "this client has enough requests waiting",
    503: "the queue or the disk is full, or the model is being loaded; Retry-After says when to come back",
}


# what the description of every route says of errors
ERRORS: dict[int | str, dict[str, Any]] = {
    **{status: {"model": Error, "description": words} for status, words in MEANINGS.items()},
    "default": {"model": Error, "description": "any other error"},
}


def add_errors(app: FastAPI, service: Service) -> None:
    """Turn every exception of a route into an answer, and count it."""

    def answer(status: int, code: str, message: str, field: str | None = None, headers: Mapping[str, str] | None = None) -> Any:
        service.counts["refused"] += 1
        return JSONResponse(error_body(status, code, message, field), status, headers)

    def handle(kind: type[Exception], make: Callable[[Any], JSONResponse]) -> None:
        async def handler(request: Request, error: Exception) -> JSONResponse:
            return make(error)

        app.add_exception_handler(kind, handler)

    def full(error: QueueFull) -> JSONResponse:
        wait = service.wait_estimate()
        status, code, what = (429, "too_many_waiting", "you have enough requests waiting") if error.mine else (
            503, "queue_full", "the queue is full"
        )  # fmt: skip
        return answer(status, code, f"{what}; come back in {wait} s", headers={"retry-after": str(wait)})

    def invalid(error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return answer(400, "invalid_request", f"{name}: {str(first['msg']).lower()}", name)

    def disk(error: OSError) -> JSONResponse:
        log.error("cannot use the disk: %s", error.strerror or error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        words = "the server's disk is full; try again later" if full else "the server cannot use its disk; try again later"
        return answer(503, "disk", words, headers={"retry-after": "60"})

    starting = "the model is being loaded; come back in 10 s"
    handle(RequestError, lambda error: answer(error.status, error.code, error.message, error.field, error.headers))
    handle(QueueFull, full)
    handle(WorkerUnavailable, lambda _: answer(503, "starting", starting, headers={"retry-after": "10"}))
    handle(RequestValidationError, invalid)
    handle(OSError, disk)
    handle(Exception, lambda _: answer(500, "fault", "the server met a fault; it has been logged"))

    async def other(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        headers = error.headers
        if error.status_code == 405:  # the library names the methods of the first route of this path only
            routes = [route for route in app.routes if isinstance(route, APIRoute) and route.path_regex.match(request.url.path)]
            methods = {method for route in routes for method in route.methods or ()}
            headers = {"allow": ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))}
        code = "not_found" if error.status_code == 404 else "http_error"
        return answer(error.status_code, code, str(error.detail).lower(), headers=headers)

    app.add_exception_handler(HTTPException, other)
