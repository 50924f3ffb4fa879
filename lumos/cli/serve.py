"""`lumos serve`: a page and an HTTP API over one model."""

import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from lumos.cli.options import Fields, tell

SERVER_OPTIONS = Fields("lumos.serving.config", "ServeConfig", {"decode_bytes": ""})


@dataclass(frozen=True)
class ServeArgs:
    """Open a page on which videos are made, and an HTTP API for programs (described at /docs). Ctrl-C stops it.

    lumos serve
    lumos serve --weights runs/a/model --port 8000
    LUMOS_API_KEY=... lumos serve --host 0.0.0.0
    """


def run_serve(args: ServeArgs, settings: dict[str, Any]) -> None:
    begin = time.monotonic()
    import asyncio
    import logging

    from lumos.serving.config import ServeConfig

    key = None if settings.get("no_auth") else os.environ.get("LUMOS_API_KEY") or None
    config = ServeConfig(**{"api_key": key, **settings})
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    from lumos.serving.server import serve

    def ready(address: str) -> None:
        address = (config.public_url or address).rstrip("/")
        print(f"lumos: ready after {time.monotonic() - begin:.1f} s at {address}/ (API: {address}/docs)", flush=True)

    asyncio.run(serve(config, ready))
    tell("stopped; finished videos are kept")
