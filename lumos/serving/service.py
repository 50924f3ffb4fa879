"""One queue, one worker process, and what everybody may know of it: submit, follow, cancel, delete (all in one event loop).

Each video's news are its record and its frames so far; followers wait for `news` and read on from where they were. Whatever
happens to the worker, every request ends: completed, or failed with words.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lumos.serving.config import ServeConfig
from lumos.serving.decode import processes
from lumos.serving.queue import Client, FairQueue, Waiting
from lumos.serving.request import VideoRequest
from lumos.serving.store import Store, Video, new_id
from lumos.serving.worker import FILES, run_worker

log = logging.getLogger("lumos.serving")
GRACE = 10.0  # seconds a worker has to stop a batch before it is stopped itself
MOST_RESTARTS = 5  # in a row, without a batch finished or an hour between them
LONG_LIFE = 3600.0
STOPPED = ("server_stopped", "the server was stopped before this video was finished; send it again")
CRASHED = ("worker_crashed", "the worker stopped while making this video; send it again")
CANCELLED = ("cancelled", "this video was cancelled")


class WorkerUnavailable(Exception):
    """The worker is starting, or could not."""


@dataclass
class Unfinished:
    """What is kept of a video only until it is finished. frames: (number of the first, its WebP pictures)."""

    queued: float
    frames: list[tuple[int, list[bytes]]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Running:
    """The batch that is made now, and why it was stopped, if it was."""

    number: int
    ids: list[str]
    timers: list[asyncio.TimerHandle]
    reason: tuple[str, str] | None = None


class Service:
    """Made by `start`, ended by `stop`; `about` tells the model's own size, length and sampler.

    dead: set to an exception in words when the server cannot go on.
    """

    def __init__(self, config: ServeConfig, store: Store) -> None:
        self.config, self.store = config, store
        self.queue = FairQueue(config.queue, config.queue_per_client, config.queue_per_address)
        self.unfinished: dict[str, Unfinished] = {}
        self.running: Running | None = None
        self.about: dict[str, Any] = {}
        self.loaded = asyncio.Event()  # while the worker holds the model
        self.counts: Counter[str] = Counter()  # completed, failed, cancelled, refused, restarts
        self.taken: list[float] = []  # seconds of the last batches
        self.observed: Callable[[str, float], None] = lambda what, seconds: None  # metrics.py listens
        self.dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._numbers = itertools.count(1)
        self._checks: dict[int, asyncio.Future[str | None]] = {}
        self._files: dict[str, Any] = {}  # of the weights that were loaded
        self._told = False  # that they were changed
        self._deaths = 0  # in a row
        self._born = 0.0
        self._stopping = False
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._order: list[str] | None = None
        self._cleaner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the worker and wait until the model is loaded. ValueError in words when it cannot be."""
        await self._spawn()
        loaded = asyncio.create_task(self.loaded.wait())
        try:
            await asyncio.wait((loaded, self.dead), return_when=asyncio.FIRST_COMPLETED)
        finally:
            loaded.cancel()
        if self.dead.done():
            self.dead.result()
        self._cleaner = asyncio.create_task(self._clean())

    async def stop(self) -> None:
        """End everything; what was not finished becomes a failure that says so."""
        self._stopping = True
        if self._cleaner:
            self._cleaner.cancel()
        for id in list(self.unfinished):
            self._end(id, STOPPED)
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.join, 5)
        if self.dead.done():
            self.dead.exception()
        self.store.close()

    @property
    def ready(self) -> bool:
        return self.loaded.is_set()

    async def check(self, request: VideoRequest) -> None:
        """ValueError in words for a prompt that the model cannot read. WorkerUnavailable when there is no worker."""
        pipe = self._ready_pipe()
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        self._checks[number] = answer
        try:
            self._send(pipe, ("check", number, request))
            error = await asyncio.wait_for(answer, 10)
        except TimeoutError:
            raise WorkerUnavailable from None
        finally:
            self._checks.pop(number, None)
        if error:
            raise ValueError(error)

    def submit(self, request: VideoRequest, client: Client, digest: str, start: Path | None, source: str | None = None) -> Video:
        """Put a checked request into the queue. `start`: file with its given frames, which is moved. QueueFull, or OSError."""
        self._ready_pipe()
        self.queue.check_room(client)
        video = Video(new_id("video"), digest, self.config.weights_name, request, int(time.time()), source=source)
        self.store.add(video, start)
        self.unfinished[video.id] = Unfinished(time.monotonic())
        self.queue.add(Waiting(video.id, client, request))
        self._order = None
        log.info("%s queued%s", video.id, f": {request.prompt!r}" if self.config.log_prompts else "")
        self._next()
        return video

    def cancel(self, id: str) -> None:
        """Stop making a video; nothing happens to one that is finished. KeyError for an unknown one."""
        if not self.store.known[id].is_finished:
            self.counts["cancelled"] += 1
            self._end(id, CANCELLED)
            if self.queue.remove(id):
                self._order = None
            elif self.running and not any(other in self.unfinished for other in self.running.ids):
                self._stop_batch(CANCELLED)  # nobody else waits for it

    def delete(self, id: str) -> None:
        self.cancel(id)
        self.store.delete(id)

    def position(self, id: str) -> int | None:
        """How many requests come before this one; None when it does not wait."""
        if self.store.known[id].status != "queued":
            return None
        if self._order is None:
            self._order = self.queue.order()
        return self._order.index(id) + (self.running is not None) if id in self._order else None

    def wait_estimate(self) -> int:
        """Seconds until there will be room again, at the speed of the last batches; 1 to 600."""
        return max(1, min(600, round(sum(self.taken) / len(self.taken) if self.taken else 10.0)))

    async def follow(self, id: str, seen: int = 0, pause: float = 15.0) -> AsyncIterator[tuple[str, Any]]:
        """Yield ("status", video) at every change, ("frames", (n, first, pictures)) from number `seen` on, ("pause", None).

        Ends after the status of a video that is finished, and at once for a deleted one.
        """
        unfinished = self.unfinished.get(id, Unfinished(0))
        while True:
            news = unfinished.news
            for number in range(seen, len(unfinished.frames)):
                yield "frames", (number, *unfinished.frames[number])
            seen = max(seen, len(unfinished.frames))
            video = self.store.known.get(id)
            if video is None:
                return
            yield "status", video
            if video.is_finished:
                return
            while not news.is_set():
                try:
                    await asyncio.wait_for(news.wait(), pause)
                except TimeoutError:
                    yield "pause", None

    async def _spawn(self) -> None:
        ours, theirs = processes().Pipe()
        settings = (theirs, self.config.weights, self.config.device)
        process = processes().Process(target=run_worker, args=settings, daemon=True, name="lumos worker")
        await asyncio.to_thread(process.start)  # the first waits for the libraries to be loaded
        theirs.close()
        self._process, self._pipe, self._born = process, ours, time.monotonic()
        loop = asyncio.get_running_loop()
        threading.Thread(target=_hear, args=(ours, loop, self._on_message), daemon=True).start()

    def _on_message(self, pipe: Connection, message: tuple[Any, ...] | None) -> None:
        if pipe is not self._pipe or self._stopping:
            return
        if message is None:
            self._on_death()
            return
        word, number, *rest = message
        if word == "ready":
            self._on_ready(*rest)
        elif word == "weights":
            if rest[0] != self._files and not self._told:
                self._told = True
                log.warning("the files of the weights were changed; start the server again to serve what they hold now")
        elif word == "broken":
            self._give_up(rest[0])
        elif word == "checked":
            if number in self._checks and not self._checks[number].done():
                self._checks[number].set_result(rest[0])
        elif self.running and number == self.running.number:
            self._on_batch(self.running, word, rest)

    def _on_ready(self, about: dict[str, Any], files: dict[str, Any]) -> None:
        if self._files and files != self._files:
            self._give_up("the weights were changed while the server ran, and its worker had to load them again; start it again")
            return
        self.about, self._files = about, files
        self.loaded.set()
        self._next()

    def _on_batch(self, running: Running, word: str, rest: list[Any]) -> None:
        known = [id for id in running.ids if id in self.unfinished]
        if word == "progress":
            done, passes = rest
            for id in known:
                # the files are still to be written when the last pass is done
                self.store.known[id].progress = min(99, 100 * done // passes)
                self._tell(id)
        elif word == "frames":
            first, rows = rest
            for id, pictures in zip(running.ids, rows, strict=True):
                if id in known:
                    self.unfinished[id].frames.append((first, pictures))
                    self._tell(id)
        elif word == "finished":
            errors, seconds = rest
            self._deaths = 0
            self.taken = [*self.taken[-19:], seconds]
            self.observed("made", seconds)
            for id, error in zip(running.ids, errors, strict=True):
                if id in known:
                    self.store.known[id].seconds_taken = round(seconds, 2)
                    self._end(id, ("disk", error) if error else None)
            self._finish_batch(running)
        elif word == "failed":
            code, message = rest
            if code == "fault":
                log.error("batch %d failed: %s", running.number, message)
                message = "the server met a fault while making this video; it has been logged"
            for id in known:
                self._end(id, running.reason or (code, message))
            self._finish_batch(running)

    def _on_death(self) -> None:
        """The worker is gone: what it made is lost, and another one is started after a pause."""
        self.loaded.clear()
        pipe, process = self._pipe, self._process
        self._pipe = self._process = None
        if pipe:
            pipe.close()
        for answer in self._checks.values():
            if not answer.done():
                answer.set_exception(WorkerUnavailable())
        if self.running:
            for id in self.running.ids:
                self._end(id, self.running.reason or CRASHED)
            self._finish_batch(self.running)
        if process is not None:
            process.join(1)
            log.error("the worker stopped with exit code %s", process.exitcode)
        if not self.about:
            self._give_up("the worker stopped while it loaded the model; is there enough memory?")
            return
        self.counts["restarts"] += 1
        self._deaths = 1 if time.monotonic() - self._born > LONG_LIFE else self._deaths + 1
        if self._deaths > MOST_RESTARTS:
            self._give_up(f"the worker stopped {self._deaths} times in a row; see the log")
            return
        pause = self.config.restart_pause * 2 ** (self._deaths - 1)
        log.info("starting another worker in %g s", pause)
        asyncio.get_running_loop().call_later(pause, self._respawn)

    def _respawn(self) -> None:
        if not self._stopping:
            self._spawning = asyncio.create_task(self._spawn())

    def _give_up(self, why: str) -> None:
        if not self.dead.done():
            self.dead.set_exception(ValueError(why))

    def _next(self) -> None:
        if not self.ready or self.running or self._pipe is None or not len(self.queue):
            return
        items = self.queue.next_batch(self.config.batch)
        self._order = None
        for item in items:
            video = self.store.known[item.id]
            video.status, video.together = "in_progress", len(items)
            self.observed("waited", time.monotonic() - self.unfinished[item.id].queued)
            self._tell(item.id)
        limit = asyncio.get_running_loop().call_later(self.config.time_limit, self._too_long)
        self.running = Running(next(self._numbers), [item.id for item in items], [limit])
        folders = tuple(self.store.folder(item.id) for item in items)
        self._send(self._pipe, ("make", self.running.number, tuple(item.request for item in items), folders))
        for item in self.queue.waiting:
            self._tell(item.id)

    def _too_long(self) -> None:
        limit = f"{self.config.time_limit:g} s"
        self._stop_batch(("time_limit", f"this video took longer than {limit}; ask for fewer frames or a smaller size"))

    def _stop_batch(self, reason: tuple[str, str]) -> None:
        assert self.running
        if self.running.reason is None and self._pipe and self._process:
            self.running.reason = reason
            self._send(self._pipe, ("cancel", self.running.number))
            self.running.timers.append(asyncio.get_running_loop().call_later(GRACE, self._process.kill))

    def _finish_batch(self, running: Running) -> None:
        for timer in running.timers:
            timer.cancel()
        for id in running.ids:  # a video may have been cancelled or deleted while its files were written
            self.store.tidy(id)
        self.running = None
        self._next()

    def _end(self, id: str, error: tuple[str, str] | None) -> None:
        """The one place where a video becomes completed or failed."""
        unfinished, video = self.unfinished.pop(id, None), self.store.known.get(id)
        if unfinished is None or video is None:
            return
        if error is None:
            video.status, video.progress, video.files = "completed", 100, list(FILES)
        else:
            video.status, video.error = "failed", {"code": error[0], "message": error[1]}
        try:
            self.store.save(video)
        except OSError as fault:
            log.error("cannot save %s: %s", id, fault.strerror)
            video.status, video.files = "failed", []
            video.error = {"code": "disk", "message": "the server could not save this video; try again later"}
        self.counts[video.status] += 1
        log.info("%s %s%s", id, video.status, f" ({error[0]})" if error else "")
        unfinished.news.set()

    def _tell(self, id: str) -> None:
        unfinished = self.unfinished.get(id)
        if unfinished:
            news, unfinished.news = unfinished.news, asyncio.Event()
            news.set()

    def _ready_pipe(self) -> Connection:
        if not self.ready or self._pipe is None:
            raise WorkerUnavailable
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


def _hear(pipe: Connection, loop: asyncio.AbstractEventLoop, hear: Any) -> None:
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
