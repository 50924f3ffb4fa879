"""Files that clients send: kept for an hour under a name of their own, decoded where they can do no harm, and looked up again.

A file is never opened by this process. Its own name, which a stranger chose, is not used for anything.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lumos.serving.config import ServeConfig
from lumos.serving.decode import PREVIEW, Decoded, decode
from lumos.serving.store import START, Store, new_id

KEEP_SECONDS = 3600
ROOM = 2**30  # bytes of all uploads
Size = tuple[int, int, float]  # height, width, fps


@dataclass(frozen=True)
class Upload:
    """A file that was sent: where it lies, what it is, and who sent it when."""

    id: str
    file: Path
    decoded: Decoded
    preview: bytes
    address: str
    created: float
    bytes: int


class Uploads:
    """Every upload of the last hour, at most 1 GiB of them: who has most there loses the oldest first."""

    def __init__(self, store: Store, config: ServeConfig) -> None:
        self.folder, self.scratch, self.config = store.uploads, store.scratch, config
        self.known: dict[str, Upload] = {}
        self._places = asyncio.Semaphore(2)

    async def add(self, source: BinaryIO, size: Size, address: str) -> Upload:
        """Keep a file and look into it. ValueError in words for one that cannot be used."""
        self._expire()
        async with self.decoded(source, size) as (decoded, start):
            id, preview = new_id("upload"), (start.parent / PREVIEW).read_bytes()
            file = (start.parent / "file").rename(self.folder / id)
        self.known[id] = Upload(id, file, decoded, preview, address, time.monotonic(), file.stat().st_size)
        return self.known[id]

    @asynccontextmanager
    async def decoded(self, source: Path | BinaryIO, size: Size) -> AsyncIterator[tuple[Decoded, Path]]:
        """What a file is that a video starts from, and the file of its frames, which is there inside only."""
        place = Path(tempfile.mkdtemp(dir=self.scratch))
        try:
            most = self.config.upload_bytes
            file = source if isinstance(source, Path) else await asyncio.to_thread(_copy, source, place / "file", most)
            yield await decode(file, place, *size, self.config, self._places), place / START
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _expire(self) -> None:
        for upload in list(self.known.values()):
            if upload.created + KEEP_SECONDS < time.monotonic():
                self._remove(upload)
        while sum(upload.bytes for upload in self.known.values()) > ROOM:
            held: Counter[str] = Counter()
            for upload in self.known.values():
                held[upload.address] += upload.bytes
            self._remove(next(one for one in self.known.values() if one.address == held.most_common(1)[0][0]))

    def _remove(self, upload: Upload) -> None:
        del self.known[upload.id]
        upload.file.unlink(missing_ok=True)


def _copy(source: BinaryIO, file: Path, most: int) -> Path:
    """Write an upload to the disk. ValueError for one that is too large or empty."""
    with open(file, "wb") as target:
        with suppress(OSError):
            source.seek(0)
        shutil.copyfileobj(source, target)
        if target.tell() > most:
            raise ValueError(f"a file may have at most {most // 2**20} MiB, got {target.tell() / 2**20:.1f}; send a smaller one")
        if target.tell() == 0:
            raise ValueError("the file is empty; send it again")
    return file
