"""What docs/serving.md shows is run, and `lumos serve` as a process: ready, killed, ready again, stopped."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from lumos.cli.main import main
from lumos.serving.config import ServeConfig
from lumos.serving.server import serve
from lumos.serving.service import Service

ROOT = Path(__file__).parent.parent.parent


def shown(language: str) -> str:
    [example] = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "serving.md").read_text("utf-8"), re.DOTALL)
    return str(example)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_examples(server: Any, tmp_path: Path) -> None:
    script = f"set -eu\nLUMOS={server.url.rstrip('/')}\n{shown('sh')}"
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "red.mp4").read_bytes()[4:8] == b"ftyp" and (tmp_path / "red.gif").read_bytes()[:3] == b"GIF"
    assert "event: frames" in (tmp_path / "events.txt").read_text()
    starts = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("from_picture", "from_video", "continued")}
    assert [video["given_frames"] for video in starts.values()] == [1, 9, 9]
    assert len(json.loads((tmp_path / "next.json").read_text())["pictures"]) == 4
    assert json.loads((tmp_path / "ended.json").read_text())["status"] == "ended"
    assert json.loads((tmp_path / "deleted.json").read_text())["deleted"] is True


def test_the_python_example(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = compile(shown("python"), "docs/serving.md", "exec")
    exec(code, {"LUMOS": server.url.rstrip("/")})  # noqa: S102 - our own documentation
    assert (tmp_path / "stars.mp4").stat().st_size > 500


def test_wrong_options_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, says in (
        (["--host", "0.0.0.0"], "--api-key"),
        (["--keep-hours", "-1"], "--keep-hours"),
        (["--port", "70000"], "--port must be 0 to 65535"),
        (["--queue", "0"], "--queue must be 1 to"),
        (["--workers", "0"], "--workers must be 1 to"),
        (["--time-limit", "nan"], "--time-limit must be"),
        (["--host", "300.1.1.1", "--no-auth"], "host must be an address"),
    ):
        assert main(["serve", "--data", str(tmp_path), *words]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("lumos: ") and says in error


def test_a_taken_port_is_found_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_early(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("lumos.serving.server.start_processes", too_early)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--data", str(tmp_path), "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_what_ends_the_service_ends_the_server_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ends(service: Service) -> None:
        raise ValueError("the worker has gone")

    monkeypatch.setattr("lumos.serving.server.start_processes", lambda: None)
    monkeypatch.setattr(Service, "run", ends)
    with pytest.raises(ValueError, match="the worker has gone"):
        asyncio.run(serve(ServeConfig(data=tmp_path, port=0, device="cpu"), print, asyncio.Event()))


def maps_of_children(parent: int) -> str:
    """Names of all that a process's children have mapped into memory."""
    maps = ""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            if stat.read_text().rpartition(")")[2].split()[1] == str(parent):
                maps += (stat.parent / "maps").read_text()
    return maps


def command(toy_folder: Path, tmp_path: Path) -> "subprocess.Popen[str]":
    words = ["serve", "--port", "0", "--weights", str(toy_folder), "--data", str(tmp_path / "data"), "--device", "cpu"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "lumos", *words], cwd=ROOT, start_new_session=True, **pipes)


def test_ctrl_c_while_it_starts_ends_it_in_words(toy_folder: Path, tmp_path: Path) -> None:
    process = command(toy_folder, tmp_path)
    assert process.stderr and "loading the model" in process.stderr.readline()
    while "libtorch" not in maps_of_children(process.pid):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0 and log.splitlines() == ["lumos: stopped; finished videos are kept"]


@pytest.mark.slow
def test_the_command_is_killed_and_started_again(toy_folder: Path, tmp_path: Path) -> None:
    def start() -> tuple["subprocess.Popen[str]", str]:
        process = command(toy_folder, tmp_path)
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://localhost:(\d+)/", line)
        assert found, line
        return process, f"http://127.0.0.1:{found[1]}"

    def post(url: str, **asked: Any) -> str:
        return str(httpx.post(f"{url}/v1/videos", json={"prompt": "a", **asked}).json()["id"])

    first, url = start()
    done = post(url, frames=5)
    with httpx.stream("GET", f"{url}/v1/videos/{done}/events", timeout=60) as events:
        assert "completed" in list(events.iter_lines())[-2]
    content = httpx.get(f"{url}/v1/videos/{done}/content").content
    others = [post(url, frames=129, steps=16) for _ in range(3)]
    first.kill()
    first.communicate()

    second, url = start()
    assert httpx.get(f"{url}/v1/videos/{done}/content").content == content
    for id in others:
        assert httpx.get(f"{url}/v1/videos/{id}").json()["error"]["code"] == "server_stopped"
    second.send_signal(signal.SIGINT)
    _, log = second.communicate(timeout=30)
    assert second.returncode == 0 and log.rstrip().endswith("lumos: stopped; finished videos are kept")
    assert "Traceback" not in log
