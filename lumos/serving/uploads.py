"""Files that clients send: kept for an hour under a name of their own, decoded where they can do no harm, and looked up again.

A file is never opened by this process. Its own name, which a stranger chose, is not used for anything.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lumos.serving.config import ServeConfig
from lumos.serving.decode import PREVIEW, Decoded, Decoder
from lumos.serving.record import new_id
from lumos.serving.store import START

KEEP_SECONDS = 3600
MOST_BYTES = 2**30
Size = tuple[int, int, float]  # height, width, fps


@dataclass(frozen=True)
class Upload:
    id: str
    file: Path
    decoded: Decoded
    preview: bytes
    created: float
    bytes: int


class Uploads:
    """Every upload of the last hour, at most 1 GiB of them."""

    def __init__(self, folder: Path, scratch: Path, config: ServeConfig) -> None:
        self.folder, self.scratch, self.config = folder, scratch, config
        self.decoder = Decoder(config)
        self.known: dict[str, Upload] = {}

    async def add(self, source: BinaryIO, size: Size) -> Upload:
        """Keep a file and look into it. ValueError in words for one that cannot be used."""
        self._expire()
        id = new_id("upload")
        place = self.folder / id
        place.mkdir(mode=0o700)
        try:
            file = copy(source, place / "file", self.config.upload_bytes)
            decoded = await self.decoder.decode(file, place, *size)
            (place / START).unlink()
            preview = (place / PREVIEW).read_bytes()
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        upload = Upload(id, file, decoded, preview, time.time(), file.stat().st_size)
        self.known[id] = upload
        return upload

    async def start(self, source: Path | BinaryIO, size: Size) -> tuple[Decoded, Path, Callable[[], None]]:
        """Decode a file as the start of a video: what it is, its frames' file, and how to remove that."""
        place = Path(tempfile.mkdtemp(dir=self.scratch))

        def remove() -> None:
            shutil.rmtree(place, ignore_errors=True)

        try:
            file = source if isinstance(source, Path) else copy(source, place / "file", self.config.upload_bytes)
            decoded = await self.decoder.decode(file, place, *size)
        except BaseException:
            remove()
            raise
        return decoded, place / START, remove

    def _expire(self) -> None:
        now, total = time.time(), sum(upload.bytes for upload in self.known.values())
        for id, upload in list(self.known.items()):  # oldest first
            if upload.created + KEEP_SECONDS < now or total > MOST_BYTES:
                total -= upload.bytes
                del self.known[id]
                shutil.rmtree(self.folder / id, ignore_errors=True)


def copy(source: BinaryIO, file: Path, most: int) -> Path:
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
