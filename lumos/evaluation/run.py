"""Prompts -> generated clips -> marks of the judge, in fixed batches, with the judging beside the generating."""

import multiprocessing
import os
import signal
import sys
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate

from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.judge.judge import judge
from lumos.evaluation.prompts import Prompt
from lumos.evaluation.report import Result
from lumos.generate import Generator
from lumos.media.pixels import to_bytes, to_float
from lumos.media.video import write_video
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import Scene

SIDE, FPS = 128, 8  # what the judge looks at, and the rate that prompts count their frames at
WAITING = 2  # batches that may wait to be judged
MOST_WORKERS = 14  # more do not help: one H200 makes about as many clips as these judge


def usual_batch(device: torch.device) -> int:
    """Videos at a time: many where a pass costs the same for few."""
    return 4 if device.type == "cpu" else 104


def usual_workers(device: torch.device) -> int:
    """None on the CPU; with a GPU all cores but two, at most 14."""
    return 0 if device.type == "cpu" else max(0, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 2))


def worker_pool(count: int) -> Executor:
    """Processes that judge and write files, so that a GPU need not wait for it; 0: a thread. A context that ends them."""
    if count < 0:
        raise ValueError(f"workers must be 0 or more, got {count}; 0 does everything in one process")
    if not count:
        return ThreadPoolExecutor(1)
    # Spawned, not forked: a forked process cannot use libraries that already run threads or CUDA.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that generates: what is made is still judged
    torch.set_num_threads(1)


def batches(prompts: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    """Prompts of one length and one image to start from; always the same batches, images four times as many at a time."""
    if size < 1:
        raise ValueError(f"batch must be at least 1, got {size}; leave it out for the default")
    groups: dict[tuple[int, Scene | None], list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.frames, prompt.given), []).append(prompt)
    steps = [(group, 4 * size if frames == 1 else size) for (frames, _), group in groups.items()]
    return [group[start : start + step] for group, step in steps for start in range(0, len(group), step)]


def make(
    generator: Generator,
    todo: Sequence[Sequence[Prompt]],
    workers: Executor,
    sampler: SamplerConfig | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> Iterator[list[Result]]:
    """Generate batch after batch and yield the results of each, in order, when it is judged; `out` keeps the clips in out/videos.

    After Ctrl-C the results of what is already made still come, and then the interruption.
    """
    waiting: deque[list[Future[Result]]] = deque()
    interruption = None
    try:
        for batch in todo:
            # A quarter of the size on the way to another process.
            clips = zip(batch, to_bytes(generate_batch(generator, batch, sampler, seed)).numpy(), strict=True)
            waiting.append([workers.submit(judged, prompt, rgb, generator.config.video.fps, out) for prompt, rgb in clips])
            while waiting and (len(waiting) > WAITING or all(future.done() for future in waiting[0])):
                yield [future.result() for future in waiting.popleft()]
    except KeyboardInterrupt as error:
        interruption = error
    while waiting:
        yield [future.result() for future in waiting.popleft()]
    if interruption:
        raise interruption


def generate_batch(generator: Generator, batch: Sequence[Prompt], sampler: SamplerConfig | None, seed: int) -> Tensor:
    """Clips of prompts that belong together, each with a seed of its own: pixels_BCFHW."""
    video, given = generator.config.video, batch[0].given
    frames = frames_of(batch[0].frames, video.fps)
    seeds = [zlib.crc32(f"{seed} {prompt.id}".encode()) for prompt in batch]
    image_CFHW = render(pack([given]), 1, video.height)[0] if given else None
    return generator([prompt.text for prompt in batch], frames=frames, seed=seeds, given=image_CFHW, sampler=sampler)


def frames_of(frames: int, fps: int) -> int:
    """Frames of a prompt's video, said at 8 frames per second, at another rate: as many seconds."""
    return 1 + round((frames - 1) * fps / FPS)


def judged(prompt: Prompt, rgb_CFHW: np.ndarray, fps: int, out: Path | None) -> Result:
    """Mark one clip, and write its file if there is a folder for it."""
    pixels_CFHW = to_float(torch.from_numpy(rgb_CFHW))
    file = f"videos/{prompt.id}{'.png' if prompt.frames == 1 else '.webp'}" if out else ""
    if out:
        write_video(out / file, pixels_CFHW, fps, overwrite=True)
    every = pixels_CFHW.shape[2] // SIDE
    if every:
        pixels_CFHW = avg_pool3d(pixels_CFHW, (1, every, every))
    else:
        pixels_CFHW = interpolate(pixels_CFHW.transpose(0, 1), SIDE, mode="bilinear").transpose(0, 1)
    verdict = judge(prompt.scene, pixels_CFHW, fps)
    classes = {name: verdict.all_of(attributes) for name, attributes in prompt.checks.items()}
    return Result(prompt.id, prompt.task, prompt.split, prompt.text, classes, verdict.marks, verdict.notes, file)


def tell_progress(what: str, share: float, seconds: float) -> None:
    """One line on stderr, with the time left when this share of the work took so many seconds."""
    end = "\r" if sys.stderr.isatty() and share < 1 else "\n"
    left = seconds / share * (1 - share) / 60 if share else 0.0
    print(f"{f'{what}, {left:.1f} minutes left':<79}", end=end, file=sys.stderr, flush=True)
