"""Sessions over HTTP and a real worker: watched while made, told on the way; nothing is made that nobody waits for."""

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lumos.diffusion.sampler import SamplerConfig
from lumos.generate import Generator
from lumos.media.pixels import to_bytes
from lumos.serving.api import _data_url
from lumos.serving.live import AHEAD, ENDED, Sessions
from lumos.serving.queue import Client
from lumos.serving.request import VideoRequest
from lumos.serving.store import START
from lumos.serving.worker import _make, _pictures, _steer
from lumos.session import make_next

QUICK = {"prompt": "a red circle", "seed": 3, "steps": 2}


class Viewer:
    """A session over HTTP, and what its reader has seen."""

    def __init__(self, server: Any, document: dict[str, Any] | None = None) -> None:
        self.server = server
        self.document = document or self.ask("POST", "/v1/sessions", json=QUICK)
        self.after, self.pictures = self.document["frames"], []

    def ask(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        answer = self.server.http.request(method, path, timeout=60, **sent)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def do(self, what: str, **sent: Any) -> dict[str, Any]:
        self.document = self.ask("POST", f"/v1/sessions/{self.document['id']}/{what}", **({"json": sent} if sent else {}))
        return self.document

    def see(self, count: int = 1) -> list[str]:
        """Pictures of the next latent frames."""
        seen: list[str] = []
        for _ in range(count):
            self.document = self.ask("GET", f"/v1/sessions/{self.document['id']}/frames", params={"after": self.after})
            assert self.document["first_frame"] == self.after
            seen += self.document["pictures"]
            self.after += len(self.document["pictures"])
        return seen

    @property
    def sentences(self) -> list[tuple[int | None, str]]:
        return [(sentence["frame"], sentence["prompt"]) for sentence in self.document["sentences"]]


@pytest.fixture
def viewer(server: Any) -> Iterator[Viewer]:
    viewer = Viewer(server)
    yield viewer
    server.http.post(f"/v1/sessions/{viewer.document['id']}/end")


def test_a_session_shows_what_a_session_in_python_makes(viewer: Viewer, toy_folder: Path) -> None:
    session = Generator.from_folder(toy_folder, "cpu").session("a red circle", 3, steps=2)

    def made(count: int) -> list[str]:
        return [_data_url(picture) for part in islice(session, count) for picture in _pictures(part[0])]

    assert viewer.see(4) == made(4)
    assert viewer.do("say", prompt="two blue stars")["frames"] <= 13 + 4 * AHEAD
    assert viewer.sentences == [(0, "a red circle"), (None, "two blue stars")]
    seen = viewer.see(AHEAD + 1)
    [first, (start, prompt)] = viewer.sentences
    assert first == (0, "a red circle") and prompt == "two blue stars" and start is not None
    before = made((start - 13) // 4)
    session.say("two blue stars")
    assert seen == before + made(AHEAD + 1 - len(before) // 4)
    viewer.do("end")
    answer = viewer.server.http.post(f"/v1/sessions/{viewer.document['id']}/say", json={"prompt": "a"})
    assert answer.status_code == 404 and "may have ended" in viewer.server.error(answer)["message"]


def test_back_fork_and_pause(viewer: Viewer) -> None:
    first = viewer.see(3)
    note = "does not know: crimson, reads it as red"
    assert viewer.do("say", prompt="two crimson stars")["note"] == note
    viewer.see(AHEAD + 1)
    assert viewer.document["note"] == note
    start = viewer.sentences[1][0]
    assert start is not None
    fork = Viewer(viewer.server, viewer.ask("POST", f"/v1/sessions/{viewer.document['id']}/fork"))
    fork.after = viewer.after
    assert fork.see(2) == viewer.see(2) and fork.document["id"] != viewer.document["id"]
    document = viewer.do("back", frame=1)
    assert document["frames"] == 1 and viewer.sentences == [(0, "a red circle")] and document["note"] is None
    late = viewer.ask("GET", f"/v1/sessions/{document['id']}/frames", params={"after": viewer.after})
    assert late["pictures"] == [] and late["frames"] == 1
    while (standing := viewer.ask("GET", f"/v1/sessions/{document['id']}"))["status"] == "making":
        pass
    assert standing["frames"] == 1  # nothing was made for a reader that has more than there is
    viewer.after = 1
    assert viewer.see(2) != first[1:9]
    assert viewer.do("pause")["status"] in ("making", "paused")
    assert len(viewer.see()) == 4  # and on it goes
    viewer.do("end")
    assert fork.see() and fork.do("end")["status"] == "ended"


def test_back_in_its_first_sentence_a_session_has_the_note_of_its_beginning(server: Any) -> None:
    viewer = Viewer(server, server.http.post("/v1/sessions", json=QUICK | {"prompt": "a crimson circle"}).json())
    note = viewer.document["note"]
    viewer.see()
    assert "crimson" in note and viewer.do("say", prompt="two")["note"] is None
    viewer.see(AHEAD + 2)
    assert viewer.do("back", frame=viewer.sentences[1][0] + 4)["note"] is None
    assert viewer.do("back", frame=1)["note"] == note and viewer.do("end")


def test_a_session_starts_from_a_picture_and_leads_to_another(server: Any, toy_folder: Path) -> None:
    pixels = [torch.full((3, 1, 32, 32), value) for value in (-1.0, 1.0)]
    names = []
    for pixels_CFHW in pixels:
        file = io.BytesIO()
        Image.fromarray(to_bytes(pixels_CFHW)[:, 0].permute(1, 2, 0).numpy()).save(file, "PNG")
        names.append(server.http.post("/v1/uploads", files={"file": file.getvalue()}).json()["id"])
    asked = QUICK | {"input_reference": {"file_id": names[0]}, "keyframes": {"1s": names[1]}}
    viewer = Viewer(server, server.http.post("/v1/sessions", json=asked).json())
    assert viewer.document["keyframes"] == [8]
    session = Generator.from_folder(toy_folder, "cpu").session("a red circle", 3, given=pixels[0], steps=2)
    assert viewer.see(3) == [_data_url(picture) for part in islice(session, 3) for picture in _pictures(part[0])]
    answer = server.http.post(f"/v1/sessions/{viewer.document['id']}/back", json={"frame": 0})
    assert answer.status_code == 400 and "frame must be 1 to the" in server.error(answer)["message"]
    assert viewer.do("back", frame=1)["frames"] == 1 and viewer.sentences == [(1, "a red circle")]
    viewer.after = 1
    assert len(viewer.see()) == 4
    viewer.do("end")


def test_a_worker_gives_the_generator_what_a_request_gives(tmp_path: Path) -> None:
    request = VideoRequest("a", 9, 32, 32, 8.0, 1, 2, 2.0, 1.0, given=5, keyframes=(6, 8))
    for at, frames in ((0, 5), (6, 1), (8, 1)):
        save_file({"rgb_CFHW": torch.full((3, frames, 32, 32), at, dtype=torch.uint8)}, tmp_path / START.format(at))
    told: list[dict[str, Any]] = []

    def made(*_: Any, **settings: Any) -> Any:
        told.append(settings)
        return (part for part in [torch.zeros(1, 3, 9, 32, 32)])

    config, device = SimpleNamespace(sampler=SamplerConfig()), torch.device("cpu")
    generator: Any = SimpleNamespace(config=config, device=device, stream=made, session=made)
    assert _make(generator, [request], [tmp_path], threading.Event(), lambda *words: None, lambda: None) == [None]
    files = {at: (tmp_path / START.format(at)).read_bytes() for at in (0, 6, 8)}
    _steer(generator, {}, lambda *words: None, "open", "x", request, files)
    for settings in told:
        assert settings["given"].shape == (3, 5, 32, 32) and settings["keyframes"].keys() == {6, 8}
        assert all(torch.equal(pixels, torch.full((3, 32, 32), at / 127.5 - 1)) for at, pixels in settings["keyframes"].items())


@pytest.mark.parametrize(("device", "compiled", "together"), [("cpu", False, 0), ("cuda", False, 1), ("cuda", True, 0)])
def test_what_goes_wrong_with_a_session_is_its_own(
    toy: Generator, device: str, compiled: bool, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Any] = []
    monkeypatch.setattr("lumos.serving.worker.make_next", lambda some: batches.append(some) or make_next(some))
    some = {name: toy.session("two", seed=seed) for seed, name in enumerate(("good", "raises", "mute", "far", "says"))}
    alone = {name: session.fork() for name, session in some.items()}

    def fail(*_: int) -> None:
        raise MemoryError

    some["raises"].progress = fail
    words = {"mute": (None, " "), "far": (4, None), "says": (None, "a red circle")}
    asked = [(name, *words.get(name, (None, None))) for name in ("lost", *some)]
    answers: dict[str, list[Any]] = {}
    generator: Any = SimpleNamespace(device=torch.device(device), compiled=compiled, tokenizer=toy.tokenizer)
    _steer(generator, some, lambda _, id, *rest: answers.update({id: list(rest)}), "next", asked)
    alone["says"].say("a red circle")
    assert answers.keys() == {"lost", *alone} and some.keys() == {"good", "says"} and len(batches) == together
    for name, session in some.items():
        assert answers[name] == [(0, _pictures(next(alone[name])[0])), session.sentences]
    told = [("lost", "fault"), ("raises", "not enough memory"), ("mute", "must say something"), ("far", "to go back")]
    assert all(answers[name][0] is None and text in answers[name][1][1] for name, text in told)
    _steer(generator, some, lambda *words: None, "end", "good")
    assert some.keys() == {"says"}


def test_what_is_wrong_is_told_and_changes_nothing(viewer: Viewer) -> None:
    viewer.see(2)
    id, http = viewer.document["id"], viewer.server.http
    for path, sent, words in (
        ("say", {"prompt": " "}, "must have words"),
        ("say", {"prompt": "a " * 100}, "text ids"),
        ("say", {"prompt": 3}, "prompt"),
        ("say", {}, "prompt"),
        ("say", {"prompt": "a", "more": 1}, "unknown field 'more'"),
        ("back", {"frame": 3}, "1 + 4k, got 3"),
        ("back", {"frame": 401}, "that were made, got 401"),
        ("back", {"frame": -1}, "frame"),
    ):
        answer = http.post(f"/v1/sessions/{id}/{path}", json=sent)
        assert answer.status_code == 400 and words in viewer.server.error(answer)["message"], (path, sent)
    for after in (2, -1, "x"):
        assert http.get(f"/v1/sessions/{id}/frames", params={"after": after}).status_code == 400
    for path in ("say", "back", "pause", "fork", "end"):
        answer = http.post(f"/v1/sessions/session_0/{path}", json={"prompt": "a"} if path == "say" else {"frame": 0})
        assert answer.status_code == 404 and "no such session" in viewer.server.error(answer)["message"]
    file = {"file_id": "x"}
    wrongs: tuple[dict[str, Any], ...] = ({"frames": 9}, {"seconds": 1}, {"last_image": file}, {"input_reference": file})
    for wrong in (*wrongs, {"keyframes": {"9": "x"}}, {"prompt": ""}, {"steps": 10_000}):
        answer = http.post("/v1/sessions", json=QUICK | wrong)
        assert answer.status_code == 400 and viewer.server.error(answer)["param"] == next(iter(wrong))
    assert viewer.ask("GET", f"/v1/sessions/{id}")["sentences"] == [{"frame": 0, "prompt": "a red circle"}]


def test_a_flood_of_sentences_is_one_for_every_latent_frame(viewer: Viewer) -> None:
    viewer.see()
    for number in range(50):  # as fast as they can be sent
        viewer.do("say", prompt="two" if number % 2 else "a blue star")
    viewer.see(AHEAD + 1)
    assert len(viewer.sentences) <= 2 + AHEAD + 1


def test_there_are_so_many_sessions_and_no_more(other_server: Callable[..., Any]) -> None:
    server = other_server(sessions=3, sessions_per_client=2)
    mine = [Viewer(server) for _ in range(2)]
    answer = server.http.post("/v1/sessions", json=QUICK)
    assert answer.status_code == 429 and "you have enough sessions" in server.error(answer)["message"]
    server.http.headers["x-client-id"] = "other"
    Viewer(server)
    answer = server.http.post("/v1/sessions", json=QUICK)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "60" and server.error(answer)["code"] == "sessions_full"
    lines = server.http.get("/metrics").text.splitlines()
    worker = {'worker_ready{worker="0"} 1.0', 'worker_restarts_total{worker="0"} 0.0', 'batch_size{worker="0"} 0.0'}
    queue = {"sessions 3.0", "queue_waiting 0.0", "stored_videos 0.0", "stored_bytes 0.0"}
    ends = {f'videos_total{{outcome="{end}"}} 0.0' for end in ("completed", "failed", "cancelled")}
    assert {f"lumos_{line}" for line in worker | queue | ends} <= set(lines)
    mine[0].do("end")
    Viewer(server)


def test_a_session_has_its_turn_between_the_frames_of_a_video(viewer: Viewer) -> None:
    path = "/v1/videos/" + viewer.server.make(frames=129, steps=16)["id"]
    while viewer.ask("GET", path)["status"] == "queued":
        viewer.ask("GET", path)
    assert len(viewer.see(3)) == 9 and viewer.ask("GET", path)["status"] == "in_progress"
    viewer.ask("POST", path + "/cancel")


class Worker:
    """What a worker is told; it answers when the test says so."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def send(self, *words: Any) -> None:
        self.told.append(words)

    def kill(self) -> None:
        self.send("kill")

    @property
    def nexts(self) -> int:
        return sum(word == "next" for word, *_ in self.told)


def steered(act: Callable[[Sessions, Worker, Any], Any], idle: float = 60.0, limit: float = 60.0) -> None:
    """`act` with sessions of which one is open, over a worker of paper."""

    async def run() -> None:
        worker = Worker()
        config: Any = SimpleNamespace(sessions=4, sessions_per_client=4, per_address=max, session_idle=idle, time_limit=limit)
        sessions = Sessions(config, lambda: worker)
        live = sessions.open(VideoRequest("a", 9, 32, 32, 8.0, 1, 2, 2.0, 1.0), Client("here"), 4)
        await act(sessions, worker, live)
        sessions.end(live)

    asyncio.run(run())


def made(sessions: Sessions, live: Any) -> None:
    """The worker has made the next latent frame."""
    sessions.heard(live.worker, live.id, (live.frames, [b""] * (4 if live.frames else 1)), [(0, "a")])


def test_nothing_is_made_that_nobody_waits_for() -> None:
    async def act(sessions: Sessions, worker: Worker, live: Any) -> None:
        assert worker.nexts == 0 and live.document()["status"] == "paused"
        reader = asyncio.create_task(sessions.follow(live, 0))
        await asyncio.sleep(0)
        for _ in range(5):
            if live.busy:
                made(sessions, live)
        assert worker.nexts == AHEAD and live.document()["status"] == "paused"
        assert await reader == (0, [b""])
        assert await sessions.follow(live, 0) == (0, [b""])  # asked for again: a connection was lost
        assert await sessions.follow(live, 1) == (1, [b""] * 4) and worker.nexts == AHEAD + 1
        made(sessions, live)
        assert live.timers["hung"].cancelled() and [first for first, _ in live.parts] == [0, 1, 5]
        sessions.back(live, 5)
        assert [first for first, _ in live.parts] == [0, 1] and live.frames == 5
        for act in (lambda: sessions.say(live, "b"), lambda: sessions.back(live, 1), lambda: sessions.pause(live)):
            idle = live.timers["idle"]
            act()
            assert idle.cancelled() and not live.timers["idle"].cancelled(), "whoever acts is there"

    steered(act)


def test_a_step_back_takes_back_what_is_being_made_and_what_was_said() -> None:
    async def act(sessions: Sessions, worker: Worker, live: Any) -> None:
        reader = asyncio.create_task(sessions.follow(live, 0))
        await asyncio.sleep(0)
        made(sessions, live)
        sessions.say(live, "b")
        sessions.back(live, 1)
        assert live.said is None and live.document()["sentences"] == [{"frame": 0, "prompt": "a"}]
        made(sessions, live)
        assert live.frames == 1 and worker.nexts == 2 and await reader == (0, [b""])
        sessions.say(live, "c")
        reader = asyncio.create_task(sessions.follow(live, 1))
        await asyncio.sleep(0)
        assert worker.told[-1] == ("next", [(live.id, 1, "c")]) and live.back is live.said is None
        sessions.pause(live)
        assert await reader is None and live.document()["status"] == "making"
        waiting = asyncio.create_task(sessions.fork(live, Client("there")))
        await asyncio.sleep(0)
        assert not waiting.done()  # until the worker holds what the source is said to have
        made(sessions, live)
        other = await waiting
        assert (other.client, live.client) == (Client("there"), Client("here"))
        assert other.frames == live.frames == 5 and worker.told[-1][0] == "fork" and worker.nexts == 3
        # each ends, waits and goes on by itself
        assert other.timers is not live.timers and other.news is not live.news and other.parts is not live.parts

    steered(act)


def test_sessions_that_want_frames_at_one_time_are_asked_for_together() -> None:
    async def act(sessions: Sessions, worker: Worker, live: Any) -> None:
        others = [sessions.open(live.request, Client("here"), 4) for _ in range(2)]
        readers = [asyncio.create_task(sessions.follow(each, 0)) for each in (live, *others)]
        await asyncio.sleep(0)
        assert worker.told[-1] == ("next", [(live.id, None, None)]) and worker.nexts == 1  # nobody waits for others
        sessions.freest = Worker
        away = sessions.open(live.request, Client("here"), 4)
        readers.append(asyncio.create_task(sessions.follow(away, 0)))
        await asyncio.sleep(0)
        assert away.worker.told[-1] == ("next", [(away.id, None, None)])  # nor for another worker
        sessions.lose(away.worker, ENDED)
        assert await readers.pop() is None and list(sessions.known.values()) == [live, *others]
        made(sessions, live)
        assert worker.told[-1] == ("next", [(each.id, None, None) for each in (live, *others)])
        sessions.end(others[0])
        made(sessions, live)
        assert worker.nexts == 2  # the rest is being made
        sessions.heard(live.worker, others[0].id, None, ("failed", "too late"))
        assert worker.nexts == 2
        made(sessions, others[1])
        assert worker.told[-1] == ("next", [(others[1].id, None, None)])
        assert await readers[0] == await readers[2] == (0, [b""]) and await readers[1] is None
        sessions.end(others[1])

    steered(act)


def test_a_session_ends_when_nobody_asks_or_the_worker_hangs_or_fails() -> None:
    async def act(sessions: Sessions, worker: Worker, live: Any) -> None:
        reader = asyncio.create_task(sessions.follow(live, 0))
        while not live.over:
            await live.news.wait()
        assert live.over[0] == "idle" and live.id not in sessions.known and worker.told[-1] == ("end", live.id)
        assert await reader is None and ("kill",) in worker.told
        other = sessions.open(live.request, Client("here"), 4)
        sessions.heard(other.worker, other.id, None, ("failed", "in words"))
        assert other.document()["error"] == {"code": "failed", "message": "in words"}
        sessions.heard(other.worker, other.id, None, ("failed", "again"))  # a word that came too late

    steered(act, idle=1e-2, limit=1e-3)
