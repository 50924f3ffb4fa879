"""What strangers may not do: too much, too slowly, too often; and a server whose own disk is full says so."""

import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lumos.diffusion.sampler import SamplerConfig
from lumos.media.video import read_image
from lumos.serving.config import ServeConfig
from lumos.serving.request import VideoRequest
from lumos.serving.store import FILES
from lumos.serving.worker import _make

LONG = {"frames": 129, "steps": 16}


def test_too_many_bytes_announced_or_not(server: Any) -> None:
    def drip() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield bytes(2**16)

    for path, sent in (
        ("/v1/uploads", {"files": {"file": bytes(3 * 2**20)}}),
        ("/v1/uploads", {"content": drip(), "headers": {"Content-Type": "multipart/form-data; boundary=x"}}),
    ):
        answer = server.http.post(path, **sent)
        assert answer.status_code == 413 and "1 MiB" in server.error(answer)["message"]


def test_a_form_that_is_cut_off_is_refused(server: Any) -> None:
    field = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    form = field % (b"prompt", b"a") + field % (b"frames", b"5") + b"--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    for end in range(1, len(form) - 2, 7):
        answer = server.http.post("/v1/videos", content=form[:end], headers=kind)
        assert answer.status_code == 400, end
        server.error(answer)
    for whole in (form, form[:-2], form + b"an epilogue"):
        video = server.http.post("/v1/videos", content=whole, headers=kind)
        assert video.status_code == 200 and video.json()["frames"] == 5
        server.http.post(f"/v1/videos/{video.json()['id']}/cancel")


def test_a_full_disk_is_told_in_words_and_nothing_stays(
    server: Any, toy_config: ServeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    known, folders = server.http.get("/v1/videos").json()["data"], set((toy_config.data / "videos").iterdir())
    for broken, path, sent in (
        ("store.os.replace", "/v1/videos", {"json": {"prompt": "a"}}),
        ("uploads.shutil.copyfileobj", "/v1/uploads", {"files": {"file": b"any"}}),
        ("uploads.tempfile.mkdtemp", "/v1/videos", {"data": {"prompt": "a"}, "files": {"input_reference": b"any"}}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"lumos.serving.{broken}", full)
            answer = server.http.post(path, **sent)
        assert answer.status_code == 503 and "disk is full" in server.error(answer)["message"], path
    assert server.http.get("/v1/videos").json()["data"] == known and set((toy_config.data / "videos").iterdir()) == folders
    assert server.http.get("/health").json()["waiting"] == 0


def test_a_fault_of_ours_is_an_error_in_the_usual_form(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("/tmp/secret")

    monkeypatch.setattr("lumos.serving.request._complete", fault)
    answer = server.http.post("/v1/videos", json={"prompt": "a"})
    assert answer.status_code == 500 and server.error(answer)["code"] == "fault"


def connect(server: Any) -> Any:
    host, port = server.url.removeprefix("http://").strip("/").split(":")
    return socket.create_connection((host, int(port)))


def test_a_slow_body_or_header_is_given_up(other_server: Any) -> None:
    server = other_server(upload_seconds=0.3, header_seconds=0.3)
    with connect(server) as line:
        line.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        line.sendall(b"Content-Length: 50\r\n\r\n{")
        answer = line.recv(4096)  # waits for the server, which waits no longer than it said
    assert b" 408 " in answer.partition(b"\r\n")[0]
    for sent in (b"", b"GET /h", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"):
        with connect(server) as line:
            line.sendall(sent)
            line.settimeout(20)
            assert end_of(line) == b"", sent
    assert server.finish(server.make(frames=33, steps=16)["id"])["status"] == "completed"  # an answer may take longer


def end_of(line: Any) -> bytes:
    try:
        return bytes(line.recv(100))
    except ConnectionResetError:
        return b""


def test_half_open_connections_make_room_for_whole_requests(
    other_server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lumos.serving.server.MOST_CONNECTIONS", 20)
    caplog.set_level("INFO", "uvicorn.access")
    server = other_server(header_seconds=600)
    lines = [connect(server) for _ in range(60)]
    for line in lines:
        line.sendall(b"GET /h")
        line.settimeout(20)
    assert server.http.get("/health").status_code == 200
    closed = sum(end_of(line) == b"" for line in lines[:30])
    assert closed == 30 and not caplog.records
    for line in lines:
        line.close()


def test_a_full_queue_says_when_to_come_back(other_server: Any) -> None:
    server = other_server(queue=3, queue_per_client=2)

    def ask(name: str) -> Any:
        return server.http.post("/v1/videos", json={"prompt": "a", **LONG}, headers={"X-Client-Id": name})

    answers = [ask("one") for _ in range(4)]  # one is being made, two wait
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert ask("two").status_code == 200
    full = ask("three")
    assert full.status_code == 503 and full.headers["retry-after"] == "10" and "full" in server.error(full)["message"]
    assert server.http.get("/health").json() == {
        "status": "ok",
        "waiting": 3,
        "running": True,
        "workers": [{"device": "cpu", "ready": True, "running": True}],
    }


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # one after another, and side by side
def test_every_file_of_a_batch_is_written_and_each_video_has_its_own_fault(device: str, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("good", "gone", "taken", "good too")]
    for folder in (folders[0], *folders[2:]):
        folder.mkdir()
    (folders[2] / "video.gif").write_text("somebody's")
    config = SimpleNamespace(sampler=SamplerConfig())
    clips = torch.linspace(-1, 1, 4)[:, None, None, None, None].expand(4, 3, 5, 32, 32)
    made: Any = {"config": config, "device": torch.device(device)}
    generator: Any = SimpleNamespace(**made, stream=lambda *_, **__: (each for each in [clips]))
    requests = [VideoRequest("a", 5, 32, 32, 8.0, 1, 2, 2.0, 1.0)] * 4
    errors = _make(generator, requests, folders, threading.Event(), lambda *words: None, lambda: None)
    assert [error and error.split(";")[0] for error in errors] == [None, None, "the files could not be written", None]
    for folder, shade in ((folders[0], 0), (folders[3], 255)):
        assert {path.name for path in folder.iterdir()} == set(FILES)
        assert read_image(folder / "thumbnail.png", 32, 32).pixels_CFHW.mean() == shade / 127.5 - 1
