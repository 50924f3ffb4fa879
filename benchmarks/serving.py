"""A server under load, with clients that cancel, send nonsense and hang up; then killed in the middle and started again.

python benchmarks/serving.py [--weights NAME] [--clients 20] [--requests 200] [--repeat 5] [--only-first-frame] [--json]
python benchmarks/serving.py --only-throughput --requests 100 --serve "--gpus 4"      (then "--gpus 1": whole videos a second)

Prints: seconds until ready, seconds to a first frame (and on the page, with Playwright and a Chromium), what every request ended
in, the slowest /health, memory before and after, what is left after SIGKILL and a restart. Exit code 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx2 as httpx

from lumos.config import PACKAGED

PROMPTS = ("a red circle moves to the right", "two green triangles bounce", "a large blue star spins", "a yellow heart")
BAD: tuple[dict[str, Any], ...] = (
    {},
    {"prompt": ""},
    {"prompt": "a", "frames": 6},
    {"prompt": "a", "frames": 10**40},
    {"prompt": "a", "steps": -1},
    {"prompt": "a", "size": "9x9"},
    {"prompt": "a", "input_reference": {"file_id": "../../etc/passwd"}},
)


class Server:
    """`lumos serve` as a process of its own."""

    def __init__(self, weights: str, data: Path, queue: int = 32, options: Sequence[str] = ()) -> None:
        begin = time.monotonic()
        words = [sys.executable, "-m", "lumos", "serve", "--port", "0", "--weights", weights, "--data", str(data)]
        self.process = subprocess.Popen(
            [*words, "--queue", str(queue), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        found = re.search(r"http://localhost:(\d+)/", line)
        assert found, f"the server did not start: {line!r}"
        self.port, self.seconds = int(found[1]), time.monotonic() - begin
        self.url = f"http://127.0.0.1:{self.port}"

    def memory(self) -> int:
        """Bytes of the server and everything that it started; shared pages are counted once (proportional set size)."""
        sizes = [(folder / "smaps_rollup").read_text() for folder in self.processes()]
        return sum(1024 * int(re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)[1]) for text in sizes)  # type: ignore[index]

    def processes(self) -> list[Path]:
        """Folders in /proc of the server and everything that it started: they are a session of their own."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has ended
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                found += [stat.parent] if session == str(self.process.pid) and state != "Z" else []
        return found

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


async def client(server: Server, number: int, requests: int, ends: collections.Counter[str], whole: bool) -> None:
    chance = random.Random(number)
    headers = {"X-Client-Id": f"client {number}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=300, verify=False) as http:
        for _ in range(requests):
            kind = chance.choices(("plain", "cancel", "bad", "hang up", "bad upload"), (55, 15, 15, 10, 5))[0]
            kind = "whole" if whole else kind
            if kind == "bad":
                end = status_of(await http.post("/v1/videos", json=chance.choice(BAD)), allowed=(400,))
            elif kind == "bad upload":
                upload = {"file": chance.choice((b"", b"nonsense", b"\x89PNG\r\n\x1a\n" + bytes(99)))}
                end = status_of(await http.post("/v1/uploads", files=upload), allowed=(400, 503))
            else:
                end = await one(http, server, chance, kind)
            ends[f"{kind}: {end}"] += 1


async def one(http: httpx.AsyncClient, server: Server, chance: random.Random, kind: str) -> str:
    """A good request, which may be cancelled, or whose client may hang up in the middle of the body or of the events."""
    asked: dict[str, Any] = {"prompt": chance.choice(PROMPTS)}
    if kind != "whole":
        asked |= {"frames": chance.choice((1, 1, 5)), "steps": chance.choice((1, 2, 4))}
    if kind == "hang up" and chance.random() < 0.5:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        await writer.drain()
        writer.transport.abort()
        return "left in the body"
    while True:
        answer = await http.post("/v1/videos", json=asked)
        if answer.status_code not in (429, 503):
            break
        assert answer.headers["retry-after"].isdigit()
        await asyncio.sleep(min(float(answer.headers["retry-after"]), 1 + chance.random()))  # more eager than it was told
    if answer.status_code != 200:
        return status_of(answer, allowed=())
    id = answer.json()["id"]
    if kind == "cancel":
        await asyncio.sleep(chance.random() * 2)
        status_of(await http.post(f"/v1/videos/{id}/cancel"), allowed=(200,))
    async with http.stream("GET", f"/v1/videos/{id}/events") as events:
        async for line in events.aiter_lines():
            if kind == "hang up":
                return "left in the events"
            if line.startswith("data: ") and '"object": "video"' in line:
                last = json.loads(line[6:])
    if last["status"] == "completed":
        content = await http.get(f"/v1/videos/{id}/content")
        assert content.status_code == 200 and len(content.content) > 100
    return str(last["status"] if last["status"] == "completed" else last["error"]["code"])


def status_of(answer: httpx.Response, allowed: tuple[int, ...]) -> str:
    assert answer.status_code in allowed, f"{answer.status_code}: {answer.text[:300]}"
    return str(answer.status_code)


PROBE = """
import sys, time, urllib.request
while True:
    begin = time.perf_counter()
    urllib.request.urlopen(sys.argv[1], timeout=30).read()
    print(time.perf_counter() - begin, flush=True)
    time.sleep(0.1)
"""


@contextlib.contextmanager
def watch_health(server: Server) -> Iterator[list[float]]:
    """Seconds that /health took, in the list afterwards: seen from a process of its own, which does not wait for the clients."""
    health: list[float] = []
    with tempfile.TemporaryFile("w+") as file:
        with subprocess.Popen([sys.executable, "-c", PROBE, server.url + "/health"], stdout=file) as probe:
            try:
                yield health
                assert probe.poll() is None, "/health did not answer with 200"
            finally:
                probe.kill()
        file.seek(0)
        health += map(float, file)


async def load(server: Server, clients: int, requests: int, whole: bool = False) -> tuple[collections.Counter[str], list[float]]:
    """What requests ended in, and the seconds that /health took. whole: all ask for a video of the usual length, and wait."""
    ends: collections.Counter[str] = collections.Counter()
    with watch_health(server) as health:
        await asyncio.gather(*(client(server, number, requests // clients, ends, whole) for number in range(clients)))
        async with httpx.AsyncClient(base_url=server.url, verify=False) as http:  # of clients that hung up, all is made
            while (state := (await http.get("/health")).json())["waiting"] or state["running"]:
                await asyncio.sleep(0.2)
    return ends, health


def first_frame(server: Server) -> float:
    begin = time.monotonic()
    id = httpx.post(f"{server.url}/v1/videos", json={"prompt": PROMPTS[0]}).json()["id"]
    with httpx.stream("GET", f"{server.url}/v1/videos/{id}/events", timeout=300) as events:
        next(line for line in events.iter_lines() if line == "event: frames")
    seconds = time.monotonic() - begin
    httpx.delete(f"{server.url}/v1/videos/{id}")
    return seconds


# Seconds from the click to the repaint that shows the first frame. (To ask again and again would take cores from the model.)
WATCH = """() => { window.seconds = new Promise((done) => {
  const stage = document.querySelector("#stage"), create = document.querySelector("#create");
  let begin = 0;
  create.addEventListener("click", () => { begin = performance.now(); }, { capture: true, once: true });
  new MutationObserver((_, self) => {
    if (!stage.dataset.frames) return;
    self.disconnect();
    requestAnimationFrame(() => done((performance.now() - begin) / 1000));
  }).observe(stage, { attributes: true });
}); }"""


def first_frames_on_the_page(server: Server, times: int) -> list[float]:
    """Each on a page of its own, clicked two seconds after it was opened; none without Playwright and a Chromium."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return []
    if not chromium:
        return []
    found = []
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(times):
            page = browser.new_page()
            page.goto(server.url)
            page.wait_for_selector("body[data-ready]")
            page.fill("#prompt", PROMPTS[0])
            page.evaluate(WATCH)
            page.wait_for_timeout(2000)  # a person takes longer to type it; the page has built itself up by then
            page.click("#create")
            found.append(page.evaluate("window.seconds"))
            page.click("[data-do=cancel]")
            page.wait_for_selector("#stage[data-state=failed]")
            page.close()
        browser.close()
    return found


def killed(weights: str, data: Path) -> dict[str, Any]:
    """SIGKILL with some videos finished and others waiting, and what the next server says of them."""
    server = Server(weights, data)
    asked = {"prompt": PROMPTS[0], "frames": 5, "steps": 2}
    headers = {"X-Client-Id": "me"}
    ids = [httpx.post(f"{server.url}/v1/videos", json=asked, headers=headers).json()["id"] for _ in range(8)]
    done: dict[str, bytes] = {}
    while len(done) < 3:
        for id in ids:
            content = httpx.get(f"{server.url}/v1/videos/{id}/content")
            if content.status_code == 200:
                done[id] = content.content
        time.sleep(0.1)
    server.process.kill()
    server.process.wait()
    end = time.monotonic() + 20
    while (alive := server.processes()) and time.monotonic() < end:
        time.sleep(0.1)
    again = Server(weights, data)
    listed = httpx.get(f"{again.url}/v1/videos", headers=headers, params={"limit": 100}).json()["data"]
    states = {video["id"]: video["status"] for video in listed}
    codes = {video["error"]["code"] for video in listed if video["error"]}
    same = all(httpx.get(f"{again.url}/v1/videos/{id}/content").content == content for id, content in done.items())
    video = httpx.post(f"{again.url}/v1/videos", json={"prompt": "a", "frames": 1, "steps": 1}).json()["id"]
    while httpx.get(f"{again.url}/v1/videos/{video}").json()["status"] in ("queued", "in_progress"):
        time.sleep(0.1)
    works = httpx.get(f"{again.url}/v1/videos/{video}/content").status_code == 200
    code = again.stop()
    return {
        "finished before": len(done),
        "all known again": set(states) == set(ids),
        "finished ones the same": same and all(states[id] == "completed" for id in done),
        "others": sorted({states[id] for id in ids if id not in done}),
        "why": sorted(codes),
        "processes left by the killed one": len(alive),
        "works again": works,
        "exit code of the second": code,
    }


def said(seconds: list[float]) -> str:
    return f"median {median(seconds):.2f} of " + " ".join(f"{one:.2f}" for one in sorted(seconds)) if seconds else "not measured"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", default=PACKAGED)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=5, help="measurements of the first frame")
    parser.add_argument("--only-first-frame", action="store_true")
    parser.add_argument("--only-throughput", action="store_true")
    parser.add_argument("--serve", default="", help="options of the loaded server, such as '--gpus 4' (seconds of load tell)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    with tempfile.TemporaryDirectory() as place:
        server = Server(args.weights, Path(place) / "load", options=args.serve.split())
        try:
            first_frame(server)  # everything that happens once has happened
            if args.only_throughput:
                while not all(worker["ready"] for worker in httpx.get(f"{server.url}/health").json()["workers"]):
                    time.sleep(0.2)
                asyncio.run(load(server, args.clients, args.clients, whole=True))  # every worker has made one
                begin = time.monotonic()
                ends, health = asyncio.run(load(server, args.clients, args.requests, whole=True))
                rate = sum(ends.values()) / (time.monotonic() - begin)
                print(f"videos a second, {args.serve}: {rate:.2f}; {dict(ends)}; slowest /health {max(health) * 1000:.0f} ms")
                return 0
            frames = [first_frame(server) for _ in range(args.repeat)]
            on_page = first_frames_on_the_page(server, args.repeat)
            if args.only_first_frame:
                print(
                    f"seconds to a first frame, over HTTP: {said(frames)}\non the page: {said(on_page)}; load {os.getloadavg()}"
                )
                return 0
            asyncio.run(load(server, 4, 12))
            time.sleep(1)
            before = server.memory()
            begin = time.monotonic()
            ends, health = asyncio.run(load(server, args.clients, args.requests))
            seconds = time.monotonic() - begin
            time.sleep(1)
            after = server.memory()
            scratch = list((Path(place) / "load").glob("temporary_*/scratch/*"))
            left = sorted(
                {json.loads(path.read_text())["status"] for path in (Path(place) / "load" / "videos").glob("*/record.json")}
            )
        finally:
            code = server.stop()
        kill = killed(args.weights, Path(place) / "kill")
    figures: dict[str, Any] = {
        "seconds until ready": round(server.seconds, 1),
        "seconds to a first frame, over HTTP": said(frames),
        "seconds to a first frame, on the page": said(on_page),
        "seconds of load": round(seconds, 1),
        "requests ended in": dict(sorted(ends.items())),
        "slowest /health in ms": round(max(health) * 1000, 1),
        "/health in ms, half and 99 of 100 within": [round(sorted(health)[len(health) * p // 100] * 1000, 1) for p in (50, 99)],
        "asked /health": len(health),
        "memory before in MiB": round(before / 2**20, 1),
        "memory after in MiB": round(after / 2**20, 1),
        "states on disk": left,
        "files left in scratch": len(scratch),
        "exit code": code,
        "killed": kill,
        "cores": os.cpu_count(),
        "load average": [round(average, 1) for average in os.getloadavg()],
    }
    promises = {
        "ready within 15 s": server.seconds <= 15,
        "first frame within 3 s": all(median(times) <= 3 for times in (frames, on_page) if times),
        "every request ended": sum(ends.values()) == args.requests // args.clients * args.clients,
        "/health within 200 ms": max(health) <= 0.2,
        "memory within 10 %": after <= 1.1 * before,
        "nothing left over": not scratch and set(left) <= {"completed", "failed"},
        "a kill loses nothing finished": bool(
            kill["finished ones the same"]
            and kill["all known again"]
            and kill["works again"]
            and kill["why"] == ["server_stopped"]
            and not kill["processes left by the killed one"]
        ),
    }
    if args.json:
        print(json.dumps({**figures, "promises": promises}))
    else:
        for name, value in {**figures, **{f"promise: {name}": kept for name, kept in promises.items()}}.items():
            print(f"{name}: {value}")
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
