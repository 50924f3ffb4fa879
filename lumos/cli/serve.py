"""`lumos serve`: a page and an HTTP API over one model."""

import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lumos.cli.options import Fields, tell
from lumos.config import Range

# Those of ServeConfig that are said in other units here.
UNITS = ("data", "api_key", "keep_seconds", "keep_bytes", "upload_bytes", "decode_bytes")
SERVER_OPTIONS = Fields("lumos.serving.config", "ServeConfig", dict.fromkeys(UNITS, ""))


@dataclass(frozen=True)
class ServeArgs:
    """Open a page on which videos are made, and an HTTP API for programs (described at /docs). Ctrl-C stops it.

    lumos serve
    lumos serve --weights runs/a/model --port 8000
    LUMOS_API_KEY=... lumos serve --host 0.0.0.0
    """

    # folder for finished videos: new, empty or an earlier server's (default: ~/.local/state/lumos/serve)
    data: Path | None = None
    # key that every request must carry; the environment variable LUMOS_API_KEY is safer, as nobody sees it
    api_key: str | None = None
    keep_hours: Annotated[float, Range(1e-3, math.inf)] = 24.0  # hours for which finished videos are kept; inf keeps them
    keep_gb: Annotated[float, Range(0, math.inf)] = 2.0  # gigabytes that finished videos may take; the oldest go first
    upload_mb: int = 32  # largest upload in megabytes


def run_serve(args: ServeArgs, limits: dict[str, Any]) -> None:
    begin = time.monotonic()
    import asyncio
    import logging

    from lumos.serving.config import ServeConfig, usual_data_folder

    key = args.api_key if args.api_key is not None else os.environ.get("LUMOS_API_KEY") or None
    config = ServeConfig(
        data=args.data or usual_data_folder(),
        api_key=None if limits.get("no_auth") and args.api_key is None else key,
        keep_seconds=args.keep_hours * 3600,
        keep_bytes=args.keep_gb * 1e9,
        upload_bytes=args.upload_mb * 2**20,
        **limits,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    from lumos.serving.server import serve

    def ready(address: str) -> None:
        address = (config.public_url or address).rstrip("/")
        print(f"lumos: ready after {time.monotonic() - begin:.1f} s at {address}/ (API: {address}/docs)", flush=True)

    asyncio.run(serve(config, ready))
    tell("stopped; finished videos are kept")
