"""Files that clients send: kept for an hour under a name of their own, decoded where they can do no harm, and looked up again.

A file is never opened by this process. Its own name, which a stranger chose, is not used for anything.
"""

import asyncio
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lumos.serving.config import ServeConfig
from lumos.serving.processes import Pipe, new_process
from lumos.serving.request import Decoded
from lumos.serving.store import START, Store, new_id

KEEP_SECONDS = 3600
ROOM = 2**30  # bytes of all uploads
PREVIEW = "preview.webp"
Format = tuple[int, int, float]  # height, width, fps


class Upload(NamedTuple):
    """A file that was sent: where it lies, and who sent it when."""

    file: Path
    address: str
    created: float
    bytes: int


class Uploads:
    """Every upload of the last hour, at most 1 GiB of them: who has most there loses the oldest first."""

    def __init__(self, store: Store, config: ServeConfig) -> None:
        self.folder, self.scratch, self.config = store.uploads, store.scratch, config
        self.known: dict[str, Upload] = {}
        self._places = asyncio.Semaphore(2)  # files that are decoded at a time; others wait

    async def add(self, source: BinaryIO, size: Format, address: str) -> tuple[str, Decoded, bytes]:
        """Keep a file: its id, what it is, and a small picture. ValueError in words for one that cannot be used."""
        self.make_room()
        async with self.decoded(source, size) as (decoded, start):
            id, preview = new_id("upload"), (start.parent / PREVIEW).read_bytes()
            file = (start.parent / "file").rename(self.folder / id)
        self.known[id] = Upload(file, address, time.monotonic(), file.stat().st_size)
        return id, decoded, preview

    @asynccontextmanager
    async def decoded(self, source: Path | BinaryIO, size: Format) -> AsyncIterator[tuple[Decoded, Path]]:
        """What a file is that a video starts from, and the file of its frames, which is there inside only."""
        place = Path(tempfile.mkdtemp(dir=self.scratch))
        try:
            async with self._places:
                found = await asyncio.to_thread(self._decode, source, place, size)
            yield found, place / START.format(0)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _decode(self, source: Path | BinaryIO, folder: Path, size: Format) -> Decoded:
        """Have START and PREVIEW written into `folder`. ValueError in words for what cannot be read."""
        file = source if isinstance(source, Path) else folder / "file"
        if not isinstance(source, Path):
            with open(file, "wb") as target:  # at most as much as access.py lets through
                shutil.copyfileobj(source, target)
        here, there = Pipe(duplex=False)  # what decodes a stranger's file is told nothing
        process = new_process("lumos.serving.decode", there, file, folder, size, self.config)
        process.start()
        there.close()
        seconds = self.config.decode_seconds
        answer: Decoded | Exception = ValueError(f"the file took more than {seconds:g} s to decode; use a smaller or shorter one")
        try:
            if here.poll(seconds * 1.5):
                answer = here.recv()
        except EOFError:
            process.join(5)
            if process.exitcode not in (-signal.SIGXCPU, -signal.SIGKILL):
                answer = ValueError("the file could not be decoded; convert it to .png or .mp4")
        finally:
            process.kill()
            process.join(5)
            process.close()
            here.close()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def make_room(self) -> None:
        """Drop what is older than KEEP_SECONDS, and the oldest of whoever holds most while all take more than ROOM."""
        held: Counter[str] = Counter()
        for id, upload in list(self.known.items()):
            held[upload.address] += upload.bytes
            if upload.created + KEEP_SECONDS < time.monotonic():
                self._remove(id, held)
        while held.total() > ROOM:
            [(address, _)] = held.most_common(1)
            self._remove(next(id for id, upload in self.known.items() if upload.address == address), held)

    def _remove(self, id: str, held: Counter[str]) -> None:
        upload = self.known.pop(id)
        held[upload.address] -= upload.bytes
        upload.file.unlink(missing_ok=True)
