"""Who may come in, and that the page asks no other machine: over the real server, and over a stand-in application."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra: pip install 'lumos[serve]'")
pytest.importorskip("gradio", reason="the server needs the extra: pip install 'lumos[serve]'")

import httpx

from lumos.serving.config import ServeConfig
from lumos.serving.guard import COOKIE, Guard

KEY = "correct horse battery"


async def inside(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"access-control-allow-origin", b"*")]})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(config: ServeConfig, method: str, path: str, **rest: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(Guard(inside, inside, config))
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
        for path in ("/v1/videos", "/", "/config", "/metrics", "/docs", "/openapi.json"):
            assert ask(locked, "GET", path, headers=headers).status_code == 401, (headers, path)
    assert ask(locked, "GET", "/health").text == "inside"
    assert ask(locked, "GET", "/v1/videos", headers={"Authorization": f"Bearer {KEY}"}).text == "inside"


def test_a_browser_signs_in_with_the_key_and_never_carries_it(locked: ServeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    away = ask(locked, "GET", "/", headers={"Accept": "text/html"})
    assert (away.status_code, away.headers["location"]) == (303, "/login")
    assert 'type="password"' in ask(locked, "GET", "/login").text

    async def at_once(seconds: float) -> None: ...

    monkeypatch.setattr("lumos.serving.guard.asyncio.sleep", at_once)
    wrong = ask(locked, "POST", "/login", data={"key": "guess"})
    assert wrong.status_code == 401 and "not the key" in wrong.text and "set-cookie" not in wrong.headers
    right = ask(locked, "POST", "/login", data={"key": KEY})
    assert (
        right.status_code == 303
        and "HttpOnly" in right.headers["set-cookie"]
        and "SameSite=Strict" in right.headers["set-cookie"]
    )
    assert KEY not in right.headers["set-cookie"]
    cookie = right.headers["set-cookie"].partition(";")[0]
    assert ask(locked, "GET", "/", headers={"Cookie": cookie}).text == "inside"
    other = replace(locked, api_key=KEY + " changed")
    assert ask(other, "GET", "/", headers={"Cookie": cookie}).status_code == 401


def test_other_sites_get_nothing(local: ServeConfig) -> None:
    assert ask(local, "GET", "/v1/videos", headers={"Host": "evil.example"}).status_code == 403  # a name made to lead here
    assert ask(local, "POST", "/v1/videos", headers={"Origin": "http://evil.example"}).status_code == 403
    assert ask(local, "POST", "/v1/videos", headers={"Origin": "null"}).status_code == 403
    assert ask(local, "POST", "/v1/videos", headers={"Origin": "http://127.0.0.1:7860"}).status_code == 200
    answer = ask(local, "GET", "/v1/videos", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/startup-events",
     "/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://localhost/", "/gradio_api/queue/join",
     "/gradio_api/run/predict", "/file=/etc/passwd", "/static/../../etc/passwd", "/assets/.env", "/monitoring", "/admin"],
)  # fmt: skip
def test_what_the_page_does_not_need_is_shut(local: ServeConfig, path: str) -> None:
    for method in ("GET", "POST"):
        assert ask(local, method, path).status_code == 404


def test_nothing_of_the_page_is_elsewhere(server: Any) -> None:
    page = server.http.get("/")
    assert page.status_code == 200 and "Lumos" in page.text
    loads = re.findall(r"""(?:src|href)=["']?(https?:)?//[^"' >]+""", re.sub(r"<meta[^>]*>", "", page.text))
    assert not loads
    assert '"analytics_enabled":false' in page.text.replace(" ", "")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    theme = server.http.get("/theme.css").text
    assert "googleapis" not in theme
    docs = server.http.get("/docs").text
    assert "cdn" not in docs and server.http.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def test_openapi_names_every_route_and_its_errors(server: Any) -> None:
    document = server.http.get("/openapi.json").json()
    assert set(document["paths"]["/v1/videos"]) == {"get", "post"}
    assert {"200", "400", "401", "403", "408", "413", "429", "503"} <= set(document["paths"]["/v1/videos"]["post"]["responses"])
    schemas = document["components"]["schemas"]
    for reference in re.findall(r"#/components/schemas/(\w+)", str(document)):
        assert reference in schemas


def test_health_and_metrics(server: Any) -> None:
    assert server.http.get("/health").json()["status"] == "ok"
    text = server.http.get("/metrics").text
    for name in ("lumos_queue_waiting", "lumos_videos_total", "lumos_http_seconds_bucket", "lumos_worker_ready 1.0"):
        assert name in text
