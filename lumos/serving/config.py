"""What a server is set to: where it listens, what it makes, and how much of everything it allows.

No torch here or in anything that the HTTP process imports: the model lives in a process of its own (worker.py).
"""

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

FEWEST_KEY_LETTERS = 12


@dataclass(frozen=True)
class ServeConfig:
    """Address and key; weights and device; limits of requests, uploads, queue and stored results."""

    data: Path  # folder for finished videos
    host: str = "127.0.0.1"  # address to listen on; any but this machine's own needs a key or --no-auth
    port: int = 7860  # port to listen on; 0 takes a free one
    public_url: str | None = None  # address under which a proxy offers this server: https://NAME
    api_key: str | None = None  # what every request must carry
    no_auth: bool = False  # let everybody who can reach the address in without a key
    weights: str = "tiny"  # name of weights in the package, or a folder
    device: str | None = None  # where to compute: cpu, cuda, cuda:1
    workers: int = 1  # processes that make videos side by side, each with the model; for GPUs --gpus
    gpus: str | None = None  # GPUs that make videos side by side: how many of the machine's, or all
    batch: int = 1  # requests made in one pass: those that agree in all but prompt and seed
    queue: int = 32  # requests that may wait; more are told to come back later
    queue_per_client: int = 8  # requests of one client that may wait
    sessions: int = 20  # live sessions at a time
    sessions_per_client: int = 4  # of one client
    session_idle: float = 120.0  # seconds after which a session that nobody reads or tells anything ends
    max_frames: int = 129  # longest video in frames, 1 + 4k
    size_factor: float = 4.0  # largest picture, in multiples of the model's own pixels
    max_steps: int = 100  # most denoising steps of a latent frame
    time_limit: float = 600.0  # seconds that making one video or batch may take
    keep_seconds: float = 24 * 3600.0  # seconds for which finished videos are kept
    keep_bytes: float = 2**31  # bytes that finished videos may take
    upload_bytes: int = 32 * 2**20  # largest upload in bytes
    upload_pixels: int = 40_000_000  # most pixels of one frame of an upload
    upload_seconds: float = 60.0  # seconds for a body to arrive
    header_seconds: float = 10.0  # seconds for the first lines of a request to arrive
    decode_seconds: float = 20.0  # seconds of decoding one upload
    decode_bytes: int = 3 * 2**29  # bytes of memory for decoding, above what Python itself takes
    restart_pause: float = 1.0  # seconds before a dead worker is replaced, doubled with every death in a row
    log_prompts: bool = False  # write prompts into the log

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be 0 to 65535, got {self.port}; 7860 is usual, 0 takes a free one")
        if self.gpus is not None and not re.fullmatch(r"all|[1-9]\d{0,2}", self.gpus):
            raise ValueError(f"gpus must be all or a number of GPUs, got {self.gpus!r}")
        if self.gpus is not None and (self.device or self.workers != 1):
            raise ValueError("give gpus without device and workers: each GPU has a worker of its own")
        counts = ("workers", "batch", "queue", "queue_per_client", "sessions", "sessions_per_client", "max_steps")
        for name in (*counts, "time_limit", "keep_seconds", "upload_bytes"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("keep_bytes", "session_idle"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
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
    def weights_name(self) -> str:
        """What clients see as the model: a name, never a path."""
        return Path(self.weights).name or "lumos"

    @property
    def public_host(self) -> str:
        """Name and port of the public address as a Host header has them, in lower case; empty without one."""
        return urlsplit(self.public_url or "").netloc.lower()

    def per_address(self, room: int, per_client: int) -> int:
        """How much of `room` one address may take: half, or all where nobody else can ask."""
        return room if self.is_local and not self.public_url else max(per_client, (room + 1) // 2)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


def usual_data_folder() -> Path:
    """Where results are kept unless the user says otherwise: $XDG_STATE_HOME/lumos/serve, or ~/.local/state/lumos/serve."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lumos" / "serve"
