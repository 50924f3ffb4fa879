"""What every request passes first: who may come in, from where, how much they may send and how long they may take.

Plain ASGI around the whole application. A browser signs in at /login and keeps a cookie; programs send the key as a header.
Answers get headers that keep a browser from asking any other machine; nothing allows other sites to read them.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.formparsers import MultiPartException

from lumos.serving.config import ServeConfig
from lumos.serving.request import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

COOKIE = "lumos_session"
SMALL_BODY = 2**20  # bytes of anything that is no upload
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = ("/health", "/live", "/login", "/logout", "/icon.svg", "/page.css")
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'"
)
LOOSE = POLICY + "; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"  # the library's pages of the API


class BodyRefused(RequestError, MultiPartException):
    """A body that is given up while it arrives. The form parser cleans up after its own kind of exception only."""


class Access:
    """ASGI middleware before everything else; `config` says what is allowed."""

    def __init__(self, app: App, config: ServeConfig) -> None:
        self.app, self.config = app, config

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        stop = self._refusal(method, headers)
        if stop:
            await _answer(send, *stop)
        elif path not in OPEN_PATHS and not self._may_enter(headers):
            if path == "/" and "text/html" in headers.get("accept", ""):
                await _answer(send, 303, "no_key", "sign in first", (b"location", b"/login"))
            else:
                message = "this server needs its API key; send the header Authorization: Bearer KEY"
                await _answer(send, 401, "no_key", message, (b"www-authenticate", b"Bearer"))
        else:
            await self._pass_on(scope, receive, send, headers)

    def _refusal(self, method: str, headers: dict[str, str]) -> tuple[int, str, str] | None:
        host, public = headers.get("host", "").lower(), self.config.public_host
        name = re.sub(r":\d+$", "", host).strip("[]")
        if self.config.is_local and name not in (*LOCAL_NAMES, self.config.host.lower().strip("[]")) and host != public:
            # another name that leads here is a web site's attempt to read a server on the reader's own machine
            return 403, "wrong_host", "this server answers as localhost only; --public-url or --host lets it have other names"
        if method not in ("GET", "HEAD", "OPTIONS") and not _is_own_site(headers, (host, public)):
            return 403, "wrong_origin", "requests from other web sites are refused"
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._room(headers):
            return 413, "too_large", self._too_large()
        return None

    def _may_enter(self, headers: dict[str, str]) -> bool:
        if self.config.api_key is None:
            return True
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return hmac.compare_digest(key.strip().encode(), self.config.api_key.encode())
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), session_of(self.config.api_key).encode())

    async def _pass_on(self, scope: Message, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        room, came, whole = self._room(headers), 0, False
        deadline = asyncio.get_running_loop().time() + self.config.upload_seconds

        async def limited() -> Message:
            nonlocal came, whole
            if whole:
                return await receive()  # waits for the client to leave
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                late = f"the request took more than {self.config.upload_seconds:g} s to arrive; use a smaller file"
                raise BodyRefused(408, late, code="too_slow") from None
            if message["type"] == "http.disconnect":
                raise BodyRefused(400, "the connection was closed before the request was whole", code="closed")
            came += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if came > room:
                raise BodyRefused(413, self._too_large(), code="too_large")
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [item for item in message.get("headers", []) if not item[0].lower().startswith(b"access-control-")]
                loose = scope["path"] in ("/docs", "/redoc")
                message = {**message, "headers": [*own, *_safety(LOOSE if loose else POLICY)]}
            await send(message)

        # every GET route answers HEAD, too: the HTTP library leaves out the body of what is answered to one
        is_head = scope["method"] == "HEAD"
        await self.app({**scope, "method": "GET", "is_head": True} if is_head else scope, limited, with_headers)

    def _room(self, headers: dict[str, str]) -> int:
        is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        return self.config.upload_bytes + SMALL_BODY if is_form else SMALL_BODY

    def _too_large(self) -> str:
        return f"a file may have at most {self.config.upload_bytes // 2**20} MiB, and anything else 1 MiB; send a smaller one"


def _is_own_site(headers: dict[str, str], hosts: tuple[str, ...]) -> bool:
    """Whether a request that changes something comes from our own page, or from no page at all.

    Browsers say so in Sec-Fetch-Site where the connection is safe, else in Origin; programs send neither.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or origin.lower().partition("://")[2] in filter(None, hosts)


def error_body(status: int, code: str, message: str, field: str | None = None) -> dict[str, Any]:
    """The form of every error that a client sees, as in OpenAI's API."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


async def _answer(send: Send, status: int, code: str, message: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps(error_body(status, code, message)).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *_safety(POLICY)]})
    await send({"type": "http.response.body", "body": body})


def _safety(policy: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),  # with no-referrer a browser would send Origin: null with a form
        (b"cross-origin-resource-policy", b"same-origin"),
    ]


def add_login(app: FastAPI, config: ServeConfig) -> None:
    """Signing in with the key, which is not kept: the cookie holds what only its owner could have got. And out again."""
    page = (Path(__file__).parent / "login.html").read_text("utf-8")
    settings: dict[str, Any] = {"httponly": True, "samesite": "strict", "secure": (config.public_url or "").startswith("https")}

    @app.get("/login", include_in_schema=False)
    async def show() -> Response:
        return RedirectResponse("/", 303) if config.api_key is None else HTMLResponse(page.replace("{problem}", ""))

    @app.post("/login", include_in_schema=False)
    async def sign_in(request: Request) -> Response:
        given = parse_qs((await request.body()).decode("utf-8", "replace")).get("key", [""])[0].strip()
        if config.api_key is not None and not hmac.compare_digest(given.encode(), config.api_key.encode()):
            await asyncio.sleep(0.5)  # guessing should be slow
            return HTMLResponse(page.replace("{problem}", "That is not the key of this server."), 401)
        answer = RedirectResponse("/", 303)
        if config.api_key is not None:
            answer.set_cookie(COOKIE, session_of(config.api_key), max_age=2592000, **settings)
        return answer

    @app.post("/logout", include_in_schema=False)
    async def sign_out() -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, **settings)
        return answer


def session_of(key: str) -> str:
    return hmac.new(key.encode(), b"lumos session", hashlib.sha256).hexdigest()
