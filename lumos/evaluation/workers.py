"""Processes beside the one that generates: judging and writing files is numpy and Pillow, and a GPU should not wait for it.

`Workers(0)` does everything at once in the calling process, which is best where generating takes all cores anyway.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")
MOST = 14  # more do not help: one H200 makes about as many clips as these judge


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
        if self.pool is not None:
            return self.pool.submit(function, *args, **kwargs)
        done: Future[T] = Future()
        done.set_result(function(*args, **kwargs))
        return done

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


def _start(count: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a forked process cannot use libraries that already run threads or CUDA.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that generates: what is made is still judged
    torch.set_num_threads(1)
