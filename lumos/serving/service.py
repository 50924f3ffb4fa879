"""One queue, a worker for every device, and what everybody may know of them, all in one event loop.

A video's way: `submit` stores it and puts it into the queue; a worker (pool.py) takes it out, makes it and passes news on to
whoever is in `follow`; `end` completes or fails it. Whatever happens to a worker, every video ends.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

from lumos.sequence.prompt_template import PromptReader
from lumos.serving.config import ServeConfig
from lumos.serving.errors import RequestError, log
from lumos.serving.live import Sessions
from lumos.serving.metrics import Metrics
from lumos.serving.pool import STOPPED, Reason, Worker
from lumos.serving.processes import new_process
from lumos.serving.queue import Client, FairQueue, Job
from lumos.serving.request import VideoRequest
from lumos.serving.store import Store, Video, new_id
from lumos.serving.uploads import Uploads

LARGE = 512  # pixels of the longer side of a large file
Starts = Mapping[int, Path]  # files of frames that are given, by number of the first
CANCELLED = ("cancelled", "this video was cancelled")


class Service:
    """`run` is its life. about, prompts: what a worker says of its model. devices: of each worker, None for the usual one."""

    prompts: PromptReader

    def __init__(self, config: ServeConfig, store: Store, devices: Sequence[str | None] = (None,)) -> None:
        self.config, self.store, self.uploads = config, store, Uploads(store, config)
        self.queue = FairQueue(config.queue, config.queue_per_client, config.per_address(config.queue, config.queue_per_client))
        self.sessions = Sessions(config, self._freest)
        self.jobs: dict[str, Job] = {}  # of all videos that are not finished
        self.workers = [Worker(self, number, device) for number, device in enumerate(devices)]
        self.loaded = asyncio.Event()  # set while a worker holds the model
        self.about: dict[str, Any] = {}
        self.metrics = metrics = Metrics(config.weights_name)
        metrics.gauge("queue_waiting", "requests that wait", lambda: len(self.queue.waiting))
        metrics.gauge("sessions", "live sessions", lambda: len(self.sessions.known))
        metrics.gauge("stored_videos", "videos known", lambda: len(store.known))
        metrics.gauge("stored_bytes", "bytes of finished videos", lambda: sum(video.bytes for video in store.known.values()))
        for worker in self.workers:
            metrics.watch(worker)
        self._enlarging = asyncio.Semaphore(1)
        self._taken: deque[float] = deque(maxlen=20)  # seconds of the last batches
        self._files: dict[str, Any] = {}  # of the weights that were loaded
        self._warned = False  # that they were changed

    async def run(self) -> None:
        """Make what is asked until cancelled. ValueError in words when a worker cannot start, or the last one is given up."""
        cleaner = asyncio.create_task(self._clean())
        lives = {asyncio.create_task(worker.run()): worker for worker in self.workers}
        try:
            while True:
                for life in (await asyncio.wait(lives, return_when=asyncio.FIRST_COMPLETED))[0]:
                    worker = lives.pop(life)
                    if not lives or not worker.was_ready or not isinstance(life.exception(), ValueError):
                        life.result()
                    log.error("worker %d is given up: %s", worker.number, life.exception())
        finally:
            for task in (cleaner, *lives):
                task.cancel()
            await asyncio.gather(*lives, return_exceptions=True)
            for job in list(self.jobs.values()):
                self.end(job, STOPPED)
            self.store.close()

    def load(self, about: dict[str, Any], prompts: PromptReader, files: dict[str, Any]) -> None:
        """A worker has loaded the model. ValueError when it is not the one that others loaded before."""
        if self._files not in ({}, files):
            raise ValueError("the weights were changed while the server ran, and a new worker read them; start it again")
        self.about, self.prompts, self._files = about, prompts, files

    def made(self, seconds: float, files: dict[str, Any]) -> None:
        """A worker has finished a batch."""
        self._taken.append(seconds)
        self.metrics.made.observe(seconds)
        if files != self._files and not self._warned:
            self._warned = True
            log.warning("the files of the weights were changed; start the server again to serve what they hold now")

    def end(self, job: Job, reason: Reason | None) -> None:
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

    def _freest(self) -> Worker:
        """The worker for another session: one that holds the model, and has the fewest of them. RequestError when none does."""
        self.check_loaded()  # again: the last one may have stopped while the session's picture was decoded
        taken = [live.worker for live in self.sessions.known.values()]
        return min((worker for worker in self.workers if worker.ready.is_set()), key=taken.count)

    def check_loaded(self) -> None:
        """RequestError without a model."""
        if not self.loaded.is_set():
            raise RequestError(503, "the model is being loaded", code="starting", retry=10)

    def check_room(self, client: Client) -> None:
        """RequestError without a model, or when `client` has to wait until others are served."""
        self.check_loaded()
        self.queue.check_room(client, round(min(600, max(1, mean(self._taken or [10.0]) / len(self.workers)))))

    def submit(self, request: VideoRequest, client: Client, starts: Starts | None = None, source: str | None = None) -> Video:
        """Put a checked request into the queue. `starts`: see Store.add. RequestError, or OSError."""
        self.check_room(client)
        video = Video(new_id("video"), client.digest, self.config.weights_name, request, time.time(), source=source)
        self.store.add(video, starts)
        self.jobs[video.id] = job = Job(video, client)
        self.queue.waiting.append(job)
        for worker in self.workers:
            worker.wake()
        log.info("%s queued%s", video.id, f": {request.prompt!r}" if self.config.log_prompts else "")
        return video

    def cancel(self, video: Video) -> None:
        """Stop making a video; nothing happens to one that is finished."""
        if video.is_finished:
            return
        job = self.jobs[video.id]
        self.metrics.videos.labels("cancelled").inc()
        self.end(job, CANCELLED)
        if job in self.queue.waiting:
            self.queue.waiting.remove(job)
        for worker in self.workers:
            if worker.making and not worker.making.wanted:
                worker.stop_making(CANCELLED)  # nobody else waits for it

    async def enlarged(self, video: Video, ending: str) -> Path:
        """The file with sides of at most LARGE pixels, made when somebody first asks for it. OSError if it cannot be written."""
        made, folder = video.request, self.store.folder(video.id)
        factor, small = LARGE // max(made.height, made.width), folder / f"video.{'mp4' if made.frames > 1 else 'png'}"
        if factor < 2:
            return folder / f"video.{ending}"
        file = folder / f"large.{ending}"
        async with self._enlarging:
            if not file.is_file():
                size = made.height * factor, made.width * factor, made.fps
                process = new_process("lumos.serving.decode", small, file, *size, function="enlarge")
                process.start()
                await asyncio.to_thread(process.join)
                if video.id not in self.store.known:
                    raise RequestError(404, "this video was deleted meanwhile", code="not_found")
                video.bytes += file.stat().st_size
        return file

    def document(self, video: Video) -> dict[str, Any]:
        """What a client sees of a video, with its place in the queue while it waits."""
        ahead = [job.video for job in self.queue.order()] if video.status == "queued" else []
        is_busy = all(worker.making for worker in self.workers)
        return video.document(ahead.index(video) + is_busy if video in ahead else None)

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
