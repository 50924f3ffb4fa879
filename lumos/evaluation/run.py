"""Prompts -> generated clips -> marks of the judge, in fixed batches, with the judging beside the generating.

`measure` is the whole benchmark in memory, for a model that is still being trained; `lumos evaluate shapes` adds the folder.
"""

import multiprocessing
import os
import signal
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.judge.judge import judge
from lumos.evaluation.prompts import Prompt
from lumos.evaluation.scores import Result, summary
from lumos.generate import Generator
from lumos.media.pixels import to_bytes, to_float
from lumos.media.video import write_video
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import Scene

WAITING = 2  # batches that may wait to be judged
MOST_WORKERS = 14  # more do not help: one H200 makes about as many clips as these judge


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that are generated together: one length, and one image to start from. Each has a seed of its own."""

    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]


def measure(
    generator: Generator,
    prompts: Sequence[Prompt],
    workers: Executor,
    sampler: SamplerConfig | None = None,
    seed: int = 0,
    batch: int | None = None,
) -> dict[str, Any]:
    """Scores of a model in memory (see `scores.summary`), nothing written. Raises ValueError for no prompts."""
    if not prompts:
        raise ValueError("prompts must be at least one, got none; take some of lumos.evaluation.prompts.benchmark()")
    todo = batches(prompts, batch or usual_batch(generator.device), seed)
    return summary([result for results in make(generator, todo, workers, sampler) for result in results])


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


def batches(prompts: Sequence[Prompt], size: int, seed: int) -> list[PromptBatch]:
    """Always the same ones: images four times as many at a time; those that start from an image with others of that image."""
    if size < 1:
        raise ValueError(f"batch must be at least 1, got {size}; leave it out for the default")
    groups: dict[tuple[int, Scene | None], list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.frames, prompt.given), []).append(prompt)
    found = []
    for (frames, _), group in groups.items():
        step = 4 * size if frames == 1 else size
        for start in range(0, len(group), step):
            part = tuple(group[start : start + step])
            found.append(PromptBatch(part, tuple(zlib.crc32(f"{seed} {prompt.id}".encode()) for prompt in part)))
    return found


def make(
    generator: Generator,
    todo: Sequence[PromptBatch],
    workers: Executor,
    sampler: SamplerConfig | None = None,
    out: Path | None = None,
) -> Iterator[list[Result]]:
    """Generate batch after batch and yield the results of each, in order, when it is judged; `out` keeps the clips in out/videos.

    After Ctrl-C the results of what is already made still come, and then the interruption.
    """
    waiting: deque[list[Future[Result]]] = deque()
    interruption = None
    try:
        for batch in todo:
            waiting.append(_made(generator, batch, workers, sampler, out))
            while waiting and (len(waiting) > WAITING or all(future.done() for future in waiting[0])):
                yield [future.result() for future in waiting.popleft()]
    except KeyboardInterrupt as error:
        interruption = error
    while waiting:
        yield [future.result() for future in waiting.popleft()]
    if interruption:
        raise interruption


def _made(
    generator: Generator, batch: PromptBatch, workers: Executor, sampler: SamplerConfig | None, out: Path | None
) -> list[Future[Result]]:
    first = batch.prompts[0]
    given = render(pack([first.given]), 1)[0] if first.given else None
    texts = [prompt.text for prompt in batch.prompts]
    pixels_BCFHW = generator(texts, frames=first.frames, seed=batch.seeds, given=given, sampler=sampler)
    rgb_BCFHW = to_bytes(pixels_BCFHW).numpy()  # a quarter of the size on the way to another process
    fps = generator.config.video.fps
    return [workers.submit(judged, prompt, rgb, fps, out) for prompt, rgb in zip(batch.prompts, rgb_BCFHW, strict=True)]


def judged(prompt: Prompt, rgb_CFHW: np.ndarray, fps: int, out: Path | None) -> Result:
    """Mark one clip, and write its file if there is a folder for it."""
    pixels_CFHW = to_float(torch.from_numpy(rgb_CFHW))
    file = f"videos/{prompt.id}{'.png' if prompt.frames == 1 else '.webp'}" if out else ""
    if out:
        write_video(out / file, pixels_CFHW, fps, overwrite=True)
    verdict = judge(prompt.scene, pixels_CFHW, fps)
    classes = {name: verdict.all_of(attributes) for name, attributes in prompt.checks.items()}
    return Result(prompt.id, prompt.task, prompt.split, prompt.text, classes, verdict.marks, verdict.notes, file)
