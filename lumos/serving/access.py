"""What every request passes first: who may come in, from where, how much they may send and how long they may take.

Plain ASGI around the whole application. A browser signs in at /login and keeps a cookie; programs send the key as a header.
Answers get headers that keep a browser from asking any other machine; nothing allows other sites to read them.
"""

import asyncio
import hashlib
import hmac
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lumos.serving.config import ServeConfig
from lumos.serving.errors import RequestError
from lumos.serving.metrics import Metrics

COOKIE = "lumos_session"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = ("/health", "/live", "/login", "/logout", "/icon.svg", "/page.css")
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'"
)
LOOSE = POLICY + "; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"  # the library's pages of the API
SAFETY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),  # with no-referrer a browser would send Origin: null with a form
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Access:
    """ASGI middleware before everything else; `config` says what is allowed."""

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics) -> None:
        self.app, self.config, self.metrics = app, config, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin, request = time.perf_counter(), Request(scope)
        if scope["method"] == "HEAD":  # every GET route answers it: the HTTP library leaves out the body
            scope = {**scope, "method": "GET", "is_head": True}

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = LOOSE if scope["path"] in ("/docs", "/redoc") else POLICY
                message["headers"] = [*message["headers"], (b"content-security-policy", policy.encode()), *SAFETY]
                self.metrics.count(scope, message["status"], time.perf_counter() - begin)
            await send(message)

        app = self.app
        try:
            self._check_origin(request)
            if scope["path"] not in OPEN_PATHS:
                self._check_key(request)
        except RequestError as error:
            wants_page = error.status == 401 and scope["path"] == "/" and "text/html" in request.headers.get("accept", "")
            app = RedirectResponse("/login", 303) if wants_page else error.answer()
        await app(scope, self._limited(receive, request), send_safely)

    def _check_origin(self, request: Request) -> None:
        """Refuse what another web site makes a browser send."""
        headers, public = request.headers, urlsplit(self.config.public_url or "").netloc.lower()
        host = headers.get("host", "").lower()
        name = re.sub(r":\d+$", "", host).strip("[]")
        if self.config.is_local and name not in (*LOCAL_NAMES, self.config.host.lower().strip("[]")) and host != public:
            # another name that leads here is a web site's attempt to read a server on the reader's own machine
            words = "this server answers as localhost only; --public-url or --host lets it have other names"
            raise RequestError(403, words, code="wrong_host")
        # Browsers say where a request comes from in Sec-Fetch-Site if the connection is safe, else in Origin; programs do not.
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:
            is_own = site in ("same-origin", "none")
        else:
            is_own = origin is None or origin.lower().partition("://")[2] in filter(None, (host, public))
        if request.method not in ("GET", "HEAD", "OPTIONS") and not is_own:
            raise RequestError(403, "requests from other web sites are refused", code="wrong_origin")

    def _check_key(self, request: Request) -> None:
        wanted = self.config.api_key
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if wanted is not None and kind.lower() != "bearer":
            given, wanted = request.cookies.get(COOKIE, ""), session_of(wanted)
        if wanted is not None and not hmac.compare_digest(given.strip().encode(), wanted.encode()):
            words = "this server needs its API key; send the header Authorization: Bearer KEY"
            raise RequestError(401, words, code="no_key", headers={"www-authenticate": "Bearer"})

    def _limited(self, receive: Receive, request: Request) -> Receive:
        """`receive`, which gives up on a body that is too large, too slow or cut off."""
        is_form = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
        most, came, whole = self.config.upload_mb, 0, False
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
                raise RequestError(408, late, code="too_slow") from None
            if message["type"] == "http.disconnect":
                raise RequestError(400, "the connection was closed before the request was whole", code="closed")
            came += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if came > (1 + most * is_form) * 2**20:
                words = f"a file may have at most {most} MiB, and anything else 1 MiB; send a smaller one"
                raise RequestError(413, words, code="too_large")
            return message

        return limited


def add_login(app: FastAPI, config: ServeConfig) -> None:
    """Signing in with the key, which is not kept: the cookie holds what only its owner could have got. And out again."""
    page = (Path(__file__).parent / "login.html").read_text("utf-8")
    settings: dict[str, Any] = {"httponly": True, "samesite": "strict", "secure": (config.public_url or "").startswith("https")}

    @app.get("/login", include_in_schema=False)
    async def show() -> Response:
        return RedirectResponse("/", 303) if config.api_key is None else HTMLResponse(page.replace("{problem}", ""))

    @app.post("/login", include_in_schema=False)
    async def sign_in(request: Request) -> Response:
        answer = RedirectResponse("/", 303)
        given = str((await request.form()).get("key", "")).strip()
        if config.api_key is not None:
            if not hmac.compare_digest(given.encode(), config.api_key.encode()):
                await asyncio.sleep(0.5)  # guessing should be slow
                return HTMLResponse(page.replace("{problem}", "That is not the key of this server."), 401)
            answer.set_cookie(COOKIE, session_of(config.api_key), max_age=30 * 24 * 3600, **settings)
        return answer

    @app.post("/logout", include_in_schema=False)
    async def sign_out() -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, **settings)
        return answer


def session_of(key: str) -> str:
    return hmac.new(key.encode(), b"lumos session", hashlib.sha256).hexdigest()
