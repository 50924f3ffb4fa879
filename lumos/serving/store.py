"""Records and their files on disk: one folder per video, kept for a set time and size, whole after a kill at any moment.

DATA/.lumos-serve marks the folder as a server's, locks it, and names the temporary folder; DATA/videos/ID/ holds record.json,
video.mp4, video.gif, video.png and thumbnail.png; DATA/temporary_*/ holds uploads and bodies on their way in. A record is written
under another name and renamed. After a restart finished results are there, and what was waiting or running is a failure that
says so. Nothing is ever deleted but files that this module names itself.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import TextIO

from lumos.serving.record import Record, from_json

log = logging.getLogger("lumos.serving")
MARKER = ".lumos-serve"
RECORD = "record.json"
START = "start.safetensors"
# what a server writes into a video's folder, also half written; whatever else lies there is not ours to delete
OURS = re.compile(r"\.?(record\.json|start\.safetensors|(video|thumbnail)\.(mp4|gif|webp|png))(\.\d+)?(\.partial)?")
FIRST_HOUR = 3600.0  # a machine may start with a wrong clock; until it can have been set, no video is too old


class Store:
    """Every record in memory (they are small), every file on disk. Not thread-safe: it belongs to the event loop."""

    def __init__(self, folder: Path, keep_seconds: float, keep_bytes: int) -> None:
        self.keep_seconds, self.keep_bytes = keep_seconds, keep_bytes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.lock, self.temporary = _lock(folder)
        self.videos, self.uploads, self.scratch = folder / "videos", self.temporary / "uploads", self.temporary / "scratch"
        for path in (self.videos, self.uploads, self.scratch):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._started, self._begin = time.time(), time.monotonic()
        self.records: dict[str, Record] = {}
        self.sizes: dict[str, int] = {}
        for path in sorted(self.videos.iterdir()):
            self._recover(path)

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
            _remove(self.videos / id)

    def tidy(self, id: str) -> None:
        """Remove what a video that has failed or is gone has left behind."""
        record = self.records.get(id)
        if record is None:
            _remove(self.videos / id)
        elif record.status == "failed":
            _remove(self.videos / id, keep=(RECORD,))

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
        record = _read(folder)
        if record is None:
            log.warning("leaving %s alone: it holds no record of a video", folder)
            return
        if record.status == "completed" and not all((folder / name).is_file() for name in record.files):
            record.status = "failed"
            record.error = {"code": "files_missing", "message": "the files of this video are gone; make it again"}
        _remove(folder, keep=(RECORD, *(record.files if record.status == "completed" else ())))
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


def _read(folder: Path) -> Record | None:
    """The record in a folder that has its name, if there is one."""
    try:
        record = from_json(json.loads((folder / RECORD).read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if record.id == folder.name else None


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
    if not path.exists() and not _is_ours(folder):
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


def _is_ours(folder: Path) -> bool:
    """Whether a folder without a marker is empty, or was left by a version that set none: nothing but records and leftovers."""
    names = {path.name for path in folder.iterdir()}
    lock = folder / "lock"
    if not names <= {"lock", "videos", "uploads", "scratch"} or (lock.exists() and (not lock.is_file() or lock.stat().st_size)):
        return False
    inside = {name: list((folder / name).iterdir()) for name in names - {"lock"} if (folder / name).is_dir()}
    return (
        len(inside) == len(names - {"lock"})
        and all(_read(path) is not None for path in inside.get("videos", []))
        and all(re.fullmatch("upload_[0-9a-f]{32}", path.name) for path in inside.get("uploads", []))
        and not inside.get("scratch")
    )
