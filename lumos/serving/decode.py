"""An uploaded file -> its pixels, in a process of its own that may use so much memory and time and no more.

The process is forked from one that has loaded the libraries and holds nothing else. It writes start.safetensors (rgb_CFHW) and
a small picture; it answers in words. A file that crashes or stalls a decoder costs that process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import sys
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from lumos.serving.config import ServeConfig
from lumos.serving.store import START

# what the process that everything is forked from loads beforehand; loading starts no threads
PRELOAD = ["lumos.serving.worker", "lumos.media.video", "lumos.generate", "PIL.Image", "av", "safetensors.torch"]
PREVIEW = "preview.webp"
# How often one of torch's threads that waits for the others looks again before it sleeps. Unless told so, it hardly ever sleeps:
# a tenth faster on a quiet machine, but ten times slower beside anything that keeps a core busy.
SPINS = 1000


@dataclass(frozen=True)
class Decoded:
    """kind, frames kept (1 + 4k of them) and what was done to make them fit, in words."""

    kind: Literal["image", "video"]
    frames: int
    note: str


def processes() -> multiprocessing.context.ForkServerContext:
    """The way this server starts processes. Call `prepare` once before."""
    return multiprocessing.get_context("forkserver")


def prepare() -> None:
    """Start the process that the others are forked from. It loads torch, whose threads are told here how to wait."""
    processes().set_forkserver_preload(PRELOAD)
    settings = {} if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys() else {"GOMP_SPINCOUNT": str(SPINS)}
    os.environ.update(settings)
    try:
        forkserver.ensure_running()
    finally:
        for name in settings:
            del os.environ[name]


class Decoder:
    """Decodes two files at a time; others wait."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.places = asyncio.Semaphore(2)

    async def decode(self, source: Path, folder: Path, height: int, width: int, fps: float) -> Decoded:
        """Write `folder`/start.safetensors and preview.webp from a file. ValueError in words for what cannot be read."""
        async with self.places:
            return await asyncio.to_thread(self._in_process, source, folder, height, width, fps)

    def _in_process(self, source: Path, folder: Path, height: int, width: int, fps: float) -> Decoded:
        here, there = multiprocessing.Pipe(duplex=False)
        arguments = (there, source, folder, height, width, fps, self.config)
        process = processes().Process(target=decode_here, args=arguments, daemon=True)
        process.start()
        there.close()
        try:
            if not here.poll(self.config.decode_seconds * 1.5):
                raise ValueError(
                    f"the file took more than {self.config.decode_seconds:g} s to decode; use a smaller or shorter one"
                )
            answer = here.recv()
        except EOFError:
            process.join(5)
            slow = process.exitcode is not None and -process.exitcode in (24, 9)  # SIGXCPU, then SIGKILL
            why = f"took more than {self.config.decode_seconds:g} s to decode" if slow else "could not be decoded"
            raise ValueError(f"the file {why}; use a smaller one, or convert it to .png or .mp4") from None
        finally:
            process.kill()
            process.join(5)
            process.close()
            here.close()
        if isinstance(answer, str):
            raise ValueError(answer)
        assert isinstance(answer, Decoded)
        return answer


def decode_here(answer: Connection, source: Path, folder: Path, height: int, width: int, fps: float, config: ServeConfig) -> None:
    """What the process does: take its limits, read, write, say one Decoded or one message."""
    _limit(config)
    try:
        answer.send(_decode(source, folder, height, width, fps, config))
    except MemoryError:
        answer.send("the file needs too much memory to decode; make it smaller first")
    except (ValueError, OSError) as error:
        answer.send(str(error).replace(str(source), "the file"))


def _limit(config: ServeConfig) -> None:
    seconds = int(config.decode_seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + config.decode_bytes,) * 2)
    import torch

    torch.set_num_threads(1)


def _decode(source: Path, folder: Path, height: int, width: int, fps: float, config: ServeConfig) -> Decoded:
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from lumos.media import picture
    from lumos.media.video import read_video

    picture.MAX_PIXELS = config.upload_pixels  # this process reads one stranger's file and ends
    most = config.max_frames - 4  # at least four new ones
    clip = read_video(source, fps, height, width, most + 1)
    frames, note = 1, clip.note
    if clip.kind == "video":
        read = clip.pixels_CFHW.shape[1]
        if read > most:
            raise ValueError(f"a video to continue may have at most {most} frames at {fps:g} fps ({most / fps:g} s); cut it")
        frames = (read - 1) // 4 * 4 + 1
        left = f"last {read - frames} frames left out, as frames come in 1 + 4k" if read > frames else ""
        note = ", ".join(filter(None, [clip.note, left]))
    rgb_CFHW = ((clip.pixels_CFHW[:, :frames] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    save_file({"rgb_CFHW": rgb_CFHW.contiguous()}, folder / START)
    pictures = [Image.fromarray(rgb.permute(1, 2, 0).contiguous().numpy()) for rgb in rgb_CFHW.unbind(1)]
    step = round(1000 / fps)
    pictures[0].save(folder / PREVIEW, "WEBP", save_all=True, append_images=pictures[1:], duration=step, loop=0, quality=85)
    return Decoded(clip.kind, frames, note)
