"""An uploaded file -> its pixels, in a process of its own that may use so much memory and time and no more.

The process is forked from one that has loaded the libraries and holds nothing else. It writes start.safetensors (rgb_CFHW) and
a small picture; it answers in words. A file that crashes or stalls a decoder costs that process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import signal
import sys
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from lumos.serving.config import ServeConfig
from lumos.serving.store import START

if TYPE_CHECKING:
    from lumos.media.video import Footage

# what the process that everything is forked from loads beforehand; loading starts no threads
PRELOAD = ["lumos.serving.worker", "lumos.media.video", "lumos.generate", "PIL.Image", "av", "safetensors.torch"]
PREVIEW = "preview.webp"
# How often one of torch's threads that waits for the others looks again before it sleeps. Unless told so, it hardly ever sleeps:
# a tenth faster on a quiet machine, but ten times slower beside anything that keeps a core busy.
SPINS = 1000


@dataclass(frozen=True)
class Decoded:
    """What a file is: a video or a picture, how many frames are kept (1 + 4k), and what was done to make them fit."""

    is_video: bool
    frames: int
    note: str


def processes() -> multiprocessing.context.ForkServerContext:
    """The way this server starts processes. Call `start_processes` once before."""
    return multiprocessing.get_context("forkserver")


def start_processes() -> None:
    """Start the process that the others are forked from. It loads torch, whose threads are told here how to wait."""
    processes().set_forkserver_preload(PRELOAD)
    settings = {} if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys() else {"GOMP_SPINCOUNT": str(SPINS)}
    os.environ.update(settings)
    resource_tracker.ensure_running()  # which would unblock signals below
    # Ctrl-C reaches all processes of a terminal; this one ends with the server, which decides
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for name in settings:
            del os.environ[name]


async def decode(
    source: Path, folder: Path, height: int, width: int, fps: float, config: ServeConfig, places: asyncio.Semaphore
) -> Decoded:
    """Write `folder`/start.safetensors and preview.webp from a file. ValueError in words for what cannot be read.

    places: how many files are decoded at a time; others wait.
    """
    async with places:
        return await asyncio.to_thread(_in_process, source, folder, height, width, fps, config)


def _in_process(source: Path, folder: Path, height: int, width: int, fps: float, config: ServeConfig) -> Decoded:
    here, there = multiprocessing.Pipe(duplex=False)
    arguments = (there, source, folder, height, width, fps, config)
    process = processes().Process(target=decode_here, args=arguments, daemon=True)
    process.start()
    there.close()
    late = f"the file took more than {config.decode_seconds:g} s to decode; use a smaller or shorter one"
    try:
        if not here.poll(config.decode_seconds * 1.5):
            raise ValueError(late)
        answer = here.recv()
    except EOFError:
        process.join(5)
        if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
            raise ValueError(late) from None
        raise ValueError("the file could not be decoded; convert it to .png or .mp4") from None
    finally:
        process.kill()
        process.join(5)
        process.close()
        here.close()
    if isinstance(answer, OSError):
        raise answer
    if isinstance(answer, str):
        raise ValueError(answer)
    assert isinstance(answer, Decoded)
    return answer


def decode_here(answer: Connection, source: Path, folder: Path, height: int, width: int, fps: float, config: ServeConfig) -> None:
    """What the process does: take its limits, read, write, say one Decoded, one message, or that the disk failed."""
    limit_process(config)
    try:
        footage, frames, note = _read(source, height, width, fps, config)
    except Exception as error:  # whatever a decoder says of a stranger's file
        ours = isinstance(error, ValueError | OSError) and not is_memory_error(error)
        memory = "the file needs too much memory to decode; make it smaller first"
        other = memory if is_memory_error(error) else "the file cannot be decoded; convert it to .png or .mp4"
        answer.send(str(error).replace(str(source), "the file") if ours else other)
        return
    try:
        _write(folder, footage, frames, fps)
        answer.send(Decoded(footage.kind == "video", frames, note))
    except OSError as error:
        answer.send(OSError(error.errno, error.strerror))


def is_memory_error(error: BaseException) -> bool:
    """Whether there was not enough memory, on a card or not: torch has several ways of saying it."""
    said = ("can't allocate memory", "bad_alloc", "Cannot allocate memory")
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or any(s in str(error) for s in said)


def limit_process(config: ServeConfig) -> None:
    """Take limits of processor time, file size and memory that this process cannot raise again."""
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


def _read(source: Path, height: int, width: int, fps: float, config: ServeConfig) -> tuple[Footage, int, str]:
    """A picture's or a video's pixels, how many frames of it are kept, and what was done to them."""
    from lumos.media import picture
    from lumos.media.video import read_video

    picture.MAX_PIXELS = config.upload_pixels  # this process reads one stranger's file and ends
    most = config.max_frames - 4  # at least four new ones
    footage = read_video(source, fps, height, width, most + 1)
    if footage.kind == "image":
        return footage, 1, footage.note
    read = footage.pixels_CFHW.shape[1]
    if read > most:
        raise ValueError(f"a video to continue may have at most {most} frames at {fps:g} fps ({most / fps:g} s); cut it")
    frames = (read - 1) // 4 * 4 + 1
    left = f"last {read - frames} frames left out, as frames come in 1 + 4k" if read > frames else ""
    return footage, frames, ", ".join(filter(None, [footage.note, left]))


def _write(folder: Path, footage: Footage, frames: int, fps: float) -> None:
    from PIL import Image
    from safetensors.torch import save

    from lumos.media.pixels import to_bytes

    rgb_CFHW = to_bytes(footage.pixels_CFHW[:, :frames]).contiguous()
    (folder / START).write_bytes(save({"rgb_CFHW": rgb_CFHW}))
    pictures = [Image.fromarray(rgb.permute(1, 2, 0).contiguous().numpy()) for rgb in rgb_CFHW.unbind(1)]
    step = round(1000 / fps)
    pictures[0].save(folder / PREVIEW, "WEBP", save_all=True, append_images=pictures[1:], duration=step, loop=0, quality=85)
