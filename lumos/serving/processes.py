"""Processes of their own for what needs torch: the model's worker, a decoder for every uploaded file, and what enlarges videos.

They are forked from one that has loaded the libraries and holds nothing else. The server itself never imports these modules.
"""

import multiprocessing
import signal
import subprocess
import sys
from importlib import import_module
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, Literal, get_args

from lumos.serving.config import ServeConfig

Module = Literal["lumos.serving.worker", "lumos.serving.decode"]

_context = multiprocessing.get_context("forkserver")
Pipe = _context.Pipe


def start_processes() -> None:
    """Start the process that the others are forked from. It loads torch."""
    _context.set_forkserver_preload(list(get_args(Module)))  # loading them starts no threads
    resource_tracker.ensure_running()  # which would unblock signals below
    # Ctrl-C reaches all processes of a terminal; this one ends with the server, which decides
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_devices(config: ServeConfig) -> list[str | None]:
    """A device for each worker. ValueError for more GPUs than there are."""
    if config.gpus is None:
        return [config.device] * config.workers
    count = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    cards = int(subprocess.run(count, capture_output=True, text=True, check=True).stdout)
    wanted = cards if config.gpus == "all" else int(config.gpus)
    if not 1 <= wanted <= cards:
        raise ValueError(f"gpus must be at most the {cards} of this machine, got {config.gpus}; --workers N is for the CPU")
    return [f"cuda:{number}" for number in range(wanted)]


def new_process(module: Module, *arguments: Any, function: str = "run") -> BaseProcess:
    """A process that will be `module`.`function`(*arguments). Call `start_processes` once before it starts."""
    return _context.Process(target=_run, args=(module, function, *arguments), daemon=True)


def _run(module: Module, function: str, *arguments: Any) -> None:
    getattr(import_module(module), function)(*arguments)
