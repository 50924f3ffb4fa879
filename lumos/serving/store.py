"""Records and their files on disk: one folder a video, kept for a set time and size, whole after a kill at any moment.

DATA/lock; DATA/videos/ID/ with record.json and video.mp4, video.gif, video.png, thumbnail.png; DATA/uploads/ID/ with what was
uploaded; DATA/scratch for bodies on their way in. A record is written under another name and renamed. After a restart finished
results are there, and what was waiting or running is a failure that says so.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from lumos.serving.record import Record, from_json

log = logging.getLogger("lumos.serving")
RECORD = "record.json"
START = "start.safetensors"


class Store:
    """Every record in memory (they are small), every file on disk. Not thread-safe: it belongs to the event loop."""

    def __init__(self, folder: Path, keep_seconds: float, keep_bytes: int) -> None:
        self.keep_seconds, self.keep_bytes = keep_seconds, keep_bytes
        self.videos, self.uploads, self.scratch = folder / "videos", folder / "uploads", folder / "scratch"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.lock = _lock(folder / "lock")
        for path in (self.uploads, self.scratch):  # of no use to anybody after a restart
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.videos, self.uploads, self.scratch):
            path.mkdir(exist_ok=True, mode=0o700)
        self.records: dict[str, Record] = {}
        self.sizes: dict[str, int] = {}
        for path in sorted(self.videos.iterdir()):
            self._recover(path)

    def close(self) -> None:
        self.lock.close()

    def folder(self, id: str) -> Path:
        """The folder of a video that is known. KeyError for any other name, so that no path is made of a stranger's words."""
        return self.videos / self.records[id].id

    def add(self, record: Record) -> Path:
        """Keep a new record; returns its folder, to which a start may be moved before it runs."""
        folder = self.videos / record.id
        folder.mkdir(mode=0o700)
        self.records[record.id] = record
        self.save(record)
        return folder

    def save(self, record: Record) -> None:
        """Write the record; when it is over, also note its size and the time of its end of life."""
        folder = self.videos / record.id
        if record.is_over:
            record.completed_at = record.completed_at or int(time.time())
            record.expires_at = record.completed_at + int(self.keep_seconds)
            (folder / START).unlink(missing_ok=True)
            self.sizes[record.id] = sum(path.stat().st_size for path in folder.iterdir())
        partial = folder / f".{RECORD}.partial"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(record.as_json(), file)  # not forced to the disk, which may take long: a kill keeps it, a power cut may not
        os.replace(partial, folder / RECORD)

    def delete(self, id: str) -> None:
        """Forget a record and its files; nothing happens for an unknown one."""
        if self.records.pop(id, None):
            self.sizes.pop(id, None)
            shutil.rmtree(self.videos / id, ignore_errors=True)

    def tidy(self, id: str) -> None:
        """Remove what a video that has failed or is gone has left behind."""
        record = self.records.get(id)
        if record is None:
            shutil.rmtree(self.videos / id, ignore_errors=True)
        elif record.status == "failed":
            for path in (self.videos / id).iterdir():
                if path.name != RECORD:
                    path.unlink(missing_ok=True)

    def expire(self, now: float) -> list[str]:
        """Delete what is too old, then the oldest until the rest fits; returns the names. What is not over stays."""
        over = sorted((r for r in self.records.values() if r.is_over), key=lambda r: (r.completed_at or 0, r.created_at))
        gone = [r.id for r in over if (r.expires_at or 0) <= now]
        kept = [r.id for r in over if (r.expires_at or 0) > now]
        total = sum(self.sizes.get(id, 0) for id in kept)
        while kept and total > self.keep_bytes:
            oldest = kept.pop(0)
            total -= self.sizes.get(oldest, 0)
            gone.append(oldest)
        for id in gone:
            self.delete(id)
        return gone

    def _recover(self, folder: Path) -> None:
        try:
            record = from_json(json.loads((folder / RECORD).read_text("utf-8")))
            if record.id != folder.name:
                raise ValueError("its name is another")
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("removing %s, which holds no readable record (%s)", folder.name, type(error).__name__)
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # not a folder at all
                folder.unlink()
            return
        if record.status == "completed" and not all((folder / name).is_file() for name in record.files):
            record.status = "failed"
            record.error = {"code": "files_missing", "message": "the files of this video are gone; make it again"}
        keep = set(record.files) | {RECORD} if record.status == "completed" else {RECORD}
        for path in folder.iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)
        self.records[record.id] = record
        if record.is_over:
            self.sizes[record.id] = sum(path.stat().st_size for path in folder.iterdir())
        else:
            record.status = "failed"
            record.error = {
                "code": "server_stopped",
                "message": "the server stopped before this video was finished; send it again",
            }
            self.save(record)


def _lock(path: Path) -> TextIO:
    """Hold the folder for this process: two servers would delete each other's files."""
    file = open(path, "w")  # noqa: SIM115 - held open as long as the server lives
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(f"{path.parent} is used by another server; stop it, or choose another folder with --data") from None
    return file
