"""Videos as the server knows them, and on disk: a folder each, kept for a set time, whole after a kill at any moment.

DATA/.lumos-serve marks the folder as a server's, locks it, and names the temporary folder; DATA/videos/ID/ holds record.json and
FILES; DATA/temporary_*/ holds uploads and bodies on their way in. A record is written under another name and renamed. After a
restart finished results are there, and what was waiting or running is a failure that says so. Nothing is ever deleted but files
that this module names itself.
"""

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from pydantic import TypeAdapter

from lumos.files import PARTIAL
from lumos.serving.errors import log
from lumos.serving.request import VideoRequest

MARKER = ".lumos-serve"
RECORD = "record.json"
START = "start_{}.safetensors"  # frames that are given to a video that is not finished, with the number of the first
FILES = ("video.mp4", "video.gif", "video.png", "thumbnail.png")  # of a completed video
# what a server writes into a video's folder, also half written; whatever else lies there is not ours to delete
LARGE_FILES = ("large.mp4", "large.gif", "large.png")  # of one that somebody wanted larger, until the server stops
_NAMES = "|".join(re.escape(name) for name in (RECORD, *FILES, *LARGE_FILES))
OURS = re.compile(rf"({_NAMES})|start(_\d+)?\.safetensors|\.({_NAMES}){PARTIAL}")
FIRST_HOUR = 3600.0  # a machine may start with a wrong clock; until it can have been set, no video is too old


@dataclass
class Video:
    """A video's whole life, as it is kept on disk. `client` is a digest, never an address or a name."""

    id: str
    client: str
    model: str
    request: VideoRequest
    created_at: float  # not rounded, as many begin in the same second
    status: Literal["queued", "in_progress", "completed", "failed"] = "queued"
    progress: int = 0
    completed_at: int | None = None
    expires_at: int | None = None
    seconds_taken: float | None = None
    source: str | None = None  # the video that it continues
    error: dict[str, str] | None = None
    bytes: int = 0  # of its files

    @property
    def is_finished(self) -> bool:
        return self.status in ("completed", "failed")

    def fail(self, code: str, message: str) -> None:
        self.status, self.error = "failed", {"code": code, "message": message}

    def document(self, position: int | None = None) -> dict[str, Any]:
        """What a client sees, in the words of OpenAI's video API where it has one. `position`: how many wait before it."""
        made = self.request
        own = ("id", "model", "status", "progress", "completed_at", "expires_at", "seconds_taken", "error")
        asked = ("prompt", "frames", "fps", "seed", "steps", "guidance", "temperature")
        return {
            "object": "video",
            **{name: getattr(self, name) for name in own},
            **{name: getattr(made, name) for name in asked},
            "created_at": int(self.created_at),
            "size": f"{made.width}x{made.height}",
            "seconds": f"{made.frames / made.fps:.3f}".rstrip("0").rstrip("."),
            "given_frames": made.given,
            "keyframes": sorted(made.keyframes),
            "note": made.note or None,
            "remixed_from_video_id": self.source,
            "queue_position": position,
        }


RECORDS = TypeAdapter(Video)


def new_id(kind: Literal["video", "upload", "session"]) -> str:
    """A name that nobody can guess: kind_ and 32 hexadecimal digits."""
    return f"{kind}_{secrets.token_hex(16)}"


class Store:
    """Every record in memory (they are small), every file on disk. Not thread-safe: it belongs to the event loop."""

    def __init__(self, folder: Path, keep_hours: float = 24.0, keep_gb: float = 2.0) -> None:
        self.keep_seconds, self.keep_bytes = 3600 * keep_hours, 1e9 * keep_gb
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.lock, self.temporary = _lock(folder)
        self.videos, self.uploads, self.scratch = folder / "videos", self.temporary / "uploads", self.temporary / "scratch"
        for path in (self.videos, self.uploads, self.scratch):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._started, self._begin = time.time(), time.monotonic()
        found = [video for path in self.videos.iterdir() if (video := _read_record(path))]
        self.known = {video.id: video for video in sorted(found, key=lambda video: video.created_at)}  # the oldest first
        for video in found:
            self._bring_to_an_end(video)

    def close(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.lock.close()

    def now(self) -> float:
        """The time that videos age by: the clock's, but a clock set forward makes nothing old.

        It is 0 in a server's first hour, in which only `keep_bytes` counts.
        """
        running = time.monotonic() - self._begin
        return min(time.time(), self._started + running) if running >= FIRST_HOUR else 0.0

    def folder(self, id: str) -> Path:
        """The folder of a video that is known. KeyError for any other name, so that no path is made of a stranger's words."""
        return self.videos / self.known[id].id

    def add(self, video: Video, starts: Mapping[int, Path] | None = None) -> None:
        """Keep a new video, and move the files of its given frames to it. OSError when the disk is full: nothing is kept then."""
        folder = self.videos / video.id
        try:
            folder.mkdir(mode=0o700)
            for at, file in (starts or {}).items():
                os.replace(file, folder / START.format(at))
            self.save(video)
        except OSError:
            _remove(folder)
            raise
        self.known[video.id] = video

    def save(self, video: Video) -> None:
        """Write the record; when the video is finished, also note its size and the time of its end of life."""
        folder = self.videos / video.id
        if video.is_finished:
            if video.completed_at is None:
                video.completed_at = int(time.time())
                video.expires_at = video.completed_at + int(self.keep_seconds) if self.keep_seconds < 1e12 else None
            self.tidy(video.id)
            video.bytes = sum((folder / name).stat().st_size for name in FILES if (folder / name).is_file())
        partial = folder / f".{RECORD}.partial"
        partial.write_bytes(RECORDS.dump_json(video))  # not forced to the disk, which may take long
        os.replace(partial, folder / RECORD)

    def delete(self, id: str) -> None:
        """Forget a video and its files; nothing happens for an unknown one."""
        self.known.pop(id, None)
        self.tidy(id)

    def tidy(self, id: str) -> None:
        """Remove what is no part of a finished video, or what a deleted one has left behind."""
        video = self.known.get(id)
        files = FILES if video and video.status == "completed" else ()
        _remove(self.videos / id, keep=(RECORD, *files) if video else ())

    def expire(self, now: float) -> list[str]:
        """Delete what is too old, then the oldest until the rest fits; returns the ids. What is not finished stays."""
        kept = sorted((each for each in self.known.values() if each.is_finished), key=lambda each: each.completed_at or 0)
        gone = [video.id for video in kept if video.expires_at is not None and video.expires_at <= now]
        kept = [video for video in kept if video.id not in gone]
        while sum(video.bytes for video in kept) > self.keep_bytes:
            gone.append(kept.pop(0).id)
        for id in gone:
            self.delete(id)
        return gone

    def _bring_to_an_end(self, video: Video) -> None:
        """What the server before has left."""
        if not video.is_finished:
            video.fail("server_stopped", "the server stopped before this video was finished; send it again")
        elif video.status == "completed" and not all((self.videos / video.id / name).is_file() for name in FILES):
            video.fail("files_missing", "the files of this video are gone; make it again")
        try:
            self.save(video)
        except OSError as error:  # it is as finished without
            log.error("cannot save %s: %s", video.id, error.strerror)


def _read_record(folder: Path) -> Video | None:
    """The record in a folder that has its name, written by this version or an earlier one."""
    with suppress(OSError, ValueError):
        video = RECORDS.validate_json((folder / RECORD).read_bytes())
        if video.id == folder.name:
            return video
    log.warning("leaving %s alone: it holds no record of a video", folder)
    return None


def _remove(folder: Path, keep: tuple[str, ...] = ()) -> None:
    """Delete a server's own files in a video's folder but for `keep`, and the folder once nothing is left in it."""
    try:
        for path in list(folder.iterdir()):
            if OURS.fullmatch(path.name) and path.name not in keep:
                path.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        log.warning("cannot clear %s (%s)", folder, error.strerror)


def _lock(folder: Path) -> tuple[TextIO, Path]:
    """Hold the folder for this process, since two servers would delete each other's files, and name its temporary folder.

    The marker names the temporary folder of the server before, which a kill has left; it is deleted. ValueError for a folder that
    another server holds, and for one that is not a server's: nothing in that is touched.
    """
    path = folder / MARKER
    if not path.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files that are no server's; choose an empty or a new folder with --data")
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held open as long as the server lives
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(f"{folder} is used by another server; stop it, or choose another folder with --data") from None
    file.seek(0)
    before = file.read().strip()
    if re.fullmatch("temporary_[0-9a-f]{32}", before):
        shutil.rmtree(folder / before, ignore_errors=True)
    elif before:
        file.close()
        raise ValueError(f"{path} was not written by lumos; choose another folder with --data")
    temporary = folder / f"temporary_{secrets.token_hex(16)}"
    file.truncate(0)
    file.write(temporary.name)
    file.flush()
    return file, temporary
