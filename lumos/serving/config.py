"""What a server is set to: where it listens, what it makes, and how much of everything it allows.

No torch here or in anything that the HTTP process imports: the model lives in a process of its own (worker.py).
"""

import ipaddress
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from lumos.config import PACKAGED, Range, Scale, Whole

FEWEST_KEY_LETTERS = 12


@dataclass(frozen=True)
class ServeConfig:
    """Address and key; weights and device; limits of requests, uploads, queue and stored results."""

    # folder for finished videos: new, empty or an earlier server's (default: ~/.local/state/lumos/serve)
    data: Path | None = None
    host: str = "127.0.0.1"  # address to listen on; any but this machine's own needs a key or --no-auth
    port: Annotated[int, Range(0, 65535)] = 7860  # port to listen on; 0 takes a free one
    public_url: str | None = None  # address under which a proxy offers this server: https://NAME
    # key that every request must carry; the environment variable LUMOS_API_KEY is safer, as nobody sees it
    api_key: str | None = None
    no_auth: bool = False  # let everybody who can reach the address in without a key
    weights: str = PACKAGED  # name of weights in the package, or a folder
    device: str | None = None  # where to compute: cpu, cuda, cuda:1 (default: cuda if there is one, else cpu)
    workers: Whole = 1  # processes that make videos side by side, each with the model; for GPUs --gpus
    gpus: str | None = None  # GPUs that make videos side by side: how many of the machine's, or all
    batch: Whole = 1  # requests made in one pass: those that agree in all but prompt and seed
    queue: Whole = 32  # requests that may wait; more are told to come back later
    queue_per_client: Whole = 8  # requests of one client that may wait
    sessions: Whole = 20  # live sessions at a time
    sessions_per_client: Whole = 4  # live sessions of one client
    session_idle: Annotated[float, Range(0, 1e9)] = 120.0  # seconds without a reader or a word after which a session ends
    max_frames: Annotated[int, Range(1, 10**6 + 1)] = 129  # longest video in frames, 1 + 4k
    size_factor: Annotated[float, Range(1e-3, 1e3)] = 4.0  # largest picture, in multiples of the model's own pixels
    max_steps: Whole = 100  # most denoising steps of a latent frame
    time_limit: Annotated[float, Range(1, 1e9)] = 600.0  # seconds that making one video or batch may take
    keep_hours: Annotated[float, Range(1e-3, math.inf)] = 24.0  # hours for which finished videos are kept; inf keeps them
    keep_gb: Annotated[float, Range(0, math.inf)] = 2.0  # gigabytes that finished videos may take; the oldest go first
    upload_mb: Whole = 32  # largest upload in megabytes
    upload_pixels: Whole = 40_000_000  # most pixels of one frame of an upload
    upload_seconds: Scale = 60.0  # seconds for a body to arrive
    header_seconds: Scale = 10.0  # seconds for the first lines of a request to arrive
    decode_seconds: Scale = 20.0  # seconds of decoding one upload
    decode_bytes: Annotated[int, Range(2**20, 2**50)] = 3 * 2**29  # bytes of memory for decoding, above what Python itself takes
    # seconds before a dead worker is replaced, doubled with every death in a row
    restart_pause: Annotated[float, Range(0, 1e6)] = 1.0
    log_prompts: bool = False  # write prompts into the log

    def __post_init__(self) -> None:
        if self.gpus is not None and not re.fullmatch(r"all|[1-9]\d{0,2}", self.gpus):
            raise ValueError(f"gpus must be all or a number of GPUs, got {self.gpus!r}")
        if self.gpus is not None and (self.device or self.workers != 1):
            raise ValueError("give gpus without device and workers: each GPU has a worker of its own")
        if self.max_frames < 1 or self.max_frames % 4 != 1:
            raise ValueError(f"max_frames must be 1 + 4k, got {self.max_frames}; use {max(1, self.max_frames // 4 * 4 + 1)}")
        self._check_access()

    def _check_access(self) -> None:
        key, url = self.api_key, urlsplit(self.public_url or "https://NAME")
        if url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/") or url.query:
            raise ValueError(f"public_url must be https://NAME, without a path, got {self.public_url!r}")
        if key is None and not self.no_auth and (self.public_url or not self.is_local):
            where = f"public_url {self.public_url}" if self.public_url else f"host {self.host}"
            rule = "can be reached from other machines and needs --api-key KEY (or LUMOS_API_KEY)"
            raise ValueError(f"{where} {rule}; add --no-auth to let everybody in")
        if key is not None and self.no_auth:
            raise ValueError("give either a key or no_auth, got both")
        if key is not None and not re.fullmatch(r"[!-~]([ -~]*[!-~])?", key):
            raise ValueError("the API key must be ASCII without spaces at its ends, as a header carries it")
        if key is not None and len(key) < FEWEST_KEY_LETTERS:
            make = "make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
            raise ValueError(f"the API key must have at least {FEWEST_KEY_LETTERS} letters, got {len(key)}; {make}")

    @property
    def data_folder(self) -> Path:
        """Where results are kept: $XDG_STATE_HOME/lumos/serve, or ~/.local/state/lumos/serve, unless the user says otherwise."""
        return self.data or Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lumos" / "serve"

    @property
    def weights_name(self) -> str:
        """What clients see as the model: a name, never a path."""
        return Path(self.weights).name or "lumos"

    def per_address(self, room: int, per_client: int) -> int:
        """How much of `room` one address may take: half, or all where nobody else can ask."""
        return room if self.is_local and not self.public_url else max(per_client, (room + 1) // 2)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        with suppress(ValueError):
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        return self.host.lower() == "localhost"
