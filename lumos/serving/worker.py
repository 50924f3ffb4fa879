"""The process that holds the model: batches come in over a pipe, frames go out as they are made, files end up in a folder.

A crash of it, or a batch that runs away, costs that batch; service.py starts the next one. Everything that imports torch is here.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lumos.serving.decode import is_memory_error
from lumos.serving.request import VideoRequest
from lumos.serving.store import START

if TYPE_CHECKING:
    from torch import Tensor

    from lumos.generate import Generator

SECONDS_BETWEEN_NEWS = 0.4  # of progress; frames are told at once
FILES = ("video.mp4", "video.gif", "video.png", "thumbnail.png")
TOO_LARGE = "there was not enough memory; ask for fewer frames or a smaller size"
Say = Callable[..., None]
Requests = tuple[VideoRequest, ...]
Folders = tuple[Path, ...]
Order = tuple[int, Requests, Folders]  # its number, what is asked, and the folders for its files


class Cancelled(Exception):
    pass


def run_worker(connection: Connection, weights: str, device: str | None) -> None:
    """Serve batches until the other end closes. Messages: a word, the number of a batch or check, what there is to say.

    It hears: make n requests folders | cancel n | check n request (answered at once, even while a batch is made). It says:
    ready 0 about files | weights 0 files | broken 0 message | checked n error or None | progress n done all
    frames n first [pictures of each row] | finished n [error or None of each row] seconds | failed n code message
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
    lock = threading.Lock()

    def say(*words: Any) -> None:
        with lock:
            try:
                connection.send(words)
            except OSError:  # the server is gone
                os._exit(0)

    try:
        from lumos.generate import Generator

        files = _files_of(weights)
        generator = Generator.from_folder(weights, device)
        about = _about(generator)
        _warm_up(generator)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        say("broken", 0, TOO_LARGE if is_memory_error(error) else str(error))
        return
    todo: queue.SimpleQueue[Order] = queue.SimpleQueue()
    cancelled: set[int] = set()
    threading.Thread(target=_hear, args=(connection, generator, todo, cancelled, say), daemon=True).start()
    say("ready", 0, about, files)
    while True:
        number, requests, folders = todo.get()
        say("weights", 0, _files_of(weights))
        try:
            begin = time.monotonic()
            errors = _make(generator, number, requests, folders, cancelled, say)
            say("finished", number, errors, time.monotonic() - begin)
        except Cancelled:
            say("failed", number, "cancelled", "cancelled")
        except ValueError as error:
            say("failed", number, "invalid_request", str(error))
        except Exception as error:
            code, message = ("out_of_memory", TOO_LARGE) if is_memory_error(error) else ("fault", repr(error))
            say("failed", number, code, message)
        cancelled.discard(number)


def _hear(connection: Connection, generator: Generator, todo: queue.SimpleQueue[Order], cancelled: set[int], say: Say) -> None:
    while True:
        try:
            word, number, *rest = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        if word == "make":
            todo.put((number, *rest))
        elif word == "cancel":
            cancelled.add(number)
        else:
            request, error = rest[0], None
            try:
                generator.prompt_ids(request.prompt, request.frames, request.height, request.width)
            except ValueError as fault:
                error = str(fault)
            say("checked", number, error)


def _make(
    generator: Generator, number: int, requests: Requests, folders: Folders, cancelled: set[int], say: Say
) -> list[str | None]:
    import torch

    first, said = requests[0], time.monotonic()

    def progress(done: int, passes: int) -> None:
        nonlocal said
        if number in cancelled:
            raise Cancelled
        # Whoever hears of it takes a core from the threads that compute, which all wait for the last of them.
        if time.monotonic() - said > SECONDS_BETWEEN_NEWS:
            said = time.monotonic()
            say("progress", number, done, passes)

    parts: list[Tensor] = []
    frames = generator.stream(
        [request.prompt for request in requests],
        frames=first.frames,
        seed=[request.seed for request in requests],
        given=_given(folders[0] / START) if first.given else None,
        sampler=replace(generator.config.sampler, steps=first.steps, guidance=first.guidance, temperature=first.temperature),
        height=first.height,
        width=first.width,
        progress=progress,
    )
    with closing(frames):  # type: ignore[type-var]
        for pixels_BCFHW in frames:
            if number in cancelled:
                raise Cancelled
            parts.append(pixels_BCFHW.cpu())
            shown = sum(part.shape[2] for part in parts[:-1])
            say("frames", number, shown, [_pictures(pixels_CFHW) for pixels_CFHW in parts[-1]])
    pixels_BCFHW = torch.cat(parts, dim=2)
    return [_write(folder, pixels, first.fps) for folder, pixels in zip(folders, pixels_BCFHW, strict=True)]


def _pictures(pixels_CFHW: Tensor) -> list[bytes]:
    """Every frame as a WebP picture, for showing while the rest is made."""
    from PIL import Image

    from lumos.media.pixels import to_bytes

    pictures = []
    for rgb_HWC in to_bytes(pixels_CFHW).permute(1, 2, 3, 0).contiguous().numpy():
        file = BytesIO()
        Image.fromarray(rgb_HWC).save(file, "WEBP", quality=88, method=0)
        pictures.append(file.getvalue())
    return pictures


def _write(folder: Path, pixels_CFHW: Tensor, fps: float) -> str | None:
    from lumos.media.video import write_video

    try:
        for name in FILES:
            write_video(folder / name, pixels_CFHW[:, :1] if name == "thumbnail.png" else pixels_CFHW, fps, overwrite=True)
    except FileNotFoundError:
        return None  # deleted in the meantime
    except OSError as error:
        full = "no space left" in str(error).lower()
        return "the server's disk is full; try again later" if full else "the files could not be written; try again later"
    return None


def _given(path: Path) -> Tensor:
    from safetensors.torch import load_file

    from lumos.media.pixels import to_float

    return to_float(load_file(path)["rgb_CFHW"])


def _files_of(weights: str) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file of the weights, which change when somebody replaces them."""
    from lumos.weights import find_weights

    try:
        folder = find_weights(weights, "model")
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    except (ValueError, OSError):
        return {}


def _warm_up(generator: Generator) -> None:
    """A very short generation, so that nobody's first frame waits for what happens only once."""
    sampler = replace(generator.config.sampler, steps=1)
    frames = generator.stream("a", frames=min(5, generator.config.video.frames), sampler=sampler)
    with suppress(ValueError), closing(frames):  # type: ignore[type-var]
        for _ in frames:  # a vocabulary that cannot read the word is no reason to stop
            pass


def _about(generator: Generator) -> dict[str, Any]:
    """What the server and its clients need to know of the model."""
    from lumos.sequence.layout import SIZE_UNIT

    video, sampler, tokenizer = generator.config.video, generator.config.sampler, generator.tokenizer
    return {
        "height": video.height,
        "width": video.width,
        "frames": video.frames,
        "fps": video.fps,
        "steps": sampler.steps,
        "guidance": sampler.guidance,
        "temperature": sampler.temperature,
        "device": str(generator.device),
        "temporal": tokenizer.temporal,
        "spatial": tokenizer.spatial,
        "size_step": SIZE_UNIT,
    }
