"""The engine over a real worker: crashes, hangs, limits, batches, restarts; whatever happens, every request ends in words."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the server needs the extra: pip install 'lumos[serve]'")

import lumos.serving.engine as engine_module
from lumos.generate import Generator
from lumos.serving.config import ServeConfig
from lumos.serving.engine import Engine
from lumos.serving.fair import Client
from lumos.serving.record import Asked, Record
from lumos.serving.store import Store
from lumos.serving.worker import batches_repeat

QUICK = Asked("a red circle", 5, 32, 32, 8.0, 1, True, 2, 2.0, 1.0)
LONG = replace(QUICK, frames=129, steps=16)
ME = Client("here")


def with_engine(config: ServeConfig, act: Callable[[Engine], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        engine = Engine(config, Store(config.data, config.keep_seconds, config.keep_bytes))
        try:
            await engine.start()
            return await act(engine)
        finally:
            await engine.stop()

    return asyncio.run(run())


@pytest.fixture
def config(toy_config: ServeConfig, tmp_path: Path) -> ServeConfig:
    return replace(toy_config, data=tmp_path / "data")


async def end(engine: Engine, record: Record) -> Record:
    async for word, news in engine.follow(record.id):
        if word == "status":
            last = news
    return last


async def first_frames(engine: Engine, record: Record) -> None:
    async for word, _ in engine.follow(record.id):
        if word == "frames":
            return


def test_a_killed_worker_costs_its_video_and_no_more(config: ServeConfig) -> None:
    async def act(engine: Engine) -> None:
        long, waiting = (engine.submit(asked, ME, "me", None) for asked in (LONG, QUICK))
        await first_frames(engine, long)
        assert engine.worker_pid is not None
        os.kill(engine.worker_pid, signal.SIGKILL)
        assert (await end(engine, long)).error == {
            "code": "worker_crashed",
            "message": "the worker stopped while making this video; send it again",
        }
        assert (await end(engine, waiting)).status == "completed"
        assert engine.counts["restarts"] == 1

    with_engine(config, act)


def test_a_video_that_takes_too_long_is_stopped_even_when_the_worker_hangs(
    config: ServeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "GRACE", 0.1)

    async def act(engine: Engine) -> None:
        assert engine.worker_pid is not None
        os.kill(engine.worker_pid, signal.SIGSTOP)  # as deaf as a hung one
        stuck, after = (engine.submit(QUICK, ME, "me", None) for _ in range(2))
        error = (await end(engine, stuck)).error
        assert error and error["code"] == "time_limit"
        monkeypatch.undo()
        engine.config = replace(engine.config, time_limit=60)
        assert (await end(engine, after)).status == "completed"

    with_engine(replace(config, time_limit=1.0), act)


def test_a_cancelled_video_makes_room_at_once_and_leaves_no_files(config: ServeConfig) -> None:
    async def act(engine: Engine) -> None:
        long, quick = (engine.submit(asked, ME, "me", None) for asked in (LONG, QUICK))
        await first_frames(engine, long)
        engine.cancel(long.id)
        assert long.is_over and long.error and long.error["code"] == "cancelled"
        assert (await end(engine, quick)).status == "completed"
        assert [path.name for path in engine.store.folder(long.id).iterdir()] == ["record.json"]
        assert engine.counts["restarts"] == 0

    with_engine(config, act)


def test_requests_that_agree_share_a_batch_and_a_cancelled_one_does_not_stop_it(config: ServeConfig) -> None:
    free = replace(LONG, frames=21, seed_given=False)

    async def act(engine: Engine) -> None:
        first = engine.submit(LONG, ME, "me", None)
        same = [engine.submit(replace(free, prompt=prompt), ME, "me", None) for prompt in ("a", "two", "blue")]
        other = engine.submit(replace(free, frames=9), ME, "me", None)
        engine.cancel(first.id)
        await first_frames(engine, same[0])
        assert [record.together for record in same] == [3, 3, 3] and other.together == 1
        assert same[0].document()["seed_repeats"] is engine.about["batches_repeat"]
        engine.cancel(same[1].id)
        assert [(await end(engine, record)).status for record in (*same, other)] == [
            "completed",
            "failed",
            "completed",
            "completed",
        ]
        assert other.document()["seed_repeats"]
        left = {path.name for path in engine.store.folder(same[1].id).iterdir()}
        assert left == {"record.json"}

    with_engine(replace(config, batch=4), act)


@pytest.mark.parametrize("batches_repeat", [True, None], ids=["together", "as the worker found"])
def test_a_prompt_and_its_seed_give_the_same_frames_alone_and_in_a_batch(
    config: ServeConfig, batches_repeat: bool | None
) -> None:
    lengths = ["red", "a red circle moves", "two blue stars two blue stars"] if batches_repeat is None else ["red", "two", "a"]
    asked = [replace(QUICK, prompt=prompt, seed=7 + number) for number, prompt in enumerate(lengths)]

    async def frames(engine: Engine, record: Record) -> list[bytes]:
        shown = [news async for word, news in engine.follow(record.id) if word == "frames"]
        assert record.status == "completed" and record.document()["seed_repeats"]
        return [picture for _, _, pictures in shown for picture in pictures]

    async def act(engine: Engine) -> None:
        if batches_repeat is not None:
            engine.about["batches_repeat"] = batches_repeat
        alone = [await frames(engine, engine.submit(one, ME, "me", None)) for one in asked]
        long = engine.submit(LONG, ME, "me", None)  # so that the others wait together
        records = [engine.submit(one, ME, "me", None) for one in asked]
        engine.cancel(long.id)
        together = await asyncio.gather(*(frames(engine, record) for record in records))
        assert together == alone and len({tuple(pictures) for pictures in alone}) == 3
        assert {record.together for record in records} == {3 if engine.about["batches_repeat"] else 1}

    with_engine(replace(config, batch=4), act)


@pytest.mark.parametrize("rounds", [False, True])
def test_whether_batches_repeat_is_found_out_by_trying(toy_folder: Path, rounds: bool) -> None:
    generator = Generator.from_folder(toy_folder, "cpu")
    generator.model.float()
    generator.dtype = torch.float32
    if rounds:  # one code of one row changes when there are others
        honest = generator.stream

        def stream(prompts: list[str], *settings: Any, record: list[torch.Tensor], **named: Any) -> Any:
            yield from honest(prompts, *settings, record=record, **named)
            record[-1] = record[-1].clone()
            record[-1][-1, 0, 0] += len(prompts) > 1

        generator.stream = stream  # type: ignore[method-assign, assignment]
    assert batches_repeat(generator) is not rounds


def test_a_stop_ends_everything_and_a_restart_knows_it(config: ServeConfig) -> None:
    async def act(engine: Engine) -> tuple[str, str]:
        done, long = (engine.submit(asked, ME, "me", None) for asked in (QUICK, LONG))
        assert (await end(engine, done)).status == "completed"
        await first_frames(engine, long)
        return done.id, long.id

    done, long = with_engine(config, act)
    store = Store(config.data, 60, 2**30)
    assert store.records[done].status == "completed"
    assert (store.folder(done) / "video.mp4").read_bytes()[4:8] == b"ftyp"
    assert store.records[long].error and store.records[long].error["code"] == "server_stopped"
    store.close()


def test_weights_that_cannot_be_loaded_are_told_in_words(config: ServeConfig, tmp_path: Path) -> None:
    async def nothing(engine: Engine) -> None: ...

    with pytest.raises(ValueError, match="no weights named"):
        with_engine(replace(config, weights=str(tmp_path / "none")), nothing)
