"""One queue, one worker process, and what everybody may know of it, all in one event loop.

A video's way: `submit` stores it and puts it into the queue; `run` takes it out; `_make` sends it to the worker and passes the
worker's news on to whoever is in `follow`; `_end` completes or fails it. Whatever happens to the worker, every video ends.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import mean
from typing import Any

from lumos.sequence.prompt_template import PromptReader
from lumos.serving.config import ServeConfig
from lumos.serving.errors import RequestError
from lumos.serving.live import Sessions
from lumos.serving.metrics import Metrics
from lumos.serving.processes import Pipe, new_process
from lumos.serving.queue import Client, FairQueue, Job
from lumos.serving.request import VideoRequest
from lumos.serving.store import Store, Video, new_id
from lumos.serving.uploads import Uploads

log = logging.getLogger("lumos.serving")
GRACE = 10.0  # seconds a worker has to stop a batch before it is stopped itself
MOST_RESTARTS = 5  # in a row, without a batch finished or an hour between them
LONG_LIFE = 3600.0
LARGE = 512  # pixels of the longer side of a large file
Reason = tuple[str, str]  # why a video fails: a word for programs, and a sentence
STOPPED = ("server_stopped", "the server was stopped before this video was finished; send it again")
CRASHED = ("worker_crashed", "the worker stopped while making this video; send it again")
CANCELLED = ("cancelled", "this video was cancelled")
SESSION_LOST = ("worker_crashed", "the worker stopped, and with it all sessions; begin another")
FAULT = ("fault", "the server met a fault while making this video; it has been logged")


class WorkerDied(Exception):
    pass


@dataclass
class Making:
    """The batch that is made now, and why it was stopped, if it was."""

    jobs: list[Job]
    timers: list[asyncio.TimerHandle]
    reason: Reason | None = None

    @property
    def wanted(self) -> list[Job]:
        return [job for job in self.jobs if not job.video.is_finished]


class Service:
    """`run` is its life. about, prompts: what the worker says of its model."""

    prompts: PromptReader
    worker: BaseProcess
    pipe: Connection  # to the worker

    def __init__(self, config: ServeConfig, store: Store) -> None:
        self.config, self.store, self.uploads = config, store, Uploads(store, config)
        self.queue = FairQueue(config.queue, config.queue_per_client, config.per_address(config.queue, config.queue_per_client))
        self.sessions = Sessions(config, self._send, lambda: self.worker.kill())
        self.jobs: dict[str, Job] = {}  # of all videos that are not finished
        self.making: Making | None = None
        self.loaded = asyncio.Event()  # set while the worker holds the model
        self.about: dict[str, Any] = {}
        self.metrics = Metrics(config.weights_name)
        self.metrics.gauge("queue_waiting", "requests that wait", lambda: len(self.queue.waiting))
        self.metrics.gauge("batch_size", "requests being made now", lambda: len(self.making.jobs) if self.making else 0)
        self.metrics.gauge("worker_ready", "1 if the model is loaded", self.loaded.is_set)
        self.metrics.gauge("sessions", "live sessions", lambda: len(self.sessions.known))
        self.metrics.gauge("stored_videos", "videos known", lambda: len(store.known))
        self.metrics.gauge("stored_bytes", "bytes of finished videos", lambda: sum(video.bytes for video in store.known.values()))
        self._inbox: asyncio.Queue[tuple[Any, ...] | None] = asyncio.Queue()  # what the worker says, None when it died
        self._enlarging = asyncio.Semaphore(1)
        self._taken: deque[float] = deque(maxlen=20)  # seconds of the last batches
        self._files: dict[str, Any] = {}  # of the weights that were loaded
        self._warned = False  # that they were changed
        self._deaths = 0  # of workers in a row

    async def run(self) -> None:
        """Make what is asked until cancelled, with a new worker for one that died. ValueError in words when that is no use."""
        cleaner = asyncio.create_task(self._clean())
        try:
            while True:
                born = time.monotonic()
                try:
                    await self._run_worker()
                except WorkerDied:
                    log.error("the worker stopped with exit code %s", self.worker.exitcode)
                if not self.about:
                    raise ValueError("the worker stopped while it loaded the model; is there enough memory?")
                self.metrics.restarts.inc()
                self._deaths = 1 if time.monotonic() - born > LONG_LIFE else self._deaths + 1
                if self._deaths > MOST_RESTARTS:
                    raise ValueError(f"the worker stopped {self._deaths} times in a row; see the log")
                await asyncio.sleep(self.config.restart_pause * 2 ** (self._deaths - 1))
        finally:
            cleaner.cancel()
            for job in list(self.jobs.values()):
                self._end(job, STOPPED)
            self.store.close()

    async def _run_worker(self) -> None:
        """One worker from its start to its end: WorkerDied, or ValueError for weights that cannot be served."""
        self.pipe, theirs = Pipe()
        self.worker = worker = new_process("lumos.serving.worker", theirs, self.config.weights, self.config.device)
        await asyncio.to_thread(worker.start)  # the first waits for the libraries to be loaded
        theirs.close()
        self._inbox = asyncio.Queue()
        hearing = (self.pipe, asyncio.get_running_loop(), self._inbox)
        threading.Thread(target=_listen, args=hearing, daemon=True).start()
        try:
            word, *rest = await self._heard()
            if word == "broken":
                raise ValueError(rest[0])
            self.about, self.prompts, files = rest
            if self._files not in ({}, files):
                raise ValueError("the weights were changed while the server ran, and a new worker read them; start it again")
            self._files = files
            self.loaded.set()
            while True:
                if self.queue.waiting:
                    await self._make(self.queue.next_batch(self.config.batch))
                else:
                    await self._heard()  # `submit` wakes it
        finally:
            self.loaded.clear()
            for live in list(self.sessions.known.values()):
                self.sessions.end(live, SESSION_LOST)
            worker.kill()
            await asyncio.to_thread(worker.join, 5)

    async def _heard(self) -> tuple[Any, ...]:
        """The worker's next word on videos; those on sessions are passed on."""
        while True:
            message = await self._inbox.get()
            if message is None:
                raise WorkerDied
            if message[0] != "live":
                return message
            self.sessions.heard(*message[1:])

    async def _make(self, jobs: list[Job]) -> None:
        """One batch, from the queue to finished files. Each of its videos ends here, whatever happens."""
        too_long = f"this video took longer than {self.config.time_limit:g} s; ask for fewer frames or a smaller size"
        timer = asyncio.get_running_loop().call_later(self.config.time_limit, self._stop_making, ("time_limit", too_long))
        self.making = making = Making(jobs, [timer])
        videos = [job.video for job in jobs]
        for job in jobs:
            job.video.status = "in_progress"
            self.metrics.waited.observe(time.monotonic() - job.queued)
        for job in self.jobs.values():  # those that wait move up
            job.tell()
        self._send("make", [video.request for video in videos], [self.store.folder(video.id) for video in videos])
        ends: list[Reason | None] = [STOPPED] * len(jobs)
        try:
            ends = await self._ends(making)
        except WorkerDied:
            ends = [making.reason or CRASHED] * len(jobs)
            raise
        finally:
            for timer in making.timers:
                timer.cancel()
            for job, end in zip(jobs, ends, strict=True):
                self._end(job, end)
                self.store.tidy(job.video.id)  # one that was cancelled or deleted while its files were written
            self.making = None

    async def _ends(self, making: Making) -> list[Reason | None]:
        """Pass on what the worker says of a batch, until its end: why each video failed, or None."""
        while True:
            word, *rest = await self._heard()
            if word == "progress":
                done, passes = rest
                for job in making.wanted:
                    job.video.progress = min(99, 100 * done // passes)  # after the last pass come the files
                    job.tell()
            elif word == "frames":
                first, rows = rest
                for job, pictures in zip(making.jobs, rows, strict=True):
                    job.frames.append((first, pictures))
                    job.tell()
            elif word == "finished":
                errors, seconds, files = rest
                self._deaths = 0
                self._taken.append(seconds)
                self.metrics.made.observe(seconds)
                if files != self._files and not self._warned:
                    self._warned = True
                    log.warning("the files of the weights were changed; start the server again to serve what they hold now")
                for job in making.wanted:
                    job.video.seconds_taken = round(seconds, 2)
                return [("disk", error) if error else None for error in errors]
            elif word == "failed":
                reason, fault = rest
                if fault:
                    log.error("a batch failed: %s", fault)
                return [making.reason or reason or FAULT] * len(making.jobs)

    def _stop_making(self, reason: Reason) -> None:
        if self.making and not self.making.reason:
            self.making.reason = reason
            self._send("cancel")
            self.making.timers.append(asyncio.get_running_loop().call_later(GRACE, self.worker.kill))

    def _send(self, *message: Any) -> None:
        with suppress(OSError):  # its end is heard, too
            self.pipe.send(message)

    def _end(self, job: Job, reason: Reason | None) -> None:
        """The one place where a video becomes completed (no reason) or failed."""
        video = job.video
        if video.is_finished:
            return
        del self.jobs[video.id]
        if reason:
            video.fail(*reason)
        else:
            video.status, video.progress = "completed", 100
        try:
            self.store.save(video)
        except OSError as fault:
            log.error("cannot save %s: %s", video.id, fault.strerror)
            video.fail("disk", "the server could not save this video; try again later")
        self.metrics.videos.labels(video.status).inc()
        log.info("%s %s%s", video.id, video.status, f" ({reason[0]})" if reason else "")
        job.tell()

    def check_loaded(self) -> None:
        """RequestError without a model."""
        if not self.loaded.is_set():
            raise RequestError(503, "the model is being loaded", code="starting", retry=10)

    def check_room(self, client: Client) -> None:
        """RequestError without a model, or when `client` has to wait until others are served."""
        self.check_loaded()
        self.queue.check_room(client, round(min(600, max(1, mean(self._taken or [10.0])))))

    def submit(self, request: VideoRequest, client: Client, start: Path | None = None, source: str | None = None) -> Video:
        """Put a checked request into the queue. `start`: file with its given frames, which is moved. RequestError, or OSError."""
        self.check_room(client)
        video = Video(new_id("video"), client.digest, self.config.weights_name, request, time.time(), source=source)
        self.store.add(video, start)
        self.jobs[video.id] = job = Job(video, client)
        self.queue.waiting.append(job)
        self._inbox.put_nowait(("queued",))
        log.info("%s queued%s", video.id, f": {request.prompt!r}" if self.config.log_prompts else "")
        return video

    def cancel(self, video: Video) -> None:
        """Stop making a video; nothing happens to one that is finished."""
        if video.is_finished:
            return
        job = self.jobs[video.id]
        self.metrics.videos.labels("cancelled").inc()
        self._end(job, CANCELLED)
        if job in self.queue.waiting:
            self.queue.waiting.remove(job)
        if self.making and not self.making.wanted:
            self._stop_making(CANCELLED)  # nobody else waits for it

    async def enlarged(self, video: Video, ending: str) -> Path:
        """The file with sides of at most LARGE pixels, made when somebody first asks for it. OSError if it cannot be written."""
        made, folder = video.request, self.store.folder(video.id)
        factor, small = LARGE // max(made.height, made.width), folder / f"video.{'mp4' if made.frames > 1 else 'png'}"
        if factor < 2:
            return folder / f"video.{ending}"
        file = folder / f"large.{ending}"
        async with self._enlarging:
            if not file.is_file():
                process = new_process("lumos.serving.enlarge", small, file, made.height * factor, made.width * factor, made.fps)
                process.start()
                await asyncio.to_thread(process.join)
                video.bytes += file.stat().st_size
        return file

    def document(self, video: Video) -> dict[str, Any]:
        """What a client sees of a video, with its place in the queue while it waits."""
        ahead = [job.video for job in self.queue.order()] if video.status == "queued" else []
        return video.document(ahead.index(video) + (self.making is not None) if video in ahead else None)

    async def follow(self, video: Video, seen: int = 0, pause: float = 15.0) -> AsyncIterator[tuple[str, Any]]:
        """Yield ("frames", (n, first, pictures)) from number `seen` on, and ("status", video) at every change, the last included.

        pause: seconds after which the status comes again, so that the connection is not taken for dead.
        """
        job = self.jobs.get(video.id) or Job(video, Client(""))
        while True:
            news = job.news
            for number in range(seen, len(job.frames)):
                yield "frames", (number, *job.frames[number])
            seen = max(seen, len(job.frames))
            yield "status", video
            if video.is_finished:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), pause)

    async def _clean(self) -> None:
        while True:
            gone = self.store.expire(self.store.now())
            if gone:
                log.info("removed %d stored videos", len(gone))
            await asyncio.sleep(30)


def _listen(pipe: Connection, loop: asyncio.AbstractEventLoop, inbox: asyncio.Queue[tuple[Any, ...] | None]) -> None:
    """Put everything that the worker says into `inbox`, and None at its end."""
    with pipe, suppress(RuntimeError):  # the loop has ended
        try:
            while True:
                loop.call_soon_threadsafe(inbox.put_nowait, pipe.recv())
        except (EOFError, OSError):
            loop.call_soon_threadsafe(inbox.put_nowait, None)
