"""Processes of their own for what needs torch: the model's worker, and a decoder for every uploaded file.

They are forked from one that has loaded the libraries and holds nothing else. The server itself never imports these modules.
"""

import multiprocessing
import os
import signal
from importlib import import_module
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, Literal

Module = Literal["lumos.serving.worker", "lumos.serving.decode"]
# How often one of torch's threads that waits for the others looks again before it sleeps. Unless told so, it hardly ever sleeps:
# a tenth faster on a quiet machine, but ten times slower beside anything that keeps a core busy.
SPINS = 1000

_context = multiprocessing.get_context("forkserver")
Pipe = _context.Pipe


def start_processes() -> None:
    """Start the process that the others are forked from. It loads torch, whose threads are told here how to wait."""
    _context.set_forkserver_preload(list(Module.__args__))  # type: ignore[attr-defined] # loading them starts no threads
    settings = {} if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys() else {"GOMP_SPINCOUNT": str(SPINS)}
    os.environ.update(settings)
    resource_tracker.ensure_running()  # which would unblock signals below
    # Ctrl-C reaches all processes of a terminal; this one ends with the server, which decides
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for name in settings:
            del os.environ[name]


def new_process(module: Module, *arguments: Any) -> BaseProcess:
    """A process that will be `module`.run(*arguments). Call `start_processes` once before it starts."""
    return _context.Process(target=_run, args=(module, *arguments), daemon=True)


def _run(module: Module, *arguments: Any) -> None:
    import_module(module).run(*arguments)
