"""What a server is set to: where it listens, what it makes, and how much of everything it allows.

No torch here or in anything that the HTTP process imports: the model lives in a process of its own (worker.py).
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

FEWEST_KEY_LETTERS = 12


@dataclass(frozen=True)
class ServeConfig:
    """Address and key; weights and device; limits of requests, uploads, queue and stored results.

    Sizes are in bytes or pixels, times in seconds. `pixels` of a result are at most `size_factor` times the model's own.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 7860
    api_key: str | None = None
    no_auth: bool = False
    weights: str = "tiny"
    device: str | None = None
    batch: int = 1  # requests made in one pass
    queue: int = 32  # requests that wait
    queue_per_client: int = 8
    max_frames: int = 129
    size_factor: float = 4.0
    max_steps: int = 100
    time_limit: float = 600.0  # of making one batch
    keep_seconds: float = 24 * 3600.0
    keep_bytes: int = 2**31
    upload_bytes: int = 32 * 2**20
    upload_pixels: int = 40_000_000
    upload_seconds: float = 60.0  # for a body to arrive
    decode_seconds: float = 20.0
    decode_bytes: int = 3 * 2**29  # memory of decoding, above what Python itself takes
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be 0 to 65535, got {self.port}; 7860 is usual, 0 takes a free one")
        at_least_one = ("batch", "queue", "queue_per_client", "max_steps", "time_limit", "keep_seconds", "upload_bytes")
        for name in at_least_one:
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}; leave it out for the usual one")
        if self.max_frames < 1 or self.max_frames % 4 != 1:
            raise ValueError(f"max_frames must be 1 + 4k, got {self.max_frames}; use {max(1, self.max_frames // 4 * 4 + 1)}")
        if self.api_key is not None and self.no_auth:
            raise ValueError("give either a key or no_auth, got both; leave one out")
        if self.api_key is not None and len(self.api_key) < FEWEST_KEY_LETTERS:
            raise ValueError(
                f"the API key must have at least {FEWEST_KEY_LETTERS} letters, got {len(self.api_key)}; "
                "make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        if not self.is_local and self.api_key is None and not self.no_auth:
            raise ValueError(
                f"host {self.host} can be reached from other machines and needs --api-key KEY (or LUMOS_API_KEY); "
                "add --no-auth to let everybody in"
            )

    @property
    def weights_name(self) -> str:
        """What clients see as the model: a name, never a path."""
        return Path(self.weights).name or "lumos"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


def usual_data_folder() -> Path:
    """Where results are kept unless the user says otherwise: $XDG_STATE_HOME/lumos/serve, or ~/.local/state/lumos/serve."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lumos" / "serve"
