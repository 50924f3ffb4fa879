"""The process that holds the model: batches come in over a pipe, frames go out as they are made, files end up in a folder.

A crash of it, or a batch that runs away, costs that batch; engine.py starts the next one. Everything that imports torch is here.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lumos.serving.record import Asked
from lumos.serving.store import START

if TYPE_CHECKING:
    from torch import Tensor

    from lumos.generate import Generator

SECONDS_BETWEEN_NEWS = 0.4  # of progress; frames are told at once
FILES = ("video.mp4", "video.gif", "video.png", "thumbnail.png")


@dataclass(frozen=True)
class Batch:
    """Requests to be made in one pass, each with the folder for its files. All agree (record.Asked.agrees) if several."""

    number: int
    asked: tuple[Asked, ...]
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class Cancel:
    number: int


@dataclass(frozen=True)
class Check:
    """Can this prompt be read by the model? Answered at once, even while a batch is made."""

    number: int
    asked: Asked


class Cancelled(Exception):
    pass


def work(connection: Connection, weights: str, device: str | None, most: int = 1) -> None:
    """Serve batches of up to `most` requests until the other end closes. Sends tuples: a word, a number, what there is to say.

    The number is that of a batch or a check.
    ready 0 info | broken 0 message | progress n done all | frames n first_frame [webp of each frame, of each row]
    finished n [error or None, of each row] seconds | failed n code message | checked n error or None
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

        generator = Generator.from_folder(weights, device)
        _warm_up(generator)
        about = _about(generator) | {"batches_repeat": most > 1 and batches_repeat(generator)}
    except (ValueError, OSError, RuntimeError) as error:
        say("broken", 0, str(error))
        return
    todo: queue.SimpleQueue[Batch] = queue.SimpleQueue()
    cancelled: set[int] = set()
    threading.Thread(target=_listen, args=(connection, generator, todo, cancelled, say), daemon=True).start()
    say("ready", 0, about)
    while True:
        batch = todo.get()
        try:
            begin = time.monotonic()
            errors = _make(generator, batch, cancelled, say)
            say("finished", batch.number, errors, time.monotonic() - begin)
        except Cancelled:
            say("failed", batch.number, "cancelled", "cancelled")
        except ValueError as error:
            say("failed", batch.number, "invalid_request", str(error))
        except Exception as error:
            short = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            memory = "there was not enough memory; ask for fewer frames or a smaller size"
            say("failed", batch.number, "out_of_memory" if short else "fault", memory if short else repr(error))
        cancelled.discard(batch.number)


def batches_repeat(generator: Generator) -> bool:
    """Whether a prompt and its seed give the same codes in a batch as alone.

    Their random numbers are the same, but larger matrices may be rounded in another way, and one code that changes changes the
    video. That depends on the device and its libraries, so it is tried: prompts of very different lengths, one step a frame.
    """
    import torch

    prompts, seeds = ["a", "a" + " a" * 6, "a" + " a" * 20], [1, 2, 3]
    sampler = replace(generator.config.sampler, steps=1, first=1.0)

    def codes(prompts: list[str], seeds: list[int]) -> Tensor:
        record: list[Tensor] = []
        for _ in generator.stream(prompts, min(5, generator.config.video.frames), seeds, sampler=sampler, record=record):
            pass
        return torch.stack(record, dim=1)

    try:
        together_BTHW = codes(prompts, seeds)
        return all(
            torch.equal(codes([prompt], [seed])[0], codes_THW)
            for prompt, seed, codes_THW in zip(prompts, seeds, together_BTHW, strict=True)
        )
    except ValueError:  # a vocabulary that cannot read the words
        return False


def _listen(
    connection: Connection,
    generator: Generator,
    todo: queue.SimpleQueue[Batch],
    cancelled: set[int],
    say: Callable[..., None],
) -> None:
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        if isinstance(message, Batch):
            todo.put(message)
        elif isinstance(message, Cancel):
            cancelled.add(message.number)
        elif isinstance(message, Check):
            asked, error = message.asked, None
            try:
                generator.prompt_ids(asked.prompt, asked.frames, asked.height, asked.width)
            except ValueError as fault:
                error = str(fault)
            say("checked", message.number, error)


def _make(generator: Generator, batch: Batch, cancelled: set[int], say: Callable[..., None]) -> list[str | None]:
    import torch

    first = batch.asked[0]

    said = time.monotonic()

    def progress(done: int, passes: int) -> None:
        nonlocal said
        if batch.number in cancelled:
            raise Cancelled
        # Whoever hears of it takes a core from the threads that compute, which all wait for the last of them.
        if time.monotonic() - said > SECONDS_BETWEEN_NEWS:
            said = time.monotonic()
            say("progress", batch.number, done, passes)

    sampler = replace(generator.config.sampler, steps=first.steps, guidance=first.guidance, temperature=first.temperature)
    given = _start(batch.folders[0] / START) if first.given else None
    parts: list[Tensor] = []
    frames = generator.stream(
        [asked.prompt for asked in batch.asked],
        frames=first.frames,
        seed=[asked.seed for asked in batch.asked],
        given=given,
        sampler=sampler,
        height=first.height,
        width=first.width,
        progress=progress,
    )
    with closing(frames):  # type: ignore[type-var]
        for pixels_BCFHW in frames:
            if batch.number in cancelled:
                raise Cancelled
            parts.append(pixels_BCFHW.cpu())
            shown = sum(part.shape[2] for part in parts[:-1])
            say("frames", batch.number, shown, [_small(pixels_CFHW) for pixels_CFHW in parts[-1]])
    pixels_BCFHW = torch.cat(parts, dim=2)
    return [_write(folder, pixels, first.fps) for folder, pixels in zip(batch.folders, pixels_BCFHW, strict=True)]


def _small(pixels_CFHW: Tensor) -> list[bytes]:
    """Every frame as a WebP picture, for showing while the rest is made."""
    from io import BytesIO

    import torch
    from PIL import Image

    rgb_FHWC = ((pixels_CFHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous().numpy()
    pictures = []
    for rgb_HWC in rgb_FHWC:
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
        full = "no space left" in str(error)
        return "the server's disk is full; try again later" if full else "the files could not be written; try again later"
    return None


def _start(path: Path) -> Tensor:
    from safetensors.torch import load_file

    return load_file(path)["rgb_CFHW"].float() / 127.5 - 1


def _warm_up(generator: Generator) -> None:
    """A very short generation, so that nobody's first frame waits for what happens only once."""
    video = generator.config.video
    sampler = replace(generator.config.sampler, steps=1)
    with (
        suppress(ValueError),
        closing(  # a vocabulary that cannot read the word is no reason to stop
            generator.stream("a", frames=min(5, video.frames), sampler=sampler)  # type: ignore[type-var]
        ) as frames,
    ):
        for _ in frames:
            pass


def _about(generator: Generator) -> dict[str, Any]:
    video, sampler = generator.config.video, generator.config.sampler
    return {
        "height": video.height,
        "width": video.width,
        "frames": video.frames,
        "fps": video.fps,
        "steps": sampler.steps,
        "guidance": sampler.guidance,
        "temperature": sampler.temperature,
        "device": str(generator.device),
    }
