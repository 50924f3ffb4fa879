"""From a configuration to a listening server, and to its end: worker, application, page and uvicorn in one event loop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn

from lumos.serving.api import create_app
from lumos.serving.config import ServeConfig
from lumos.serving.decode import prepare
from lumos.serving.engine import Engine
from lumos.serving.guard import Guard
from lumos.serving.page import create_page, load_library
from lumos.serving.store import Store


async def serve(config: ServeConfig, ready: Callable[[str], None], stop: asyncio.Event | None = None) -> None:
    """Listen until SIGINT, SIGTERM or `stop`. `ready` is called with the page's address once everything answers.

    ValueError or OSError in words when the port, the data folder or the weights cannot be used.
    """
    _quieten()
    listener = _listener(config)
    try:
        prepare()
        store = Store(config.data, config.keep_seconds, config.keep_bytes)
        engine = Engine(config, store)
        try:
            await asyncio.gather(engine.start(), asyncio.to_thread(load_library))
            app = Guard(create_app(config, engine), create_page(config, engine), config)
            port = listener.getsockname()[1]
            shown = "localhost" if config.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else config.host
            await _run(app, config, listener, lambda: ready(f"http://{shown}:{port}/"), stop)
        finally:
            await engine.stop()
    finally:
        listener.close()


async def _run(
    app: object, config: ServeConfig, listener: socket.socket, ready: Callable[[], None], stop: asyncio.Event | None
) -> None:
    settings = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None,
        access_log=False,  # paths hold nothing secret, but nobody asked for them
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=64 * 1024,
        lifespan="off",  # of the page's library: it would ask a queue that nobody uses for work a thousand times a second
    )
    server = _Server(settings)
    running = asyncio.create_task(server.serve([listener]))
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(RuntimeError, ValueError):  # only the main thread hears signals
            loop.add_signal_handler(number, stop.set)
    ended = asyncio.create_task(stop.wait())
    try:
        while not server.started and not running.done():
            await asyncio.sleep(0.02)
        if server.started:
            ready()
        await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await running
    finally:
        ended.cancel()


class _Server(uvicorn.Server):
    """Signals are ours: this one would raise them again at its end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listener(config: ServeConfig) -> socket.socket:
    host = config.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"host must be an address of this machine, got {host!r} ({error}); use 127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ValueError(f"cannot listen on {host}:{config.port} ({error.strerror}); use another --port") from None
    return listener


def _quieten() -> None:
    """Other libraries' chatter stays out of the log; their warnings stay in."""
    for name in ("httpx", "httpcore", "uvicorn", "uvicorn.error", "asyncio", "gradio", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
