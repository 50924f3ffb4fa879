"""Fairness, room, and what is on disk after a kill at any moment: no worker and no HTTP here."""

import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumos.files import partial_of
from lumos.serving.config import ServeConfig
from lumos.serving.errors import RequestError
from lumos.serving.queue import Client, FairQueue, Job
from lumos.serving.request import VideoRequest, _size
from lumos.serving.store import FILES, MARKER, RECORD, Store, Video, new_id
from lumos.serving.uploads import Upload, Uploads

ASKED = VideoRequest("a red circle", 5, 32, 32, 8.0, 1, 2, 2.0, 1.0)


def job(number: int, client: Client, request: VideoRequest = ASKED) -> Job:
    return Job(Video(str(number), "digest", "toy", request, 0), client)


def queue_of(clients: list[Client], *room: int) -> FairQueue:
    queue = FairQueue(*(room or (100, 100, 100)))
    queue.waiting = [job(number, client) for number, client in enumerate(clients)]
    return queue


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_nobody_waits_for_more_than_one_of_every_other_client(order: list[int]) -> None:
    queue = queue_of([Client("here", str(client)) for client in order])
    foreseen = queue.order()
    served = [queue.next_batch(1)[0] for _ in order]
    assert served == foreseen and len(set(foreseen)) == len(order)
    for client in set(order):
        mine = [at for at, item in enumerate(served) if item.client.name == str(client)]
        numbers = [int(served[at].video.id) for at in mine]
        assert numbers == sorted(numbers)
        assert all(after - before <= len(set(order)) for before, after in zip([-1, *mine], mine, strict=False))


def test_a_crowd_of_names_at_one_address_does_not_push_others_back() -> None:
    queue = queue_of([*(Client("hog", str(number)) for number in range(20)), Client("other")])
    assert "20" in [queue.next_batch(1)[0].video.id for _ in range(2)]


ONE, TWO = Client("one"), Client("two")
CROWD = [Client("hog", str(number)) for number in range(4)]


@pytest.mark.parametrize(
    ("waiting", "room", "client", "status"),
    [
        ([ONE, ONE], (3, 2, 3), ONE, 429),
        ([ONE, ONE, TWO], (3, 2, 3), ONE, 429),
        ([ONE, ONE], (3, 2, 3), TWO, None),
        ([ONE, ONE, TWO], (3, 2, 3), TWO, 503),
        (CROWD, (8, 3, 4), Client("hog", "another"), 429),
        (CROWD, (8, 3, 4), Client("other"), None),
    ],
)
def test_room_is_of_everybody_of_a_client_and_of_an_address(
    waiting: list[Client], room: tuple[int, int, int], client: Client, status: int | None
) -> None:
    try:
        queue_of(waiting, *room).check_room(client, 7)
        found = None
    except RequestError as error:
        assert error.retry == 7
        found = error.status
    assert found == status


@pytest.mark.parametrize("change", [{"frames": 9}, {"width": 64}, {"steps": 3}, {"guidance": 1.0}, {"given": 1}])
def test_only_what_agrees_shares_a_batch(change: dict[str, int]) -> None:
    queue = FairQueue(10, 10, 10)
    asked = [ASKED, replace(ASKED, **change), replace(ASKED, prompt="b", seed=9)]  # type: ignore[arg-type]
    queue.waiting = [job(number, Client(str(number)), request) for number, request in enumerate(asked)]
    assert [item.video.id for item in queue.next_batch(5)] == ["0", "2"]
    assert [item.video.id for item in queue.next_batch(5)] == ["1"]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """A store in `tmp_path`; the one before it ends as by a kill."""
    stores: list[Store] = []

    def start(seconds: float = 60, most: float = 10**6) -> Store:
        for store in stores:
            store.lock.close()
        stores.append(Store(tmp_path, seconds / 3600, most / 1e9))
        return stores[-1]

    yield start
    stores[-1].close()
    assert not stores[-1].temporary.exists()


def test_a_picture_is_at_most_four_times_as_long_as_wide(tmp_path: Path) -> None:
    config, about = ServeConfig(data=tmp_path, size_factor=100), {"width": 32, "height": 32, "size_step": 32}
    assert _size("128x32", config, about) == (128, 32)
    with pytest.raises(ValueError, match="four times"):
        _size("160x32", config, about)


def record(status: str = "completed", completed_at: int = 100, lives: int = 60) -> Video:
    made = Video(new_id("video"), "digest", "toy", ASKED, 50)
    made.status, made.completed_at, made.expires_at = status, completed_at, completed_at + lives  # type: ignore[assignment]
    return made


def keep(store: Store, made: Video, size: int = 1000) -> Video:
    status, made.status = made.status, "queued"
    store.add(made)
    assert stat.S_IMODE(store.folder(made.id).stat().st_mode) == 0o700  # others on this machine see nothing
    for name in FILES:
        (store.folder(made.id) / name).write_bytes(bytes(size if name == "video.mp4" else 0))
    made.status = status
    store.save(made)
    return made


@pytest.mark.parametrize("of", ["this version", "an earlier one"])
def test_a_record_comes_back_as_it_was(open_store: Any, of: str) -> None:
    store = open_store()
    made = keep(store, record())
    file = store.folder(made.id) / RECORD
    if of == "an earlier one":
        file.write_text(json.dumps({**json.loads(file.read_text()), "number": 1, "files": ["video.mp4"], "bytes": 0}))
    assert open_store().known == {made.id: made}


def test_after_a_kill_everything_is_whole_or_a_failure(open_store: Any) -> None:
    store = open_store()
    done, half, lost = keep(store, record()), keep(store, record("queued")), keep(store, record())
    (store.folder(half.id) / ".video.gif.partial").write_bytes(b"half")
    partial_of(store.folder(half.id) / "video.mp4").write_bytes(b"half")  # as the worker writes it
    (store.folder(lost.id) / "video.mp4").unlink()
    (store.scratch / "upload").write_text("half an upload")
    again = open_store()
    states = {id: (found.status, (found.error or {}).get("code")) for id, found in again.known.items()}
    assert states == {done.id: ("completed", None), half.id: ("failed", "server_stopped"), lost.id: ("failed", "files_missing")}
    assert [path.name for path in again.folder(half.id).iterdir()] == [RECORD]
    assert not store.temporary.exists() and not list(again.scratch.iterdir())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lay(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")


@pytest.mark.parametrize("names", [["readme.txt"], ["videos/holiday/a.mp4"], ["lock"], [MARKER, "videos/a.mp4"]])
def test_a_folder_that_is_no_servers_is_refused_and_untouched(tmp_path: Path, names: list[str]) -> None:
    lay(tmp_path, names)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="--data"):
        Store(tmp_path)
    assert snapshot(tmp_path) == before


def test_nothing_without_a_record_is_deleted_and_nothing_that_a_server_does_not_name(open_store: Any, tmp_path: Path) -> None:
    store = open_store()
    old, kept, failed = keep(store, record()), keep(store, record(completed_at=10**12)), keep(store, record("failed"))
    theirs = ["thesis.txt", "uploads/a", "scratch/b", "lock", "videos/holiday.mp4", "videos/holiday/video.mp4"]
    theirs += [f"videos/{new_id('video')}/{RECORD}", *(f"videos/{of.id}/notes.txt" for of in (old, kept, failed))]
    lay(tmp_path, theirs)
    store.folder(keep(store, record()).id).rename(store.videos / "moved")
    again = open_store()
    again.expire(now=10**9)
    again.tidy(failed.id)
    again.delete(kept.id)
    assert again.known == {}
    left = snapshot(tmp_path)
    assert left.pop("videos/moved/video.mp4")
    assert {name for name, content in left.items() if content == b"precious"} == set(theirs)
    assert not any(name.endswith("video.mp4") for name in set(left) - set(theirs))


def test_a_clock_that_is_set_forward_makes_nothing_old(open_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"wall": 10**9 + 0.0, "running": 5.0}
    monkeypatch.setattr("lumos.serving.store.time.time", lambda: clock["wall"])
    monkeypatch.setattr("lumos.serving.store.time.monotonic", lambda: clock["running"])
    store = open_store()
    made = keep(store, record(completed_at=10**9, lives=7200))
    clock.update(wall=2e9, running=4000.0)  # a wrong clock, an hour later
    assert store.expire(store.now()) == []
    clock.update(wall=10**9 - 1e6, running=8000.0)  # and one set back
    assert store.expire(store.now()) == []
    clock.update(wall=10**9 + 7995.0)
    assert store.expire(store.now()) == [made.id]

    old = keep(again := open_store(), record())
    assert again.expire(again.now()) == []  # the clock may be wrong: not in the first hour
    clock["running"] += 3600
    assert again.expire(again.now()) == [old.id]


def test_the_old_and_then_the_oldest_go(open_store: Any) -> None:
    store = open_store(most=2500)
    old, first, second, third = (keep(store, record(completed_at=at)) for at in (10, 100, 110, 120))
    store.known[first.id] = store.known.pop(first.id)  # asked for last and yet finished first
    running = keep(store, record("in_progress"), 10**4)
    assert store.expire(now=130) == [old.id, first.id]
    assert set(store.known) == {second.id, third.id, running.id}
    assert not (store.videos / first.id).exists()
    with pytest.raises(KeyError):
        store.folder("../../etc")


@pytest.mark.parametrize(("seconds", "lives"), [(60, 60), (float("inf"), None)])
def test_a_video_is_kept_as_long_as_was_said_when_it_ended(open_store: Any, seconds: float, lives: int | None) -> None:
    made = record()
    made.completed_at = made.expires_at = None
    keep(open_store(seconds), made)
    assert made.completed_at and made.expires_at == (lives and made.completed_at + lives)
    again = open_store(7)
    assert again.known[made.id].expires_at == made.expires_at
    assert again.expire(now=10**12) == [made.id] * (lives is not None)


def test_uploads_go_after_an_hour_and_who_has_most_loses_the_oldest(open_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumos.serving.uploads.ROOM", 10)
    store = open_store()
    uploads = Uploads(store, ServeConfig(data=store.temporary))
    for id, address, age, size in (("late", "b", 3601, 1), ("one", "a", 60, 6), ("two", "a", 50, 4), ("three", "b", 100, 3)):
        (store.uploads / id).touch()
        uploads.known[id] = Upload(store.uploads / id, address, time.monotonic() - age, size)
    uploads.make_room()
    assert {path.name for path in store.uploads.iterdir()} == set(uploads.known) == {"two", "three"}


@pytest.mark.parametrize(
    ("ends", "says"),
    [(None, "took more than 0.01 s"), (-9, "took more than"), (-24, "took more than"), (-11, "could not be decoded")],
)
def test_a_decoder_that_hangs_or_dies_is_ended_and_told_of(
    open_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: int | None, says: str
) -> None:
    did, held = list[str](), list[int]()

    def decoder(_: str, pipe: Any, *rest: Any) -> Any:
        if ends is None:
            held.append(os.dup(pipe.fileno()))  # it says nothing
        acts = {word: lambda *_, word=word: did.append(word) for word in ("start", "join", "kill", "close")}
        return SimpleNamespace(exitcode=ends, **acts)

    monkeypatch.setattr("lumos.serving.uploads.new_process", decoder)
    uploads = Uploads(open_store(), ServeConfig(data=tmp_path, decode_seconds=0.01))
    with pytest.raises(ValueError, match=says):
        uploads._decode(tmp_path, tmp_path, (32, 32, 8.0))
    assert did[-3:] == ["kill", "join", "close"]
    for pipe in held:
        os.close(pipe)


def test_two_servers_do_not_share_a_folder(open_store: Any, tmp_path: Path) -> None:
    open_store()
    with pytest.raises(ValueError, match="used by another server"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"host": "0.0.0.0"}, "--api-key"),
        ({"host": "example.org"}, "--api-key"),
        ({"api_key": "short"}, "at least 12"),
        ({"api_key": "long enough, surely", "no_auth": True}, "both"),
        ({"max_frames": 16}, "use 17"),
        ({"api_key": "schl\u00fcssel-schl\u00fcssel"}, "ASCII"),
        ({"api_key": " long enough, surely"}, "ASCII"),
        ({"public_url": "https://video.example.org"}, "--api-key"),
        ({"public_url": "video.example.org", "no_auth": True}, "https://NAME"),
        ({"public_url": "https://video.example.org/lumos", "no_auth": True}, "https://NAME"),
    ],
)
def test_settings_that_are_wrong_or_unsafe(tmp_path: Path, settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ServeConfig(data=tmp_path, **settings)  # type: ignore[arg-type]


def test_settings_that_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServeConfig(host="::1").is_local and ServeConfig(host="localhost").is_local
    public, proxied = ServeConfig(host="0.0.0.0", no_auth=True), ServeConfig(public_url="http://a", no_auth=True)
    assert [each.per_address(9, 2) for each in (public, proxied, ServeConfig())] == [5, 5, 9]
    assert not public.is_local and public.per_address(9, 7) == 7
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for state, folder in (("", tmp_path / ".local/state/lumos/serve"), ("/state", Path("/state/lumos/serve"))):
        monkeypatch.setenv("XDG_STATE_HOME", state)
        assert ServeConfig().data_folder == folder
    assert ServeConfig(data=tmp_path).data_folder == tmp_path
