"""From a configuration to a listening server, and to its end: worker, application and uvicorn in one event loop."""

import asyncio
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import h11
import python_multipart  # noqa: F401 - a form would miss it only when it comes
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lumos.serving.api import create_app
from lumos.serving.config import ServeConfig
from lumos.serving.errors import log
from lumos.serving.processes import start_processes, worker_devices
from lumos.serving.service import Service
from lumos.serving.store import Store

BACKLOG = 16  # connections taken at a time; three times as many may be on their way in or out
OWN_FILES = 64  # descriptors that are left to everything but connections
MOST_CONNECTIONS = 1000


async def serve(config: ServeConfig, ready: Callable[[str], None], stop: asyncio.Event | None = None) -> None:
    """Listen until SIGINT, SIGTERM or `stop`. `ready` is called with the address once everything answers.

    ValueError or OSError in words when the port, the data folder or the weights cannot be used, or the worker dies too often.
    """
    stop, loop = stop or asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(RuntimeError, ValueError):  # only the main thread hears signals
            loop.add_signal_handler(number, stop.set)
    for name in ("uvicorn", "uvicorn.error", "asyncio"):  # other libraries' chatter; a stranger's broken request is no news
        logging.getLogger(name).setLevel(logging.ERROR)
    loop.set_exception_handler(_log_fault)
    devices = worker_devices(config)
    with _listener(config) as listener:
        start_processes()
        log.info("loading the model")
        service = Service(config, Store(config.data_folder, config.keep_hours, config.keep_gb), devices)
        server = uvicorn.Server(_settings(config, service))
        server.capture_signals = nullcontext  # type: ignore[assignment] # they are ours; it would raise them again at its end
        life = asyncio.create_task(service.run())
        listening = asyncio.create_task(server.serve([listener]))
        loaded, ended = asyncio.create_task(service.loaded.wait()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((loaded, life, listening, ended), return_when=asyncio.FIRST_COMPLETED)
            if loaded.done():
                shown = "localhost" if config.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else config.host
                ready(f"http://{shown}:{listener.getsockname()[1]}")
                await asyncio.wait((life, listening, ended), return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                life.result()
        finally:
            server.should_exit = True
            for task in (loaded, ended, life):
                task.cancel()
            await asyncio.gather(life, listening, return_exceptions=True)


def _settings(config: ServeConfig, service: Service) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(service),
        http=_connections(config),
        ws="none",
        log_config=None,
        access_log=False,  # paths hold nothing secret, but nobody asked for them
        server_header=False,
        proxy_headers=config.public_url is not None,  # a proxy on this machine says who asks
        backlog=BACKLOG,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=64 * 1024,
        lifespan="off",
    )


def _log_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not str(context.get("message")).startswith("socket.accept()"):  # it is tried again, a thousand times a second
        loop.default_exception_handler(context)


def _connections(config: ServeConfig) -> type[H11Protocol]:
    """The library's connection with an end to patience: for a request's first lines, and for how many there are at a time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    most = max(8, min(MOST_CONNECTIONS, (soft if soft != resource.RLIM_INFINITY else 2**16) - OWN_FILES - 3 * BACKLOG))
    idle: dict[Any, None] = {}  # those that wait for a request, in the order in which they began to

    class _Connection(H11Protocol):
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()
            if len(self.connections) > most:
                oldest = next(iter(idle))  # the one that has kept us waiting longest, perhaps this one
                oldest._done()
                oldest.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._wait()
            else:
                self._done()

        def connection_lost(self, exc: Exception | None) -> None:
            self._done()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self not in idle:
                idle[self] = None
                self.timer = self.loop.call_later(config.header_seconds, self.transport.abort)

        def _done(self) -> None:
            idle.pop(self, None)
            if self.timer:
                self.timer.cancel()

    return _Connection


def _listener(config: ServeConfig) -> socket.socket:
    host = config.host.strip("[]")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"host must be an address of this machine, got {host!r} ({error}); use 127.0.0.1") from None
    try:
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=family == socket.AF_INET6)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise ValueError(f"cannot listen on {host}:{config.port} ({why}); use another --port") from None
