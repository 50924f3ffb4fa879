"""Who does what at the same time: `Lanes` generate on the cores of a CPU, `Workers` judge and write files beside a GPU.

Judging is numpy and Pillow, and a GPU should not wait for it: it goes to other processes. `Workers(0)` does it at once, in
the thread that generated; that is best where generating takes all cores anyway.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")
MOST = 14  # more do not help: one H200 makes about as many clips as these judge
MOST_LANES = 8  # more would wait for each other: Python runs in one of them at a time


def usual_workers(device: torch.device) -> int:
    """None on the CPU; with a GPU all cores but two, at most 14."""
    return 0 if device.type == "cpu" else max(0, min(MOST, len(os.sched_getaffinity(0)) - 2))


class Workers:
    """A pool of processes as a context; `submit` calls a function of some module in one of them."""

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"workers must be 0 or more, got {count}; 0 does everything in one process")
        self.pool = _start(count) if count else None

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """A future of its result; without processes it is there already."""
        return _submit(self.pool, function, *args, **kwargs)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


class Lanes:
    """Threads that take one task after another, each with its share of the cores, as a context; `submit` as of `Workers`.

    On the CPU a core a batch is quicker than all cores for one batch after another: no core waits for the others after every
    operation, however busy the machine is, and what only one can do (judging) keeps no other from its work. With a GPU, or where
    torch may use one core only, there is one lane: the calling thread.
    """

    def __init__(self, device: torch.device) -> None:
        self.cores = torch.get_num_threads()
        self.count = min(self.cores, MOST_LANES) if device.type == "cpu" else 1
        self.pool: ThreadPoolExecutor | None = None
        self.stopped = threading.Event()

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """A future of its result; with one lane it is there already."""
        return _submit(self.pool, function, *args, **kwargs)

    def check(self, *_progress: int) -> None:
        """Raises KeyboardInterrupt after `stop`: tasks call it as often as they can be given up."""
        if self.stopped.is_set():
            raise KeyboardInterrupt

    def stop(self) -> None:
        """Give up what is not finished, and start nothing more."""
        self.stopped.set()
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> "Lanes":
        if self.count > 1:
            self.pool = ThreadPoolExecutor(self.count, "lane", torch.set_num_threads, (self.cores // self.count,))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        if self.pool is not None:
            self.pool.shutdown()
            torch.set_num_threads(self.cores)  # what a thread sets for itself holds for all that start later, too


def _submit(pool: Executor | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
    if pool is not None:
        return pool.submit(function, *args, **kwargs)
    done: Future[T] = Future()
    done.set_result(function(*args, **kwargs))
    return done


def _start(count: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a forked process cannot use libraries that already run threads or CUDA.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that generates: what is made is still judged
    torch.set_num_threads(1)
