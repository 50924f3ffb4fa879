"""A real server over a tiny random model: one for the whole session, in a thread, and others on demand."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra: pip install 'lumos[serve]'")

import httpx2 as httpx

from lumos.serving.config import ServeConfig
from lumos.serving.server import serve
from tests.toy_model import save_generator, toy_generator


@dataclass
class Running:
    """A server that answers at `url`; `http` is a client of it with a name of its own."""

    url: str
    http: httpx.Client

    def make(self, prompt: str = "a red circle", **asked: Any) -> dict[str, Any]:
        answer = self.http.post("/v1/videos", json={"prompt": prompt, **asked})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def error(self, answer: httpx.Response) -> dict[str, Any]:
        """The error of an answer, checked to be in words, in one line, and to tell nothing about the server's disk."""
        error = dict(answer.json()["error"])
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"] and "\n" not in error["message"]
        assert "/tmp" not in answer.text and os.getcwd() not in answer.text and "Traceback" not in answer.text
        return error

    def events(self, id: str, last: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """(event, data) until the server ends the stream. last: number of the frames event that was seen last."""
        import json

        path = f"/v1/videos/{id}/events"
        with self.http.stream("GET", path, headers={"Last-Event-ID": last}, timeout=60) as lines:
            assert lines.status_code == 200
            word = ""
            for line in lines.iter_lines():
                if line.startswith("event: "):
                    word = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield word, json.loads(line.removeprefix("data: "))

    def finish(self, id: str) -> dict[str, Any]:
        """Wait for the end of a video; its last document."""
        return [data for word, data in self.events(id) if word == "status"][-1]


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_generator(tmp_path_factory.mktemp("weights") / "toy", toy_generator(slots=40, louder=False))


@contextmanager
def running(config: ServeConfig) -> Iterator[Running]:
    started, answer, ends = threading.Event(), [], []

    def ready(address: str) -> None:
        answer.append(address)
        started.set()

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(stop.set))
        try:
            await serve(config, ready, stop)
        finally:
            started.set()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    started.wait()
    try:
        assert answer, "the server did not start"
        url = answer[0].replace("localhost", "127.0.0.1")
        with httpx.Client(base_url=url, timeout=30) as http:
            yield Running(url, http)
    finally:
        ends[0]()
        thread.join()


@pytest.fixture(scope="session")
def toy_config(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    folder, weights = tmp_path_factory.mktemp("data"), str(toy_folder)
    return ServeConfig(data=folder, port=0, weights=weights, device="cpu", upload_mb=1, restart_pause=0.01)


@pytest.fixture(scope="session")
def server(toy_config: ServeConfig) -> Iterator[Running]:
    with running(toy_config) as started:
        yield started


@pytest.fixture
def other_server(toy_config: ServeConfig, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """A server with other settings, of this test alone."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(replace(toy_config, data=tmp_path / "data", **settings)))
