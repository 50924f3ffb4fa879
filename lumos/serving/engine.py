"""One queue, one worker process, and what everybody may know of it: submit, follow, cancel, delete (all in one event loop).

Each video's news are its record and its frames so far; followers wait for `news` and read on from where they were. Whatever
happens to the worker, every request ends: completed, or failed with words.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lumos.serving.config import ServeConfig
from lumos.serving.decode import processes
from lumos.serving.fair import Client, FairQueue, Waiting
from lumos.serving.record import Asked, Record, new_id
from lumos.serving.store import START, Store
from lumos.serving.worker import FILES, Batch, Cancel, Check, work

log = logging.getLogger("lumos.serving")
GRACE = 10.0  # seconds a worker has to stop a batch before it is stopped itself
MOST_RESTARTS = 5  # in a row, without a batch finished between them


class Unready(Exception):
    """The worker is starting again, or could not."""


@dataclass
class Live:
    """What is kept of a video only until it is over. frames: (number of the first, its WebP pictures)."""

    frames: list[tuple[int, list[bytes]]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Running:
    number: int
    ids: list[str]
    began: float
    timers: list[asyncio.TimerHandle]
    reason: tuple[str, str] | None = None  # why it was stopped, if it was


class Engine:
    """Made by `start`, ended by `stop`; `about` tells the model's own size, length and sampler."""

    def __init__(self, config: ServeConfig, store: Store) -> None:
        self.config, self.store = config, store
        self.queue = FairQueue(config.queue, config.queue_per_client)
        self.live: dict[str, Live] = {}
        self.running: Running | None = None
        self.about: dict[str, Any] = {}
        self.ready = False
        self.counts: dict[str, int] = {"completed": 0, "failed": 0, "cancelled": 0, "refused": 0, "restarts": 0}
        self.taken: list[float] = []  # seconds of the last batches
        self._numbers = itertools.count(1)
        self._checks: dict[int, asyncio.Future[str | None]] = {}
        self._first: asyncio.Future[None] | None = None
        self._restarts = 0
        self._stopping = False
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._order: list[str] | None = None
        self._cleaner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the worker and wait until the model is loaded. ValueError in words when it cannot be."""
        self._first = asyncio.get_running_loop().create_future()
        self._spawn()
        await self._first
        self._cleaner = asyncio.create_task(self._clean())

    async def stop(self) -> None:
        """End everything; what was not finished becomes a failure that says so."""
        self._stopping = True
        if self._cleaner:
            self._cleaner.cancel()
        for id in list(self.live):
            self._end(id, ("server_stopped", "the server was stopped before this video was finished; send it again"))
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.join, 5)
        self.store.close()

    @property
    def worker_pid(self) -> int | None:
        """The process that holds the model, if there is one."""
        return self._process.pid if self._process else None

    async def check(self, asked: Asked) -> None:
        """ValueError in words for a prompt that the model cannot read. Unready when there is no worker."""
        pipe = self._ready_pipe()
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        self._checks[number] = answer
        try:
            self._send(pipe, Check(number, asked))
            error = await asyncio.wait_for(answer, 10)
        except TimeoutError:
            raise Unready from None
        finally:
            self._checks.pop(number, None)
        if error:
            raise ValueError(error)

    def submit(self, asked: Asked, client: Client, digest: str, start: Path | None, source: str | None = None) -> Record:
        """Put a checked request into the queue. `start`: file with its given frames, which is moved. Raises fair.Full."""
        self._ready_pipe()
        self.queue.check_room(client)
        record = Record(new_id("video"), digest, self.config.weights_name, asked, int(time.time()), source=source)
        folder = self.store.add(record)
        if start:
            shutil.move(start, folder / START)
        self.live[record.id] = Live()
        self.queue.add(Waiting(record.id, client, asked))
        self._order = None
        log.info("%s queued%s", record.id, f": {asked.prompt!r}" if self.config.log_prompts else "")
        self._next()
        return record

    def cancel(self, id: str) -> None:
        """Stop making a video; nothing happens to one that is over. KeyError for an unknown one."""
        if not self.store.records[id].is_over:
            self.counts["cancelled"] += 1
            self._end(id, ("cancelled", "this video was cancelled"))
            self._drop(id)

    def delete(self, id: str) -> None:
        self.cancel(id)
        self.store.delete(id)

    def position(self, id: str) -> int | None:
        """How many requests come before this one; None when it does not wait."""
        if self.store.records[id].status != "queued":
            return None
        if self._order is None:
            self._order = self.queue.order()
        return self._order.index(id) + (self.running is not None) if id in self._order else None

    def wait_estimate(self) -> int:
        """Seconds until there will be room again, at the speed of the last batches; 1 to 600."""
        usual = sum(self.taken) / len(self.taken) if self.taken else 10.0
        return max(1, min(600, round(usual)))

    async def follow(self, id: str, seen: int = 0, pause: float = 15.0) -> AsyncIterator[tuple[str, Any]]:
        """Yield ("status", record) at every change, ("frames", (n, first, pictures)) from number `seen` on, ("pause", None).

        Ends after the status of a video that is over, and at once for a deleted one.
        """
        live = self.live.get(id, Live())
        while True:
            news = live.news
            for number in range(seen, len(live.frames)):
                yield "frames", (number, *live.frames[number])
            seen = max(seen, len(live.frames))
            record = self.store.records.get(id)
            if record is None:
                return
            yield "status", record
            if record.is_over:
                return
            while not news.is_set():
                try:
                    await asyncio.wait_for(news.wait(), pause)
                except TimeoutError:
                    yield "pause", None

    def _spawn(self) -> None:
        ours, theirs = processes().Pipe()
        settings = (theirs, self.config.weights, self.config.device, self.config.batch)
        process = processes().Process(target=work, args=settings, daemon=True, name="lumos worker")
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        loop = asyncio.get_running_loop()
        threading.Thread(target=_listen, args=(ours, loop, self._on_message), daemon=True).start()

    def _on_message(self, pipe: Connection, message: tuple[Any, ...] | None) -> None:
        if pipe is not self._pipe:
            return
        if message is None:
            self._on_death()
            return
        word, number, *rest = message
        if word == "ready":
            self.about, self.ready = rest[0], True
            if self._first and not self._first.done():
                self._first.set_result(None)
            self._next()
        elif word == "broken":
            log.error("the worker cannot load the model: %s", rest[0])
            if self._first and not self._first.done():
                self._first.set_exception(ValueError(rest[0]))
        elif word == "checked":
            if number in self._checks and not self._checks[number].done():
                self._checks[number].set_result(rest[0])
        elif self.running and number == self.running.number:
            self._on_batch(self.running, word, rest)

    def _on_batch(self, running: Running, word: str, rest: list[Any]) -> None:
        if word == "progress":
            done, passes = rest
            for id in running.ids:
                if id in self.live:
                    # the files are still to be written when the last pass is done
                    self.store.records[id].progress = min(99, 100 * done // passes)
                    self._tell(id)
        elif word == "frames":
            first, rows = rest
            for id, pictures in zip(running.ids, rows, strict=True):
                if id in self.live:
                    self.live[id].frames.append((first, pictures))
                    self._tell(id)
        elif word == "finished":
            errors, seconds = rest
            self._restarts = 0
            self.taken = [*self.taken[-19:], seconds]
            for id, error in zip(running.ids, errors, strict=True):
                if id in self.live:
                    self.store.records[id].seconds_taken = round(seconds, 2)
                    self._end(id, ("disk", error) if error else None)
            self._finish_batch(running)
        elif word == "failed":
            code, message = rest
            if code == "fault":
                log.error("batch %d failed: %s", running.number, message)
                message = "the server met a fault while making this video; it has been logged"
            for id in running.ids:
                self._end(id, running.reason or (code, message))
            self._finish_batch(running)

    def _on_death(self) -> None:
        """The worker is gone: what it made is lost, and another one is started."""
        self.ready, pipe, process = False, self._pipe, self._process
        self._pipe = self._process = None
        if pipe:
            pipe.close()
        for answer in self._checks.values():
            if not answer.done():
                answer.set_exception(Unready())
        if self.running:
            reason = self.running.reason or ("worker_crashed", "the worker stopped while making this video; send it again")
            for id in self.running.ids:
                self._end(id, reason)
            self._finish_batch(self.running)
        if self._first and not self._first.done():
            self._first.set_exception(ValueError("the worker stopped while it loaded the model; is there enough memory?"))
        if self._stopping or (self._first and self._first.exception()):
            return
        if process is not None:
            process.join(1)
            log.error("the worker stopped with exit code %s; starting another", process.exitcode)
        self.counts["restarts"] += 1
        self._restarts += 1
        if self._restarts > MOST_RESTARTS:
            log.error("the worker stopped %d times in a row; no more are started", self._restarts)
            for id in list(self.live):
                self._end(id, ("worker_crashed", "the server cannot make videos at the moment; try again later"))
                self.queue.remove(id)
            return
        self._spawn()

    def _next(self) -> None:
        if not self.ready or self.running or self._pipe is None or not len(self.queue):
            return
        items = self.queue.next_batch(self.config.batch, self.about["batches_repeat"])
        self._order = None
        for item in items:
            record = self.store.records[item.id]
            record.status, record.together, record.batch_repeats = "in_progress", len(items), self.about["batches_repeat"]
            self._tell(item.id)
        number, loop = next(self._numbers), asyncio.get_running_loop()
        limit = loop.call_later(self.config.time_limit, self._too_long)
        self.running = Running(number, [item.id for item in items], time.monotonic(), [limit])
        folders = tuple(self.store.folder(item.id) for item in items)
        self._send(self._pipe, Batch(number, tuple(item.asked for item in items), folders))
        for id in self.queue.order():
            self._tell(id)

    def _too_long(self) -> None:
        assert self.running
        minutes = f"{self.config.time_limit:g} s"
        self._stop_batch(("time_limit", f"this video took longer than {minutes}; ask for fewer frames or a smaller size"))

    def _drop(self, id: str) -> None:
        """Take a video out of the queue, or stop its batch when nobody else waits for it."""
        if self.queue.remove(id):
            self._order = None
        elif self.running and id in self.running.ids and not any(other in self.live for other in self.running.ids):
            self._stop_batch(("cancelled", "this video was cancelled"))

    def _stop_batch(self, reason: tuple[str, str]) -> None:
        assert self.running
        if self.running.reason is None and self._pipe:
            self.running.reason = reason
            self._send(self._pipe, Cancel(self.running.number))
            process = self._process
            if process:
                self.running.timers.append(asyncio.get_running_loop().call_later(GRACE, process.kill))

    def _finish_batch(self, running: Running) -> None:
        for timer in running.timers:
            timer.cancel()
        for id in running.ids:  # a video may have been cancelled or deleted while its files were written
            self.store.tidy(id)
        self.running = None
        self._next()

    def _end(self, id: str, error: tuple[str, str] | None) -> None:
        """The one place where a video becomes completed or failed."""
        live = self.live.pop(id, None)
        record = self.store.records.get(id)
        if live is None or record is None:
            return
        if error is None:
            record.status, record.progress, record.files = "completed", 100, list(FILES)
        else:
            record.status, record.error = "failed", {"code": error[0], "message": error[1]}
        try:
            self.store.save(record)
        except OSError as fault:
            log.error("cannot save %s: %s", id, fault.strerror)
            record.status, record.files = "failed", []
            record.error = {"code": "disk", "message": "the server could not save this video; try again later"}
        self.counts[record.status] += 1
        log.info("%s %s%s", id, record.status, f" ({error[0]})" if error else "")
        live.news.set()

    def _tell(self, id: str) -> None:
        live = self.live.get(id)
        if live:
            news, live.news = live.news, asyncio.Event()
            news.set()

    def _ready_pipe(self) -> Connection:
        if not self.ready or self._pipe is None:
            raise Unready
        return self._pipe

    def _send(self, pipe: Connection, message: Any) -> None:
        try:
            pipe.send(message)
        except OSError:
            log.warning("the worker cannot be reached")  # its death is told by its listener

    async def _clean(self) -> None:
        while True:
            try:
                gone = self.store.expire(self.store.now())
                if gone:
                    log.info("removed %d stored videos", len(gone))
            except OSError as error:
                log.error("cannot remove stored videos: %s", error.strerror)
            await asyncio.sleep(30)


def _listen(pipe: Connection, loop: asyncio.AbstractEventLoop, hear: Any) -> None:
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            message = None
        try:
            loop.call_soon_threadsafe(hear, pipe, message)
        except RuntimeError:  # the loop has ended
            return
        if message is None:
            return
