"""One video as the server knows it: what was asked, how far it is, what came of it; and the JSON that clients see.

The document has the fields of OpenAI's video API, and some of our own beside them (frames, fps, seed, steps, ...).
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["queued", "in_progress", "completed", "failed"]


@dataclass(frozen=True)
class Asked:
    """A checked request, complete: every default filled in."""

    prompt: str
    frames: int
    height: int
    width: int
    fps: float
    seed: int
    seed_given: bool
    steps: int
    guidance: float
    temperature: float
    given: int = 0  # frames at the beginning that come from an upload or another video
    note: str = ""  # what was done to them so that they fit

    def agrees(self, other: Asked, batches_repeat: bool) -> bool:
        """Whether both can be made in one pass: equal shape and sampler, nothing given, and no seed that would not repeat."""
        alike = ("frames", "height", "width", "fps", "steps", "guidance", "temperature")
        alone = self.given or other.given or ((self.seed_given or other.seed_given) and not batches_repeat)
        return not alone and all(getattr(self, name) == getattr(other, name) for name in alike)


@dataclass
class Record:
    """A video's whole life, as it is kept on disk. `client` is a digest, never an address or a name."""

    id: str
    client: str
    model: str
    asked: Asked
    created_at: int
    status: Status = "queued"
    progress: int = 0
    completed_at: int | None = None
    expires_at: int | None = None
    seconds_taken: float | None = None
    together: int = 1  # how many requests shared its batch
    batch_repeats: bool = False  # whether such a batch gives what its requests give alone
    source: str | None = None  # the video that it continues
    error: dict[str, str] | None = None
    files: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.status in ("completed", "failed")

    def document(self, position: int | None = None) -> dict[str, Any]:
        """What a client sees. `position`: how many wait before it."""
        asked = self.asked
        return {
            "id": self.id,
            "object": "video",
            "model": self.model,
            "status": self.status,
            "progress": self.progress,
            "created_at": self.created_at,
            "completed_at": self.completed_at,
            "expires_at": self.expires_at,
            "prompt": asked.prompt,
            "size": f"{asked.width}x{asked.height}",
            "seconds": f"{asked.frames / asked.fps:.3f}".rstrip("0").rstrip("."),
            "frames": asked.frames,
            "fps": asked.fps,
            "seed": asked.seed,
            "seed_repeats": self.together == 1 or self.batch_repeats,
            "steps": asked.steps,
            "guidance": asked.guidance,
            "temperature": asked.temperature,
            "given_frames": asked.given,
            "note": asked.note or None,
            "remixed_from_video_id": self.source,
            "queue_position": position,
            "seconds_taken": self.seconds_taken,
            "error": self.error,
        }

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(values: dict[str, Any]) -> Record:
    """A record as it was written. KeyError or TypeError for anything else."""
    return Record(**{**values, "asked": Asked(**values["asked"])})


def new_id(kind: Literal["video", "upload"]) -> str:
    """A name that nobody can guess: kind_ and 32 hexadecimal digits."""
    return f"{kind}_{secrets.token_hex(16)}"
