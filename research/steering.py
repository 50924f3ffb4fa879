"""A session that is told something new: does it follow, does the rest stay, does it last, and how quickly does it answer?

`python -m research.steering --weights tiny --switches 64 --seconds 60` prints shares with their counts, times and memory.
Sentences are held-out pairs of colour and shape; every second switch changes the colour, too, the others the direction alone.
"""

import argparse
import json
import os
import random
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lumos.evaluation.judge.colours import length, to_lab
from lumos.evaluation.judge.judge import BACKGROUND_APART
from lumos.evaluation.judge.motion_fit import Followed
from lumos.evaluation.judge.objects import Watched, watch
from lumos.evaluation.prompts import one_object
from lumos.evaluation.scores import wilson
from lumos.generate import Generator
from lumos.session import Session
from lumos.worlds.shapes.captions import canonical_caption
from lumos.worlds.shapes.motion import DIRECTIONS
from lumos.worlds.shapes.palette import COLOURS, CONTRASTING
from lumos.worlds.shapes.scene import HELD_OUT_PAIRS, sample_one

CLIP = 4  # latent frames that the judge sees: two seconds
OPPOSITE = {
    name: next(o for o, way in DIRECTIONS.items() if np.allclose(np.add(way, DIRECTIONS[name]), 0)) for name in DIRECTIONS
}


def take(session: Session, count: int) -> Tensor:
    """pixels_CFHW of the next latent frames."""
    return torch.cat(list(islice(session, count)), dim=2)[0].float().cpu()


def main_object(watched: Watched) -> Followed | None:
    return max(watched.objects, key=lambda each: float(each.seen.sum() * np.nanmean(each.radius)), default=None)


def switches(generator: Generator, count: int, seed: int) -> dict[str, Any]:
    """Marks of what a second sentence names (from the second latent frame after it on), and of what it does not."""
    marks: dict[str, list[bool]] = {name: [] for name in ("direction", "colour", "changed colour", "shape", "background")}
    waits, rates = [], []
    for number, prompt in enumerate(one_object(count)):
        thing, ground = prompt.scene.things[0], prompt.scene.background
        others = [name for name in COLOURS if name != thing.colour and ground.colour in CONTRASTING[name]]
        colour = random.Random(number).choice(others) if number % 2 else thing.colour
        told = replace(thing, motion=OPPOSITE[thing.motion], colour=colour)
        session = generator.session(prompt.text, seed + number)
        before = watch(take(session, CLIP + 1))
        session.say(canonical_caption(replace(prompt.scene, things=(told,))))
        begin = time.perf_counter()
        take(session, 1)
        waits.append(time.perf_counter() - begin)
        after = watch(take(session, CLIP))
        rates.append(4 * (CLIP + 1) / (time.perf_counter() - begin))
        was, now = main_object(before), main_object(after)
        marks["direction"].append(now is not None and now.motion.path == told.motion)
        marks["changed colour" if number % 2 else "colour"].append(now is not None and now.colour == told.colour)
        marks["shape"].append(bool(was and now and now.likely_shape == was.likely_shape))
        lab = [to_lab(np.median(watched.view.ground_FPC, axis=0)) for watched in (before, after)]
        marks["background"].append(float(length(lab[1] - lab[0]).mean()) < BACKGROUND_APART)
    shares = {name: share(found) for name, found in marks.items() if found}
    return {**shares, "seconds from say to its first frames": round(median(waits), 3), "frames a second": round(median(rates), 1)}


def endurance(generator: Generator, count: int, seconds: float, seed: int) -> dict[str, Any]:
    """Colour and shape of things that stay, in the last two of so many seconds without a new sentence; memory on the way."""
    marks: dict[str, list[bool]] = {"colour at the end": [], "shape at the end": []}
    memory = []
    for number in range(count):
        rng = random.Random(f"steering, {number}")
        scene = sample_one(rng, motion="spinning" if number % 2 else "still", pair=HELD_OUT_PAIRS[number % len(HELD_OUT_PAIRS)])
        session = generator.session(canonical_caption(scene), seed + number)
        take(session, CLIP + 1)
        memory.append(held(generator))
        for _ in range(round(seconds * generator.config.video.fps) // 4 - 2 * CLIP):
            next(session)
        clip = take(session, CLIP)
        memory.append(held(generator))  # before the judge takes its own
        now = main_object(watch(clip))
        marks["colour at the end"].append(now is not None and now.colour == scene.things[0].colour)
        marks["shape at the end"].append(now is not None and now.likely_shape == scene.things[0].shape)
    shares = {name: share(found) for name, found in marks.items() if found}
    return {**shares, "MiB after 2 s and at the end, each": [round(each / 2**20) for each in memory]}


def held(generator: Generator) -> int:
    """Bytes that the device has given out, or of this process."""
    if generator.device.type == "cuda":
        return torch.cuda.memory_allocated(generator.device)
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def share(marks: list[bool]) -> str:
    low, high = wilson(sum(marks), len(marks))
    return f"{sum(marks)} of {len(marks)} ({low:.0%} to {high:.0%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="tiny")
    parser.add_argument("--device")
    parser.add_argument("--switches", type=int, default=64)
    parser.add_argument("--long", type=int, default=16, help="sessions of --seconds without a new sentence")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = Generator.from_folder(args.weights, args.device)
    take(generator.session("a red circle"), 2)  # what happens only once
    found = {"switches": switches(generator, args.switches, args.seed)} if args.switches else {}
    if args.long:
        found["long"] = endurance(generator, args.long, args.seconds, args.seed)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
