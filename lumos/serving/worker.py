"""The process that holds the model: batches come in over a pipe, frames go out as they are made, files end up in a folder.

A crash of it, or a batch that runs away, costs that batch; pool.py starts the next one.
"""

import os
import queue
import signal
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from lumos.files import is_memory_error
from lumos.generate import Generator
from lumos.media.pixels import to_bytes, to_float
from lumos.media.video import write_video
from lumos.sequence.layout import SIZE_UNIT
from lumos.serving.request import VideoRequest
from lumos.serving.store import FILES, START
from lumos.session import Session, make_next
from lumos.tokenizer.compression import pixel_frames
from lumos.weights import find_weights

SECONDS_BETWEEN_NEWS = 0.4  # of progress; frames are told at once
TOO_LARGE = "there was not enough memory; ask for fewer frames or a smaller size"
Say = Callable[..., None]
Words = queue.SimpleQueue[tuple[Any, ...]]  # what the server says


def run(server: Connection, weights: str, device: str | None, workers: int = 1) -> None:
    """Serve until the server closes its end. It sends ("make", requests, folders for their files) and ("cancel",), of sessions
    ("open", id, request, given), ("fork", id, source), ("end", id), ("next", [(id, frames to keep or None, sentence or None)]).

    It is told ("ready", about, prompts, files) or ("broken", message) first, then for every batch ("progress", done, passes) and
    ("frames", first, [pictures of each row]), and at its end ("finished", [error or None of each row], seconds, files) or
    ("failed", (code, message) or None, fault to be logged or None). files: those of the weights, as they are now. Of a session it
    is told ("live", id, (first, pictures), sentences), or ("live", id, None, (code, message)) at its end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides

    def say(*words: Any) -> None:
        try:
            server.send(words)
        except OSError:  # the server is gone
            os._exit(0)

    torch.set_num_threads(max(1, torch.get_num_threads() // workers))  # which share the machine's cores
    try:
        files = _files_of(weights)
        generator = Generator.from_folder(weights, device)
        with suppress(ValueError):  # a very short generation, so that nobody's first frame waits for what happens only once
            list(generator.stream("a", frames=min(5, generator.config.video.frames), steps=1))
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        say("broken", TOO_LARGE if is_memory_error(error) else str(error))
        return
    sessions, todo, cancelled = dict[str, Session](), Words(), Event()
    steer = partial(_steer, generator, sessions, say)
    Thread(target=_hear, args=(server, todo, cancelled), daemon=True).start()
    say("ready", _about(generator), generator.prompts, files)
    while True:
        word, *rest = todo.get()
        if word != "make":
            steer(word, *rest)
            continue

        def between() -> None:
            """Sessions have their turn between latent frames of a video."""
            for _ in range(todo.qsize()):
                steer(*todo.get())

        begin = time.monotonic()
        try:
            errors = _make(generator, rest[0], rest[1], cancelled, say, between)
            say("finished", errors, time.monotonic() - begin, _files_of(weights))
        except CancelledError:
            say("failed", None, None)
        except ValueError as error:
            say("failed", ("invalid_request", str(error)), None)
        except Exception as error:
            say("failed", *((("out_of_memory", TOO_LARGE), None) if is_memory_error(error) else (None, repr(error))))


def _steer(generator: Generator, sessions: dict[str, Session], say: Say, word: str, *rest: Any) -> None:
    """Do what serving/live.py asks of sessions: a latent frame of each of some, or something with one."""
    if word != "next":
        return _do(generator, sessions, say, word, *rest)
    for words in rest[0]:
        _do(generator, sessions, say, "tell", *words)
    told = [id for id, *_ in rest[0] if id in sessions]
    # On a CPU frames take as long together as one after another, and compiled layers would be compiled anew for other rows.
    if generator.device.type == "cuda" and not generator.compiled:
        with suppress(Exception):  # what goes wrong does so again below, with the session that is to blame
            make_next(sessions[id] for id in told)
    for id in told:
        _do(generator, sessions, say, "show", id)


def _do(generator: Generator, sessions: dict[str, Session], say: Say, word: str, id: str, *rest: Any) -> None:
    """One thing with one session, which what goes wrong ends."""
    try:
        if word == "open":
            asked, starts = rest
            settings = {name: getattr(asked, name) for name in ("height", "width", "steps", "guidance", "temperature")}
            sessions[id] = generator.session(asked.prompt, asked.seed, **settings, **_given(asked, starts.__getitem__))
        elif word == "fork":
            sessions[id] = sessions[rest[0]].fork()
        elif word == "end":
            sessions.pop(id, None)
        elif word == "tell":
            session, (kept, sentence) = sessions[id], rest
            if kept is not None:
                session.back(session.frames - kept)
            if sentence is not None:
                session.say(sentence)
        else:
            first = pixel_frames((session := sessions[id]).course.shown, generator.tokenizer.temporal)
            say("live", id, (first, _pictures(next(session)[0].cpu())), session.sentences)
    except Exception as error:
        known = is_memory_error(error) or isinstance(error, ValueError)
        words = TOO_LARGE if is_memory_error(error) else str(error) if known else "the server met a fault; begin another"
        say("live", id, None, ("failed", words))
        sessions.pop(id, None)


def _hear(server: Connection, todo: Words, cancelled: Event) -> None:
    while True:
        try:
            words = server.recv()
        except (EOFError, OSError):
            os._exit(0)
        if words[0] == "cancel":
            cancelled.set()
            continue
        if words[0] == "make":
            cancelled.clear()  # a word that came too late was about the batch before
        todo.put(words)


def _make(
    generator: Generator, requests: list[VideoRequest], folders: list[Path], cancel: Event, say: Say, between: Callable[[], None]
) -> list[str | None]:
    first, said = requests[0], time.monotonic()

    def progress(done: int, passes: int) -> None:
        nonlocal said
        if cancel.is_set():
            raise CancelledError
        # Whoever hears of it takes a core from the threads that compute, which all wait for the last of them.
        if time.monotonic() - said > SECONDS_BETWEEN_NEWS:
            said = time.monotonic()
            say("progress", done, passes)

    parts: list[Tensor] = []
    frames = generator.stream(
        [request.prompt for request in requests],
        frames=first.frames,
        seed=[request.seed for request in requests],
        sampler=replace(generator.config.sampler, steps=first.steps, guidance=first.guidance, temperature=first.temperature),
        height=first.height,
        width=first.width,
        progress=progress,
        **_given(first, lambda at: (folders[0] / START.format(at)).read_bytes()),
    )
    with closing(frames):  # type: ignore[type-var]
        for pixels_BCFHW in frames:
            shown = sum(part.shape[2] for part in parts)
            parts.append(pixels_BCFHW.cpu())
            say("frames", shown, [_pictures(pixels_CFHW) for pixels_CFHW in parts[-1]])
            between()
    return _write(folders, torch.cat(parts, dim=2), first.fps, generator.device)


def _given(request: VideoRequest, read: Callable[[int], bytes]) -> dict[str, Any]:
    """The generator's arguments for what a request gives. read: bytes of the file of frames, by number of the first."""
    given = {at: to_float(load(read(at))["rgb_CFHW"]) for at in ([0] if request.given else []) + list(request.keyframes)}
    return {"given": given.pop(0, None), "keyframes": {at: pixels_CFHW[:, 0] for at, pixels_CFHW in given.items()}}


def _pictures(pixels_CFHW: Tensor) -> list[bytes]:
    """Every frame as a WebP picture, for showing while the rest is made."""
    files = [BytesIO() for _ in range(pixels_CFHW.shape[1])]
    for file, rgb_HWC in zip(files, to_bytes(pixels_CFHW).permute(1, 2, 3, 0).contiguous().numpy(), strict=True):
        Image.fromarray(rgb_HWC).save(file, "WEBP", quality=88, method=0)
    return [file.getvalue() for file in files]


def _write(folders: list[Path], pixels_BCFHW: Tensor, fps: float, device: torch.device) -> list[str | None]:
    """All files, and what went wrong with each video. On a CPU one after another: it is busy, and its memory may be short."""
    with ThreadPoolExecutor() as pool:
        each = pool.map if device.type == "cuda" else map
        ends = [each(partial(_write_one, *video, fps), FILES) for video in zip(folders, pixels_BCFHW, strict=True)]
        return [next(filter(None, of_video), None) for of_video in ends]


def _write_one(folder: Path, pixels_CFHW: Tensor, fps: float, name: str) -> str | None:
    try:
        write_video(folder / name, pixels_CFHW[:, :1] if name == "thumbnail.png" else pixels_CFHW, fps)
    except FileNotFoundError:
        return None  # deleted in the meantime
    except OSError as error:
        full = "no space left" in str(error).lower()
        return "the server's disk is full; try again later" if full else "the files could not be written; try again later"
    return None


def _files_of(weights: str) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file of the weights, which change when somebody replaces them."""
    try:
        folder = find_weights(weights, "model")
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    except (ValueError, OSError):
        return {}


def _about(generator: Generator) -> dict[str, Any]:
    """What the server and its clients need to know of the model."""
    told = {
        generator.config.video: ("height", "width", "frames", "fps"),
        generator.config.sampler: ("steps", "guidance", "temperature"),
        generator.tokenizer: ("temporal", "spatial"),
    }
    about = {name: getattr(source, name) for source, names in told.items() for name in names}
    return {**about, "size_step": SIZE_UNIT, "device": str(generator.device)}
