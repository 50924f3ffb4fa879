"""The service over a real worker: crashes, hangs, limits, batches, restarts; whatever happens, every request ends in words."""

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi import Response

from lumos.files import is_memory_error
from lumos.serving import decode, pool
from lumos.serving.api import health
from lumos.serving.config import ServeConfig
from lumos.serving.errors import RequestError
from lumos.serving.processes import worker_devices
from lumos.serving.queue import Client
from lumos.serving.request import VideoRequest
from lumos.serving.service import Service
from lumos.serving.store import Store, Video

QUICK = VideoRequest("a red circle", 5, 32, 32, 8.0, 1, 2, 2.0, 1.0)
LONG = replace(QUICK, frames=129, steps=16)
ME = Client("here")


Act = Callable[[Service, "asyncio.Task[None]"], Awaitable[Any]]


@pytest.fixture
def with_service(toy_config: ServeConfig, tmp_path: Path) -> Callable[..., Any]:
    """What `act` gives with a service that has its model, and with the task that is its life."""

    async def run(config: ServeConfig, act: Act) -> Any:
        service = Service(config, Store(config.data_folder), worker_devices(config))
        life, loaded = asyncio.create_task(service.run()), asyncio.create_task(service.loaded.wait())
        try:
            await asyncio.wait((life, loaded), return_when=asyncio.FIRST_COMPLETED)
            return await act(service, life) if loaded.done() else await life
        finally:
            life.cancel()
            loaded.cancel()
            await asyncio.gather(life, return_exceptions=True)

    return lambda act, **settings: asyncio.run(run(replace(toy_config, data=tmp_path / "data", **settings), act))


def worker(service: Service, number: int = 0) -> int:
    pid = service.workers[number].process.pid
    assert pid
    return pid


def restarts(service: Service, worker: int) -> float | None:
    return service.metrics.registry.get_sample_value("lumos_worker_restarts_total", {"worker": str(worker)})


async def end(service: Service, record: Video) -> Video:
    async for word, news in service.follow(record):
        if word == "status":
            last = news
    return last


async def frames_of(service: Service, video: Video) -> list[bytes]:
    return [picture async for word, news in service.follow(video) if word == "frames" for picture in news[2]]


async def first_frames(service: Service, record: Video, seen: int = 0) -> int:
    async for word, news in service.follow(record, seen):
        if word == "frames":
            return int(news[0])
    raise AssertionError("it ended without frames")


def test_a_killed_worker_costs_its_sessions_and_no_others(with_service: Any) -> None:
    async def act(service: Service, life: asyncio.Task[None]) -> None:
        for each in service.workers:
            await each.ready.wait()
        live, other = (service.sessions.open(QUICK, ME, 4) for _ in range(2))
        for session in (live, other):
            assert await service.sessions.follow(session, 0)
        assert [live.worker, other.worker] == service.workers
        os.kill(worker(service), signal.SIGKILL)
        while not live.over:
            await live.news.wait()
        assert live.over[0] == "worker_crashed" and list(service.sessions.known.values()) == [other]
        assert await service.sessions.follow(other, 1)
        await service.workers[0].ready.wait()
        assert await service.sessions.follow(service.sessions.open(QUICK, ME, 4), 0)

    with_service(act, workers=2)


def test_two_workers_make_two_videos_and_one_that_dies_is_replaced_alone(with_service: Any) -> None:
    async def act(service: Service, life: asyncio.Task[None]) -> None:
        for each in service.workers:
            await each.ready.wait()
        before = worker(service, 0), worker(service, 1)
        videos = [service.submit(asked, ME) for asked in (LONG, LONG, QUICK)]
        for video in videos[:2]:
            await first_frames(service, video)
        assert [service.document(video)["queue_position"] for video in videos] == [None, None, 1]
        number = next(worker.number for worker in service.workers if worker.making and worker.making.jobs[0].video is videos[1])
        os.kill(before[number], signal.SIGKILL)
        assert (await end(service, videos[1])).error and not videos[0].is_finished
        service.cancel(videos[0])
        assert (await end(service, videos[2])).status == "completed"
        while not service.workers[number].ready.is_set():  # more may be queued while it loads
            service.workers[number].wake()
            await asyncio.sleep(0)
            assert not life.done()
        assert [worker(service, each) == before[each] for each in (0, 1)] == [number != each for each in (0, 1)]
        assert [restarts(service, each) for each in (0, 1)] == [number == each for each in (0, 1)]

    with_service(act, workers=2)


def test_a_worker_that_dies_too_often_is_given_up_and_the_last_one_ends_the_server(
    with_service: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool, "MOST_RESTARTS", 0)

    async def act(service: Service, life: asyncio.Task[None]) -> None:
        for each in service.workers:
            await each.ready.wait()
        os.kill(worker(service, 1), signal.SIGKILL)
        while service.workers[1].ready.is_set():
            await asyncio.sleep(0)
        assert (await end(service, service.submit(QUICK, ME))).status == "completed"
        assert "worker 1 is given up: the worker stopped 1 times in a row" in caplog.text
        os.kill(worker(service, 0), signal.SIGKILL)
        with pytest.raises(ValueError, match="1 times in a row"):
            await life

    with_service(act, workers=2)


def test_gpus_have_a_worker_each_and_must_be_there(
    with_service: Any, toy_config: ServeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = SimpleNamespace(stdout="4\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: there)
    cards = replace(toy_config, device=None, gpus="all")
    assert worker_devices(cards) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert worker_devices(replace(cards, gpus="2")) == ["cuda:0", "cuda:1"]
    with pytest.raises(ValueError, match="gpus must be at most the 4 of this machine, got 9; --workers N is for the CPU"):
        worker_devices(replace(cards, gpus="9"))
    there.stdout = "0"
    with pytest.raises(ValueError, match="at most the 0 of this machine, got all"):
        worker_devices(cards)
    for wrong in ({"gpus": "none"}, {"gpus": "0"}, {"gpus": "2", "workers": 2}, {"gpus": "2", "device": "cpu"}):
        with pytest.raises(ValueError, match="gpus|workers"):
            replace(cards, **{"gpus": None} | wrong)

    async def nothing(service: Service, life: asyncio.Task[None]) -> None:
        await life

    monkeypatch.setattr(f"{__name__}.worker_devices", lambda config: ["cpu", "cuda:0"])
    with pytest.raises(ValueError, match="device cuda:0 needs a CUDA GPU, 0 found"):  # though the other would do
        with_service(nothing)


def test_a_video_that_takes_too_long_is_stopped_even_when_the_worker_hangs(
    with_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "GRACE", 0.1)

    async def act(service: Service, life: asyncio.Task[None]) -> None:
        os.kill(worker(service), signal.SIGSTOP)  # as deaf as a hung one
        stuck, after = (service.submit(QUICK, ME) for _ in range(2))
        news = service.follow(stuck, pause=0.01)
        assert [(await anext(news))[0] for _ in range(5)] == ["status"] * 5  # though nothing changes
        error = (await end(service, stuck)).error
        assert error and error["code"] == "time_limit"
        monkeypatch.undo()
        service.config = replace(service.config, time_limit=60)
        assert (await end(service, after)).status == "completed"

    with_service(act, time_limit=1.0)


def test_a_cancelled_video_makes_room_at_once_and_leaves_no_files(with_service: Any) -> None:
    async def act(service: Service, life: asyncio.Task[None]) -> None:
        long, quick, last = (service.submit(asked, ME) for asked in (LONG, QUICK, QUICK))
        assert [await first_frames(service, long, seen) for seen in (1, 0)] == [1, 0]
        news, places = service.follow(last, pause=1000), []
        places.append(service.document((await anext(news))[1])["queue_position"])
        service.cancel(long)
        places.append(service.document((await anext(news))[1])["queue_position"])
        assert places == [2, 1]  # told when those before it move up
        assert long.is_finished and long.error and long.error["code"] == "cancelled"
        assert [(await end(service, video)).status for video in (quick, last)] == ["completed", "completed"]
        assert service.metrics.registry.get_sample_value("lumos_made_seconds_count") == 2  # `long` was not made to its end
        assert [path.name for path in service.store.folder(long.id).iterdir()] == ["record.json"]
        assert restarts(service, 0) == 0

    with_service(act)


def test_requests_that_agree_share_a_batch_and_a_cancelled_one_does_not_stop_it(with_service: Any) -> None:
    free = replace(LONG, frames=21)

    async def act(service: Service, life: asyncio.Task[None]) -> None:
        first = service.submit(LONG, ME)
        same = [service.submit(replace(free, prompt=prompt), ME) for prompt in ("a", "two", "blue")]
        other = service.submit(replace(free, frames=9), ME)
        service.cancel(first)
        await first_frames(service, same[0])
        making = service.workers[0].making
        assert making and [job.video for job in making.jobs] == same
        service.cancel(same[1])
        ends = [(await end(service, video)).status for video in (*same, other)]
        assert ends == ["completed", "failed", "completed", "completed"]
        assert {path.name for path in service.store.folder(same[1].id).iterdir()} == {"record.json"}

    with_service(act, batch=4)


def test_a_prompt_and_its_seed_give_the_same_frames_alone_and_in_a_batch(with_service: Any) -> None:
    requests = [replace(QUICK, prompt=prompt, seed=7 + n) for n, prompt in enumerate(["red", "a red circle moves", "two"])]

    async def act(service: Service, life: asyncio.Task[None]) -> None:
        alone = [await frames_of(service, service.submit(one, ME)) for one in requests]
        long = service.submit(LONG, ME)  # so that the others wait together
        videos = [service.submit(one, ME) for one in requests]
        service.cancel(long)
        together = await asyncio.gather(*(frames_of(service, video) for video in videos))
        assert together == alone and len({tuple(pictures) for pictures in alone}) == 3
        assert service.metrics.registry.get_sample_value("lumos_made_seconds_count") == len(alone) + 1

    with_service(act, batch=4)


def test_a_stop_ends_everything_and_a_restart_knows_it(with_service: Any, tmp_path: Path) -> None:
    async def act(service: Service, life: asyncio.Task[None]) -> tuple[str, str]:
        done, long = (service.submit(asked, ME) for asked in (QUICK, LONG))
        assert (await end(service, done)).status == "completed"
        await first_frames(service, long)
        return done.id, long.id

    done, long = with_service(act)
    store = Store(tmp_path / "data")
    assert store.known[done].status == "completed"
    assert (store.folder(done) / "video.mp4").read_bytes()[4:8] == b"ftyp"
    assert store.known[long].error and store.known[long].error["code"] == "server_stopped"
    store.close()


def test_workers_that_die_again_and_again_are_replaced_after_a_pause_and_in_the_end_not(
    with_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MOST_RESTARTS", 2)
    pauses: list[float] = []

    async def act(service: Service, life: asyncio.Task[None]) -> None:
        sleep, loop = asyncio.sleep, asyncio.get_running_loop()

        async def watched(delay: float) -> None:
            if asyncio.get_running_loop() is loop and delay < 1:  # neither another server nor the cleaner
                pauses.append(delay)
            await sleep(delay)

        monkeypatch.setattr(asyncio, "sleep", watched)
        for number in range(4):
            await service.loaded.wait()
            video, waiting = (service.submit(asked, ME) for asked in (LONG, QUICK))
            await first_frames(service, video)
            os.kill(worker(service), signal.SIGKILL)
            assert (await end(service, video)).error == {
                "code": "worker_crashed",
                "message": "the worker stopped while making this video; send it again",
            }
            with pytest.raises(RequestError, match="being loaded"):
                service.submit(QUICK, ME)
            assert (await health(service, answer := Response()))["status"] == "starting" and answer.status_code == 503
            if number == 0:  # one that is made ends the row
                assert (await end(service, waiting)).status == "completed" and restarts(service, 0) == 1
            service.cancel(waiting)
        with pytest.raises(ValueError, match="3 times in a row"):
            await life
        assert pauses == [0.01, 0.01, 0.02]

    with_service(act)


def test_weights_that_change_on_disk_change_nothing_until_they_would_be_loaded(
    with_service: Any, toy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = shutil.copytree(toy_folder, tmp_path / "toy")

    async def act(service: Service, life: asyncio.Task[None]) -> None:
        first = await frames_of(service, service.submit(QUICK, ME))
        assert "weights were changed" not in caplog.text
        for file in (weights / "model.safetensors", weights / "tokenizer" / "model.safetensors"):
            with open(file, "r+b") as target:  # in place, as cp and rsync --inplace do
                target.seek(-1000, os.SEEK_END)
                target.write(bytes(1000))
        assert await frames_of(service, service.submit(QUICK, ME)) == first and "weights were changed" in caplog.text
        for file in (weights / "model.safetensors", weights / "tokenizer" / "model.safetensors"):
            os.truncate(file, 100)  # what is still mapped ends a process with SIGBUS
        assert await frames_of(service, service.submit(QUICK, ME)) == first
        shutil.copytree(toy_folder, weights, dirs_exist_ok=True, copy_function=shutil.copyfile)  # of another time
        os.kill(worker(service), signal.SIGKILL)
        with pytest.raises(ValueError, match="weights were changed while the server ran"):
            await life

    with_service(act, weights=str(weights))


def test_a_video_that_cannot_be_saved_ends_in_words(with_service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(service: Service, life: asyncio.Task[None]) -> None:
        video, after = (service.submit(QUICK, ME) for _ in range(2))

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("lumos.serving.store.os.replace", full)
            error = (await end(service, video)).error
        assert error and error["code"] == "disk"
        assert (await end(service, after)).status == "completed"

    with_service(act)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of another process")
def test_a_video_that_needs_too_much_memory_costs_itself_alone(with_service: Any) -> None:
    async def act(service: Service, life: asyncio.Task[None]) -> None:
        pid = worker(service)
        await end(service, service.submit(QUICK, ME))  # so that it has loaded all that it needs
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[0])
        resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**25,) * 2)
        large, after = (service.submit(replace(QUICK, height=side, width=side), ME) for side in (1024, 32))
        error = (await end(service, large)).error
        assert error and error["code"] == "out_of_memory" and "smaller" in error["message"]
        assert (await end(service, after)).status == "completed" and worker(service) == pid

    with_service(act)


def test_too_little_memory_is_known_by_its_words() -> None:
    for fault in (MemoryError(), RuntimeError("std::bad_alloc"), OSError(12, "Cannot allocate memory")):
        assert is_memory_error(fault)
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert is_memory_error(error.value) and not is_memory_error(RuntimeError("shapes differ"))


def test_a_decoder_gives_up_its_rights_first(monkeypatch: pytest.MonkeyPatch, toy_config: ServeConfig) -> None:
    said: list[Any] = []
    answer: Any = SimpleNamespace(send=said.append)
    monkeypatch.setattr(decode, "limit_process", said.append)
    monkeypatch.setattr(decode, "_decode", lambda *_: "decoded")
    decode.run(answer, Path("a"), Path("b"), (32, 32, 8.0), toy_config)
    assert said == [toy_config, "decoded"]
    words = "import resource, torch; from pathlib import Path; from lumos.serving.config import ServeConfig; "
    words += "from lumos.serving.decode import limit_process; limit_process(ServeConfig(Path('x'), decode_bytes=2**26))\n"
    words += "print([resource.getrlimit(kind) for kind in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)])\n"
    words += "try: bytearray(2**27)\nexcept MemoryError: print('limited')"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"[(20, 22), ({2**30}, {2**30}), (0, 0)]", "limited"]


def test_weights_that_cannot_be_loaded_are_told_in_words(with_service: Any, tmp_path: Path) -> None:
    async def nothing(service: Service, life: asyncio.Task[None]) -> None: ...

    with pytest.raises(ValueError, match="no weights named"):
        with_service(nothing, weights=str(tmp_path / "none"))
