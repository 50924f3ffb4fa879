"""The processes that hold the model, as the server sees them: one for each device, all of them fed by the one queue.

A worker takes a batch from the queue whenever it is free, sends it to its process and passes the process's news on. A process
that dies costs the batch that it was making, and is replaced; the other workers do not notice.
"""

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from lumos.serving.errors import log
from lumos.serving.processes import Pipe, new_process
from lumos.serving.queue import Job

if TYPE_CHECKING:
    from lumos.serving.service import Service

GRACE = 10.0  # seconds a process has to stop a batch before it is stopped itself
MOST_RESTARTS = 5  # in a row, without a batch finished or an hour between them
LONG_LIFE = 3600.0
Reason = tuple[str, str]  # why a video fails: a word for programs, and a sentence
STOPPED = ("server_stopped", "the server was stopped before this video was finished; send it again")
CRASHED = ("worker_crashed", "the worker stopped while making this video; send it again")
SESSION_LOST = ("worker_crashed", "the worker stopped, and with it this session; begin another")
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


class Worker:
    """One device's process and the next one after it. `run` is its life."""

    process: BaseProcess
    pipe: Connection  # to the process

    def __init__(self, service: "Service", number: int, device: str | None) -> None:
        self.service, self.number, self.device = service, number, device
        self.ready = asyncio.Event()  # set while the process holds the model
        self.was_ready = False  # one of its processes did
        self.making: Making | None = None
        self._inbox: asyncio.Queue[tuple[Any, ...] | None] = asyncio.Queue()  # what the process says, None when it died
        self._deaths = 0  # of processes in a row

    async def run(self) -> None:
        """Make what is asked until cancelled, with a new process for one that died. ValueError in words when that is no use."""
        while True:
            born = time.monotonic()
            try:
                await self._run_process()
            except WorkerDied:
                log.error("worker %d stopped with exit code %s", self.number, self.process.exitcode)
            if not self.was_ready:
                raise ValueError("the worker stopped while it loaded the model; is there enough memory?")
            self.service.metrics.restarts.labels(self.number).inc()
            self._deaths = 1 if time.monotonic() - born > LONG_LIFE else self._deaths + 1
            if self._deaths > MOST_RESTARTS:
                raise ValueError(f"the worker stopped {self._deaths} times in a row; see the log")
            await asyncio.sleep(self.service.config.restart_pause * 2 ** (self._deaths - 1))

    async def _run_process(self) -> None:
        """One process from its start to its end: WorkerDied, or ValueError for weights that cannot be served."""
        service = self.service
        self.pipe, theirs = Pipe()
        arguments = (theirs, service.config.weights, self.device, len(service.workers))
        self.process = process = new_process("lumos.serving.worker", *arguments)
        await asyncio.to_thread(process.start)  # the first waits for the libraries to be loaded
        theirs.close()
        self._inbox = asyncio.Queue()
        hearing = (self.pipe, asyncio.get_running_loop(), self._inbox)
        threading.Thread(target=_listen, args=hearing, daemon=True).start()
        try:
            word, *rest = await self._heard()
            if word == "broken":
                raise ValueError(rest[0])
            service.load(*rest)
            self.was_ready = True
            self.ready.set()
            service.loaded.set()
            while True:
                if service.queue.waiting:
                    await self._make(service.queue.next_batch(service.config.batch))
                else:
                    await self._heard()  # `wake` ends it
        finally:
            self.ready.clear()
            if not any(worker.ready.is_set() for worker in service.workers):
                service.loaded.clear()
            service.sessions.lose(self, SESSION_LOST)
            process.kill()
            await asyncio.to_thread(process.join, 5)

    def wake(self) -> None:
        """There is something in the queue, which a process that still loads looks at when it is ready."""
        if self.ready.is_set():
            self._inbox.put_nowait(("queued",))

    async def _heard(self) -> tuple[Any, ...]:
        """The process's next word on videos; those on sessions are passed on."""
        while True:
            message = await self._inbox.get()
            if message is None:
                raise WorkerDied
            if message[0] != "live":
                return message
            self.service.sessions.heard(self, *message[1:])

    async def _make(self, jobs: list[Job]) -> None:
        """One batch, from the queue to finished files. Each of its videos ends here, whatever happens."""
        service, limit = self.service, self.service.config.time_limit
        too_long = f"this video took longer than {limit:g} s; ask for fewer frames or a smaller size"
        timer = asyncio.get_running_loop().call_later(limit, self.stop_making, ("time_limit", too_long))
        self.making = making = Making(jobs, [timer])
        videos = [job.video for job in jobs]
        for job in jobs:
            job.video.status = "in_progress"
            service.metrics.waited.observe(time.monotonic() - job.queued)
        for job in service.jobs.values():  # those that wait move up
            job.tell()
        self.send("make", [video.request for video in videos], [service.store.folder(video.id) for video in videos])
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
                service.end(job, end)
                service.store.tidy(job.video.id)  # one that was cancelled or deleted while its files were written
            self.making = None

    async def _ends(self, making: Making) -> list[Reason | None]:
        """Pass on what the process says of a batch, until its end: why each video failed, or None."""
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
                self.service.made(seconds, files)
                for job in making.wanted:
                    job.video.seconds_taken = round(seconds, 2)
                return [("disk", error) if error else None for error in errors]
            elif word == "failed":
                reason, fault = rest
                if fault:
                    log.error("a batch failed: %s", fault)
                return [making.reason or reason or FAULT] * len(making.jobs)

    def stop_making(self, reason: Reason) -> None:
        """End the batch that is made now, with the process if it does not hear."""
        if self.making and not self.making.reason:
            self.making.reason = reason
            self.send("cancel")
            self.making.timers.append(asyncio.get_running_loop().call_later(GRACE, self.kill))

    def kill(self) -> None:
        """End the process, which hangs; `run` starts another."""
        self.process.kill()

    def send(self, *message: Any) -> None:
        """Tell the process."""
        with suppress(OSError):  # its end is heard, too
            self.pipe.send(message)


def _listen(pipe: Connection, loop: asyncio.AbstractEventLoop, inbox: asyncio.Queue[tuple[Any, ...] | None]) -> None:
    """Put everything that the process says into `inbox`, and None at its end."""
    with pipe, suppress(RuntimeError):  # the loop has ended
        try:
            while True:
                loop.call_soon_threadsafe(inbox.put_nowait, pipe.recv())
        except (EOFError, OSError):
            loop.call_soon_threadsafe(inbox.put_nowait, None)
