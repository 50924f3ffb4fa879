"""Who may come in, and that the page asks no other machine: over the real server, and over a stand-in application."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI

from lumos.config import PACKAGED
from lumos.known_words import in_known_words
from lumos.sequence.text import WORDS_FILE
from lumos.serving import access
from lumos.serving.access import COOKIE, Access, add_login
from lumos.serving.config import ServeConfig
from lumos.serving.errors import RequestError
from lumos.serving.metrics import Metrics

KEY = "correct horse battery"


async def inside(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def application(config: ServeConfig) -> Any:
    app = FastAPI()
    add_login(app, config)
    app.mount("/", inside)
    return app


def ask(config: ServeConfig, method: str, path: str, **rest: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(Access(application(config), config, Metrics("toy")))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as http:
            return await http.request(method, path, **rest)

    return asyncio.run(send())


@pytest.fixture
def local(tmp_path: Path) -> ServeConfig:
    return ServeConfig(data=tmp_path)


@pytest.fixture
def locked(tmp_path: Path) -> ServeConfig:
    return ServeConfig(data=tmp_path, host="0.0.0.0", api_key=KEY)


def test_without_a_key_nobody_comes_in(locked: ServeConfig) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": KEY},
        {"Cookie": f"{COOKIE}=x"},
        {"Cookie": ";;=\x01"},
    ):
        for path in ("/v1/videos", "/", "/page.js", "/metrics", "/docs", "/openapi.json"):
            assert ask(locked, "GET", path, headers=headers).status_code == 401, (headers, path)
    assert ask(locked, "GET", "/health").text == "inside"
    assert ask(locked, "GET", "/v1/videos", headers={"Authorization": f"Bearer {KEY}"}).text == "inside"


def test_a_browser_signs_in_with_the_key_and_never_carries_it(locked: ServeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    away = ask(locked, "GET", "/", headers={"Accept": "text/html"})
    assert (away.status_code, away.headers["location"]) == (303, "/login")
    page = ask(locked, "GET", "/login")
    assert 'type="password"' in page.text and page.headers["referrer-policy"] == "same-origin"

    async def at_once(seconds: float) -> None: ...

    monkeypatch.setattr("lumos.serving.access.asyncio.sleep", at_once)
    wrong = ask(locked, "POST", "/login", data={"key": "guess"})
    assert wrong.status_code == 401 and "not the key" in wrong.text and "set-cookie" not in wrong.headers
    right = ask(locked, "POST", "/login", data={"key": KEY})
    kept = right.headers["set-cookie"]
    assert right.status_code == 303 and "HttpOnly" in kept and "SameSite=strict" in kept and "Secure" not in kept
    assert KEY not in kept
    cookie = kept.partition(";")[0]
    assert ask(locked, "GET", "/", headers={"Cookie": cookie}).text == "inside"
    assert ask(replace(locked, api_key=KEY + " changed"), "GET", "/", headers={"Cookie": cookie}).status_code == 401
    out = ask(locked, "POST", "/logout", headers={"Cookie": cookie})
    assert out.status_code == 303 and "Max-Age=0" in out.headers["set-cookie"] and out.headers["location"] == "/login"
    public = replace(locked, public_url="https://video.example.org")
    assert "; Secure" in ask(public, "POST", "/login", data={"key": KEY}).headers["set-cookie"]


def test_other_sites_get_nothing(local: ServeConfig) -> None:
    assert ask(local, "GET", "/v1/videos", headers={"Host": "evil.example"}).status_code == 403  # a name made to lead here
    assert ask(local, "GET", "/v1/videos", headers={"Host": "LOCALHOST:7860"}).status_code == 200
    for method in ("POST", "DELETE", "PUT"):
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:7860"},
        ):
            assert ask(local, method, "/v1/videos/a", headers=headers).status_code == 403, (method, headers)
        for headers in ({}, {"Origin": "http://127.0.0.1:7860"}, {"Sec-Fetch-Site": "same-origin", "Origin": "null"}):
            assert ask(local, method, "/v1/videos/a", headers=headers).status_code == 200, (method, headers)
    answer = ask(local, "GET", "/v1/videos", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_a_proxy_with_another_name(tmp_path: Path) -> None:
    config = ServeConfig(data=tmp_path, api_key=KEY, public_url="https://Video.example.org")
    bearer = {"Authorization": f"Bearer {KEY}"}
    passed_on = {"Host": "video.example.org", "Origin": "https://video.example.org"}
    rewritten = {"Host": "127.0.0.1:7860", "Origin": "https://video.example.org"}
    for headers in (passed_on, rewritten):
        assert ask(config, "POST", "/v1/videos", headers={**bearer, **headers}).status_code == 200
    assert ask(config, "POST", "/v1/videos", headers={**bearer, **rewritten, "Origin": "https://b.org"}).status_code == 403
    assert ask(config, "GET", "/", headers={**bearer, "Host": "other.example.org"}).status_code == 403


@pytest.mark.parametrize(
    ("message", "status"), [({"type": "http.disconnect"}, 400), ({"type": "http.request", "body": bytes(2**20 + 1)}, 413)]
)
def test_a_body_that_is_cut_off_or_too_large_is_given_up(local: ServeConfig, message: Any, status: int) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def receive() -> Any:
        return message

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
    with pytest.raises(RequestError) as error:
        asyncio.run(Access(application, local, Metrics("toy"))(scope, receive, receive))  # type: ignore[arg-type]
    assert error.value.status == status


def test_nothing_of_the_page_is_elsewhere(server: Any) -> None:
    page = server.http.get("/")
    assert page.status_code == 200 and "Lumos" in page.text
    found = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert "page.js" in found and not [name for name in found if "//" in name]
    for name in {*found, "stage.js", "client.js"} - {"docs"}:
        answer = server.http.get(f"/{name}")
        assert answer.status_code == 200 and "//" not in re.sub(r"http://www.w3.org|// .*", "", answer.text), name
    assert page.headers["x-content-type-options"] == "nosniff" and "server" not in page.headers
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "unsafe" not in policy
    docs = server.http.get("/docs").text
    assert "cdn" not in docs and "/icon.svg" in docs
    assert server.http.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200
    for path in ("/static-offline-docs/../../../etc/passwd", "/page.py", "/assets/.env", "/admin", "/file=/etc/passwd"):
        answer = server.http.get(path)
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_the_page_proposes_what_the_weights_in_the_package_know() -> None:
    package = Path(access.__file__).parents[1]
    known = (package / "pretrained" / PACKAGED / WORDS_FILE).read_text("utf-8").split()
    source = (package / "serving" / "page.js").read_text("utf-8")
    [proposals] = re.findall(r"^const EXAMPLES.*?^}", source, re.DOTALL | re.MULTILINE)
    found = re.findall(r'"([a-z ]{3,})"', proposals)
    assert len(found) > 30 and not [words for words in found if in_known_words(words, known).note]


def test_openapi_names_every_route_and_its_errors(server: Any) -> None:
    document = server.http.get("/openapi.json").json()
    assert set(document["paths"]["/v1/videos"]) == {"get", "post"}
    answers = set(document["paths"]["/v1/videos"]["post"]["responses"])
    assert {"200", "400", "401", "403", "408", "413", "416", "429", "503", "default"} <= answers and "422" not in answers
    schemas = document["components"]["schemas"]
    for reference in re.findall(r"#/components/schemas/(\w+)", str(document)):
        assert reference in schemas


def test_refused_requests_are_those_with_an_error() -> None:
    metrics = Metrics("toy")
    for status in (200, 399, 400, 503):
        metrics.count({"method": "GET"}, status, 0.1)
    assert metrics.registry.get_sample_value("lumos_refused_requests_total") == 2


def test_health_and_metrics(server: Any) -> None:
    assert server.http.get("/health").json()["status"] == "ok"
    server.http.get("/v1/videos/made_up")
    server.http.request("BREW", "/health")
    text = server.http.get("/metrics").text
    for line in (
        'lumos_made_seconds_bucket{le="0.1"}',
        'model="toy"',
        'lumos_http_requests_total{method="GET",route="/v1/videos/{id}",status="404"}',
        'lumos_http_seconds_count{route="/health"}',
    ):
        assert line in text, line
    assert "made_up" not in text and "lumos_refused_requests_total 0.0" not in text
    assert "BREW" not in text and 'method="other"' in text
