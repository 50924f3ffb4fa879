"""Prompts -> generated clips -> marks of the judge, in fixed batches, with the judging beside the generating.

`measure` is the whole benchmark in memory, for a model that is still being trained; `lumos evaluate shapes` adds the folder.
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.judge.judge import judge
from lumos.evaluation.prompts import Prompt
from lumos.evaluation.scores import Result, summary
from lumos.evaluation.workers import Lanes, Workers
from lumos.generate import Generator
from lumos.media.video import write_video
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import Scene

AHEAD = 2  # batches that may wait to be judged


@dataclass(frozen=True)
class Batch:
    """Prompts that are generated together: one length, and one image to start from. Each has a seed of its own."""

    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]


def measure(
    generator: Generator,
    prompts: Sequence[Prompt],
    workers: Workers,
    sampler: SamplerConfig | None = None,
    seed: int = 0,
    batch: int | None = None,
) -> dict[str, Any]:
    """Scores of a model in memory (see `scores.summary`), nothing written. Raises ValueError for no prompts."""
    if not prompts:
        raise ValueError("prompts must be at least one, got none; take some of lumos.evaluation.prompts.benchmark()")
    todo = batches(prompts, batch or usual_batch(generator.device, in_lanes=True), seed)
    return summary([result for results in make(generator, todo, workers, sampler) for result in results])


def usual_batch(device: torch.device, in_lanes: bool = False) -> int:
    """Videos at a time: many where a pass costs the same for few; on the CPU few, and one where each core has its own."""
    return 104 if device.type != "cpu" else 1 if in_lanes else 4


def batches(prompts: Sequence[Prompt], size: int, seed: int) -> list[Batch]:
    """Always the same ones: images four times as many at a time; those that start from an image with others of that image."""
    if size < 1:
        raise ValueError(f"batch must be at least 1, got {size}; leave it out for the default")
    groups: dict[tuple[int, Scene | None], list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.frames, prompt.given), []).append(prompt)
    found: list[Batch] = []
    for (frames, _), group in groups.items():
        step = 4 * size if frames == 1 else size
        for start in range(0, len(group), step):
            part = tuple(group[start : start + step])
            found.append(Batch(part, tuple(zlib.crc32(f"{seed} {prompt.id}".encode()) for prompt in part)))
    return found


def make(
    generator: Generator, todo: Sequence[Batch], workers: Workers, sampler: SamplerConfig | None = None, out: Path | None = None
) -> Iterator[list[Result]]:
    """Generate batch after batch and yield the results of each, in order, when it is judged; `out` keeps the clips in out/videos.

    On the CPU several batches are made at the same time, see `Lanes`. After Ctrl-C the results of what is already made still
    come, and then the interruption.
    """
    waiting: deque[Future[list[Future[Result]]]] = deque()
    with Lanes(generator.device) as lanes:
        try:
            for each in todo:
                waiting.append(lanes.submit(_begin, generator, each, workers, sampler, out, lanes.check))
                while waiting and (len(waiting) >= lanes.count + AHEAD or _is_judged(waiting[0])):
                    yield [future.result() for future in waiting[0].result()]
                    waiting.popleft()
            while waiting:
                yield [future.result() for future in waiting[0].result()]
                waiting.popleft()
        except KeyboardInterrupt:
            lanes.stop()
            for begun in waiting:
                with suppress(KeyboardInterrupt, CancelledError):
                    yield [future.result() for future in begun.result()]
            raise


def _is_judged(begun: Future[list[Future[Result]]]) -> bool:
    return begun.done() and (begun.exception() is not None or all(future.done() for future in begun.result()))


def _begin(
    generator: Generator,
    batch: Batch,
    workers: Workers,
    sampler: SamplerConfig | None,
    out: Path | None,
    check: Callable[[int, int], None],
) -> list[Future[Result]]:
    first = batch.prompts[0]
    given = render(pack([first.given]), 1)[0] if first.given else None
    texts = [prompt.text for prompt in batch.prompts]
    pixels_BCFHW = generator(texts, frames=first.frames, seed=batch.seeds, given=given, sampler=sampler, progress=check)
    fps = generator.config.video.fps
    pairs = zip(batch.prompts, to_bytes(pixels_BCFHW), strict=True)
    return [workers.submit(judged, prompt, rgb_CFHW, fps, out) for prompt, rgb_CFHW in pairs]


def to_bytes(pixels: Tensor) -> np.ndarray:
    """Pixels in [-1, 1] as 0 to 255: a quarter of the size on the way to another process."""
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def to_pixels(rgb: np.ndarray) -> Tensor:
    """The other way round."""
    return torch.from_numpy(rgb).float() / 127.5 - 1


def judged(prompt: Prompt, rgb_CFHW: np.ndarray, fps: int, out: Path | None) -> Result:
    """Mark one clip, and write its file if there is a folder for it."""
    pixels_CFHW = to_pixels(rgb_CFHW)
    file = f"videos/{prompt.id}{'.png' if prompt.frames == 1 else '.webp'}" if out else ""
    if out:
        write_video(out / file, pixels_CFHW, fps, overwrite=True)
    verdict = judge(prompt.scene, pixels_CFHW, fps)
    classes = {name: verdict.all_of(attributes) for name, attributes in prompt.checks.items()}
    return Result(prompt.id, prompt.task, prompt.split, prompt.text, classes, verdict.marks, verdict.notes, file)
