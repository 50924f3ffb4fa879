"""Every way in which a request is refused, told in one form, OpenAI's: {"error": {"message", "type", "param", "code"}}."""

import errno
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

log = logging.getLogger("lumos.serving")


@dataclass(eq=False)
class RequestError(Exception):
    """A request that is answered with an error."""

    status: int  # of HTTP
    message: str
    field: str | None = None  # that is wrong
    code: str = "invalid_request"  # a word for programs
    retry: int | None = None  # seconds after which to come back
    headers: Mapping[str, str] | None = None

    def answer(self) -> JSONResponse:
        message, headers = self.message, self.headers
        if self.retry is not None:
            message, headers = f"{message}; come back in {self.retry} s", {"retry-after": str(self.retry)}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": message, "type": kind, "param": self.field, "code": self.code}
        return JSONResponse({"error": error}, self.status, headers)


@contextmanager
def refusing(field: str, code: str = "invalid_request") -> Iterator[None]:
    """A ValueError inside is about a field of the request."""
    try:
        yield
    except ValueError as error:
        raise RequestError(400, str(error), field, code) from None


class Error(BaseModel):
    error: dict[Literal["message", "type", "param", "code"], str | None]


STATUSES = (400, 401, 403, 404, 408, 409, 412, 413, 416, 429, 503)
# what the OpenAPI description of every route says of errors
ERRORS: dict[int | str, dict[str, Any]] = {n: {"model": Error, "description": HTTPStatus(n).phrase} for n in STATUSES}
ERRORS["default"] = {"model": Error, "description": "any other error"}


async def explain(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request whose route has raised."""
    if isinstance(error, RequestValidationError):
        error = invalid(error.errors()[0])
    elif isinstance(error, HTTPException):
        code = "not_found" if error.status_code == 404 else "http_error"
        headers = {"allow": _allowed(request)} if error.status_code == 405 else error.headers
        error = RequestError(error.status_code, str(error.detail).lower(), code=code, headers=headers)
    elif isinstance(error, OSError):
        log.error("cannot use the disk: %s", error.strerror or error)
        what = "the server's disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "the server cannot use its disk"
        error = RequestError(503, what, code="disk", retry=60)
    elif not isinstance(error, RequestError):
        error = RequestError(500, "the server met a fault; it has been logged", code="fault")
    return error.answer()


HANDLERS: dict[Any, Any] = dict.fromkeys((RequestError, RequestValidationError, HTTPException, OSError, Exception), explain)


def _allowed(request: Request) -> str:
    """The methods of every route of this path; the library names those of the first only."""
    here = [route.methods for route in request.app.routes if route.matches(request.scope)[0] is Match.PARTIAL]
    methods = set[str]().union(*here)
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


def invalid(problem: Mapping[str, Any], known: Iterable[str] = ()) -> RequestError:
    """What pydantic says is wrong with a request, in words. known: the fields that a body may have."""
    kind, words = problem["type"], problem["msg"].removeprefix("Value error, ")
    names = [str(name) for name in problem["loc"] if name not in ("query", "path", "header", "body")]
    if not names:
        words = words.removeprefix("Invalid JSON: ")
        return RequestError(400, f'the body must be a JSON object, like {{"prompt": "a red circle"}} ({words}); see /docs')
    if kind == "extra_forbidden":
        hint = f"known: {', '.join(known)}" if known else "leave it out"
        return RequestError(400, f"unknown field {quoted(names[0])}; {hint}", code="unknown_field")
    got = "" if kind in ("missing", "value_error") else f", got {quoted(problem['input'])}"
    return RequestError(400, f"{names[0]}: {words[:1].lower()}{words[1:]}{got}", names[0])


def quoted(value: Any) -> str:
    """A stranger's value as it is shown in an error."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
