"""`lumos serve`: a page and an HTTP API over one model."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lumos.cli.options import UsageError, option


@dataclass(frozen=True)
class ServeArgs:
    """Open a page on which videos are made, and an HTTP API for programs (described at /docs). Ctrl-C stops it.

    lumos serve
    lumos serve --weights runs/a/model --port 8000
    LUMOS_API_KEY=... lumos serve --host 0.0.0.0
    """

    weights: str = option("tiny", "name of weights in the package, or a folder")
    host: str = option("127.0.0.1", "address to listen on; any but this machine's own needs a key or --no-auth")
    port: int = option(7860, "port to listen on; 0 takes a free one")
    public_url: str | None = option(None, "address under which a proxy offers this server: https://NAME", "none")
    api_key: str | None = option(
        None, "key that every request must carry; the environment variable LUMOS_API_KEY is safer, as nobody sees it", "none"
    )
    no_auth: bool = option(False, "let everybody who can reach the address in without a key")
    device: str | None = option(None, "where to compute: cpu, cuda, cuda:1", "cuda if there is one, else cpu")
    batch: int = option(1, "requests made in one pass: those that agree in all but prompt and seed")
    queue: int = option(32, "requests that may wait; more are told to come back later")
    max_frames: int = option(129, "longest video in frames, 1 + 4k")
    time_limit: float = option(600.0, "seconds that making one video may take")
    keep_hours: float = option(24.0, "hours for which finished videos are kept; inf keeps them")
    keep_gb: float = option(2.0, "gigabytes that finished videos may take; the oldest go first")
    upload_mb: int = option(32, "largest upload in megabytes")
    data: Path | None = option(
        None, "folder for finished videos: new, empty or an earlier server's", "~/.local/state/lumos/serve"
    )
    log_prompts: bool = option(False, "write prompts into the log")


def run_serve(args: ServeArgs) -> None:
    begin = time.monotonic()
    import asyncio
    import logging

    from lumos.serving.config import ServeConfig, usual_data_folder

    key = args.api_key if args.api_key is not None else os.environ.get("LUMOS_API_KEY") or None
    if not (args.keep_hours > 0 and args.keep_gb >= 0):
        raise UsageError("--keep-hours must be above 0 and --keep-gb 0 or more; leave them out for a day and 2 GB")
    config = ServeConfig(
        data=args.data or usual_data_folder(),
        host=args.host,
        port=args.port,
        public_url=args.public_url,
        api_key=None if args.no_auth and args.api_key is None else key,
        no_auth=args.no_auth,
        weights=args.weights,
        device=args.device,
        batch=args.batch,
        queue=args.queue,
        max_frames=args.max_frames,
        time_limit=args.time_limit,
        keep_seconds=args.keep_hours * 3600,
        keep_bytes=args.keep_gb * 1e9,
        upload_bytes=args.upload_mb * 2**20,
        log_prompts=args.log_prompts,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    from lumos.serving.server import serve

    def ready(address: str) -> None:
        address = (args.public_url or address).rstrip("/")
        print(f"lumos: ready after {time.monotonic() - begin:.1f} s at {address}/ (API: {address}/docs)", flush=True)

    asyncio.run(serve(config, ready))
    print("lumos: stopped; finished videos are kept", file=sys.stderr)
