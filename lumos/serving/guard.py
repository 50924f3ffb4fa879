"""What every request passes first: who may come in, from where, how much they may send and how long they may take.

Plain ASGI around the whole application, the page included. Answers get headers that keep a browser from asking any other machine;
nothing allows other sites to read them.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.formparsers import MultiPartException

from lumos.serving.ask import Refused
from lumos.serving.config import ServeConfig

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

COOKIE = "lumos_session"
SMALL_BODY = 2**20  # of anything that is no upload
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = ("/health", "/login")
# What the page needs of the library that draws it: files. Everything else of it (uploads, calls, proxies) stays shut.
PAGE_FILES = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/(assets|static|svelte)/[^.][^?]*"
    r"|/gradio_api/(info|app_id|theme\.css|heartbeat/\w+)/?"
)
OURS = re.compile(r"/(v1|docs|redoc|openapi\.json|static-offline-docs|health|metrics|login)(/|$)")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class BodyRefused(Refused, MultiPartException):
    """A body that is given up while it arrives. The form parser cleans up after its own kind of exception only."""

    def __init__(self, status: int, message: str, code: str) -> None:
        Refused.__init__(self, status, message, code=code)


class Guard:
    """ASGI middleware before the API and the page; `config` says what is allowed."""

    def __init__(self, api: App, page: App, config: ServeConfig) -> None:
        self.api, self.page, self.config = api, page, config
        self.session = hmac.new((config.api_key or "").encode(), b"lumos session", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        stop = self._refusal(path, method, headers)
        if stop:
            await _answer(send, *stop)
        elif path == "/login":
            await self._login(method, receive, send)
        elif path not in OPEN_PATHS and not self._may_enter(headers):
            await self._unknown(headers, path, send)
        else:
            await self._pass_on(scope, receive, send, headers)

    def _refusal(self, path: str, method: str, headers: dict[str, str]) -> tuple[int, str, str] | None:
        if not (OURS.match(path) or (PAGE_FILES.fullmatch(path) and method in ("GET", "HEAD"))):
            return 404, "not_found", "there is nothing here; see /docs"
        host = headers.get("host", "")
        name = re.sub(r":\d+$", "", host).strip("[]")
        if self.config.is_local and name not in (*LOCAL_NAMES, self.config.host.strip("[]")):
            # another name that leads here is a web site's attempt to read a server on the reader's own machine
            return 403, "wrong_host", "this server answers as localhost only; start it with --host to be reached by other names"
        origin = headers.get("origin")
        if method not in ("GET", "HEAD", "OPTIONS") and origin and origin.partition("://")[2] != host:
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
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self.session.encode())

    async def _unknown(self, headers: dict[str, str], path: str, send: Send) -> None:
        if path == "/" and "text/html" in headers.get("accept", ""):
            await _plain(send, 303, b"", [(b"location", b"/login")])
        else:
            message = "this server needs its API key; send the header Authorization: Bearer KEY"
            await _answer(send, 401, "no_key", message, [(b"www-authenticate", b"Bearer")])

    async def _login(self, method: str, receive: Receive, send: Send) -> None:
        if self.config.api_key is None:
            await _plain(send, 303, b"", [(b"location", b"/")])
        elif method == "POST":
            try:
                form = parse_qs((await self._body(receive, 4096)).decode("utf-8", "replace"))
            except TimeoutError:
                form = {}
            key = form.get("key", [""])[0].strip()
            if hmac.compare_digest(key.encode(), self.config.api_key.encode()):
                cookie = f"{COOKIE}={self.session}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000"
                await _plain(send, 303, b"", [(b"location", b"/"), (b"set-cookie", cookie.encode())])
            else:
                await asyncio.sleep(0.5)  # guessing should be slow
                await _plain(send, 401, _login_page("That is not the key of this server."), HTML)
        else:
            await _plain(send, 200, _login_page(""), HTML)

    async def _pass_on(self, scope: Message, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        room, came = self._room(headers), 0
        deadline = asyncio.get_running_loop().time() + self.config.upload_seconds
        whole = False

        async def limited() -> Message:
            nonlocal came, whole
            if whole:
                return await receive()  # waits for the client to leave
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                late = f"the request took more than {self.config.upload_seconds:g} s to arrive; use a smaller file"
                raise BodyRefused(408, late, "too_slow") from None
            if message["type"] == "http.disconnect":
                raise BodyRefused(400, "the connection was closed before the request was whole", "closed")
            came += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if came > room:
                raise BodyRefused(413, self._too_large(), "too_large")
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [item for item in message.get("headers", []) if not item[0].lower().startswith(b"access-control-")]
                message = {**message, "headers": [*own, *HEADERS]}
            await send(message)

        app = self.api if OURS.match(scope["path"]) else self.page
        await app(scope, limited, with_headers)

    async def _body(self, receive: Receive, room: int) -> bytes:
        body, more = b"", True
        async with asyncio.timeout(self.config.upload_seconds):
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > room or message["type"] == "http.disconnect":
                    return b""
        return body

    def _room(self, headers: dict[str, str]) -> int:
        is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        return self.config.upload_bytes + SMALL_BODY if is_form else SMALL_BODY

    def _too_large(self) -> str:
        return f"a file may have at most {self.config.upload_bytes // 2**20} MiB, and anything else 1 MiB; send a smaller one"


HTML = [(b"content-type", b"text/html; charset=utf-8")]


def error_body(status: int, code: str, message: str, field: str | None = None) -> dict[str, Any]:
    """The form of every error that a client sees, as in OpenAI's API."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


async def _answer(send: Send, status: int, code: str, message: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = json.dumps(error_body(status, code, message)).encode()
    await _plain(send, status, body, [(b"content-type", b"application/json"), *(headers or [])])


async def _plain(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    size = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *size, *HEADERS]})
    await send({"type": "http.response.body", "body": body})


def _login_page(problem: str) -> bytes:
    warning = f'<p role="alert">{problem}</p>' if problem else ""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Lumos</title><style>
:root{{color-scheme:light dark}} body{{font:16px/1.5 system-ui,sans-serif;display:grid;place-items:center;
min-height:90vh;margin:0;background:light-dark(#f7f6fb,#0e0d14);color:light-dark(#1d1a29,#eceaf5)}}
form{{display:grid;gap:14px;width:min(22rem,86vw);padding:28px;border-radius:18px;background:light-dark(#fff,#171522);
box-shadow:0 10px 40px #0002}} h1{{margin:0;font-size:1.5rem}} p{{margin:0}} [role=alert]{{color:light-dark(#b3261e,#ff9a8f)}}
input,button{{font:inherit;padding:11px 14px;border-radius:11px;border:1px solid #8886}}
button{{background:#5b4bdb;color:#fff;border:0;font-weight:600;cursor:pointer}}
</style><form method="post" action="/login"><h1>Lumos</h1><label for="key">The key of this server</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>{warning}
<button>Come in</button></form></html>""".encode()
