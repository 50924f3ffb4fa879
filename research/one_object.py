"""The first thing to measure of a model: 64 held-out one-object prompts, dominant colour and direction of motion from pixels.

`python -m research.one_object` prints both shares with their counts. What is seen is named without the scene.
"""

import argparse
import itertools
import json
import math
import sys
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lumos.config import PACKAGED
from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.judge.background import look
from lumos.evaluation.judge.regions import Blob
from lumos.evaluation.prompts import one_object
from lumos.evaluation.report import wilson
from lumos.evaluation.run import usual_batch, usual_workers, worker_pool
from lumos.generate import Generator
from lumos.media.pixels import to_bytes, to_float
from lumos.media.sheet import contact_sheet
from lumos.worlds.shapes.motion import DIRECTIONS

LEAST_WAY = 0.07  # frame widths: less is no motion


def measure_one_object(
    generator: Generator,
    count: int = 64,
    seed: int = 0,
    batch: int | None = None,
    sampler: SamplerConfig | None = None,
    sheet: Path | None = None,
    workers: Executor | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Shares of clips of 17 frames whose dominant colour and direction of motion are as told, and what was seen instead.

    batch: clips at a time (default 4 on the CPU, 104 on CUDA). sheet: a PNG to draw all clips on.
    """
    prompts, batch, workers = one_object(count), batch or usual_batch(generator.device), workers or worker_pool(0)
    pixels, waiting = [], []
    for start in range(0, count, batch):
        texts = [prompt.text for prompt in prompts[start : start + batch]]
        made_BCFHW = to_bytes(
            generator(texts, frames=17, seed=[1000 * seed + start + i for i in range(len(texts))], sampler=sampler)
        ).numpy()
        waiting += [workers.submit(look_without_scene, rgb_CFHW) for rgb_CFHW in made_BCFHW]
        pixels += [to_float(torch.from_numpy(rgb_CFHW)) for rgb_CFHW in made_BCFHW] if sheet else []
        if not quiet:
            print(f"{len(waiting)} of {count} clips", file=sys.stderr, flush=True)
    seen = [future.result() for future in waiting]
    wanted = [(prompt.scene.things[0].colour, prompt.scene.things[0].motion) for prompt in prompts]
    if sheet:
        captions = [f"{prompt.text} (saw {colour}, {way})" for prompt, (colour, way) in zip(prompts, seen, strict=True)]
        contact_sheet(torch.stack(pixels), captions).save(sheet)
    wrong = [
        {"prompt": prompt.text, "colour": saw[0], "direction": saw[1]}
        for prompt, want, saw in zip(prompts, wanted, seen, strict=True)
        if want != saw
    ]
    shares = {
        name: _share([want[i] == saw[i] for want, saw in zip(wanted, seen, strict=True)])
        for i, name in enumerate(("colour", "direction"))
    }
    return {**shares, "wrong": wrong}


def look_without_scene(rgb_CFHW: np.ndarray) -> tuple[str | None, str | None]:
    """Dominant colour and direction of a clip."""
    pixels_CFHW = to_float(torch.from_numpy(rgb_CFHW))
    return dominant_colour(pixels_CFHW), direction(pixels_CFHW)


def dominant_colour(pixels_CFHW: torch.Tensor) -> str | None:
    """The colour name of what stands out most over the whole clip, or None when nothing does."""
    return _most_seen(look(pixels_CFHW).blobs)


def direction(pixels_CFHW: torch.Tensor) -> str | None:
    """Which of the eight directions the largest object moves in, or None: nothing moves, or not straight."""
    blobs = look(pixels_CFHW).blobs
    colour = _most_seen(blobs)
    path = [
        max([blob for blob in frame if blob.colour == colour] or frame, key=lambda blob: blob.area * min(blob.strength, 1.0))
        for frame in blobs
        if frame
    ]
    if len(path) < 3:
        return None
    place = np.array([(blob.x, blob.y) for blob in path])
    end = len(place) // 4 + 1
    way = np.median(place[-end:], axis=0) - np.median(place[:end], axis=0)
    length = math.hypot(*way)
    aside = np.abs((place - place[0]) @ np.array([-way[1], way[0]])) / max(length, 1e-6)
    back = -np.minimum(np.diff(place @ way) / max(length, 1e-6), 0).sum()
    if length < LEAST_WAY or aside.max() > max(0.25 * length, 0.04) or back > 0.35 * length:
        return None
    return max(DIRECTIONS, key=lambda name: float(way @ np.array(DIRECTIONS[name])))


def _most_seen(blobs: list[list[Blob]]) -> str | None:
    votes: dict[str, float] = {}
    for blob in itertools.chain.from_iterable(blobs):
        votes[blob.colour] = votes.get(blob.colour, 0.0) + blob.area * min(blob.strength, 1.0)
    return max(votes, key=votes.__getitem__) if votes else None


def _share(right: list[bool]) -> dict[str, float]:
    low, high = wilson(sum(right), len(right))
    return {"right": sum(right), "of": len(right), "score": sum(right) / len(right), "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description="Dominant colour and direction of motion over held-out one-object prompts.")
    parser.add_argument("--weights", default=PACKAGED, help=f"name of weights in the package, or a folder (default: {PACKAGED})")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--count", type=int, default=64, help="prompts (default: 64)")
    parser.add_argument("--batch", type=int, default=None, help="clips at a time (default: 104 on CUDA, else 4)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--sheet", type=Path, default=None, help="PNG to draw all clips on")
    args = parser.parse_args()
    generator = Generator.from_folder(args.weights, args.device)
    with worker_pool(usual_workers(generator.device)) as workers:
        report = measure_one_object(generator, args.count, args.seed, args.batch, sheet=args.sheet, workers=workers)
    for name in ("colour", "direction"):
        share = report[name]
        print(
            f"{name}: {share['right']} of {share['of']} right, {100 * share['score']:.1f} % "
            f"(95 %: {100 * share['low']:.1f} to {100 * share['high']:.1f})"
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
