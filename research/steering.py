"""A video that is told something new, goes on for a minute, or is to end as a picture shows: does it, and does the rest stay?

`python -m research.steering --switches 64 --long 16 --pairs 48` prints a table: shares with their 95 % intervals,
times and memory, each beside what is wanted. Things are held-out pairs of colour and shape. Every second switch changes the
colour, too, the others the direction alone.
"""

import argparse
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d, interpolate

from lumos.config import PACKAGED
from lumos.evaluation.judge.colours import length, to_lab
from lumos.evaluation.judge.judge import BACKGROUND_APART
from lumos.evaluation.judge.motion_fit import Followed
from lumos.evaluation.judge.objects import Watched, watch
from lumos.evaluation.prompts import one_object
from lumos.evaluation.report import wilson
from lumos.evaluation.run import SIDE, usual_workers, worker_pool
from lumos.generate import Generator
from lumos.media.pixels import to_bytes, to_float
from lumos.session import Session
from lumos.tokenizer.compression import latent_frames, pixel_frames
from lumos.tokenizer.losses import psnr
from lumos.worlds.shapes.captions import canonical_caption
from lumos.worlds.shapes.motion import DIRECTIONS
from lumos.worlds.shapes.palette import COLOURS, CONTRASTING
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import HELD_OUT_PAIRS, sample_one
from lumos.worlds.shapes.thing import SPINNERS

CLIP = 2.0  # seconds that the judge sees
PATCH = 24  # sides of the picture of a thing that is compared, in pixels
OPPOSITE = {
    name: next(o for o, way in DIRECTIONS.items() if np.allclose(np.add(way, DIRECTIONS[name]), 0)) for name in DIRECTIONS
}
Row = tuple[str, str, str]  # what, measured, wanted
See = Callable[[list[Tensor]], list[Watched]]  # clips of bytes, rgb_CFHW, judged side by side


def take(session: Session, count: int) -> Tensor:
    """rgb_CFHW of the next latent frames."""
    return to_bytes(torch.cat(list(islice(session, count)), dim=2)[0])


def look(fps: float, rgb_CFHW: Tensor) -> Watched:
    pixels_CFHW = to_float(rgb_CFHW)
    return watch(adaptive_avg_pool3d(pixels_CFHW, (pixels_CFHW.shape[1], SIDE, SIDE)), fps)


def see_all(workers: Executor, fps: float, clips: list[Tensor]) -> list[Watched]:
    return list(workers.map(partial(look, fps), clips))


def main_object(watched: Watched) -> Followed | None:
    return max(watched.objects, key=lambda each: float(each.seen.sum() * np.nanmean(each.radius)), default=None)


def clip_latents(generator: Generator) -> int:
    """Latent frames of CLIP seconds."""
    return round(CLIP * generator.config.video.fps / generator.tokenizer.temporal)


def switches(generator: Generator, count: int, seed: int, see: See) -> list[Row]:
    """What a second sentence names (from the second latent frame after it on), and what it does not."""
    marks: dict[str, list[bool]] = {name: [] for name in ("direction", "same colour", "another colour", "shape", "background")}
    waits, rates, clips, told = [], [], [], []
    latent = clip_latents(generator)
    for number, prompt in enumerate(one_object(count)):
        thing, ground = prompt.scene.things[0], prompt.scene.background
        others = [name for name in COLOURS if name != thing.colour and ground.colour in CONTRASTING[name]]
        colour = random.Random(number).choice(others) if number % 2 else thing.colour
        told.append(replace(thing, motion=OPPOSITE[thing.motion], colour=colour))
        session = generator.session(prompt.text, seed + number)
        clips.append(take(session, latent + 1))
        session.say(canonical_caption(replace(prompt.scene, things=(told[-1],))))
        begin = time.perf_counter()
        take(session, 1)
        waits.append(time.perf_counter() - begin)
        clips.append(take(session, latent))
        rates.append(generator.tokenizer.temporal * (latent + 1) / (time.perf_counter() - begin))
    seen = see(clips)
    for number, (wanted, before, after) in enumerate(zip(told, seen[::2], seen[1::2], strict=True)):
        was, now = main_object(before), main_object(after)
        marks["direction"].append(now is not None and now.motion.path == wanted.motion)
        marks["another colour" if number % 2 else "same colour"].append(now is not None and now.colour == wanted.colour)
        marks["shape"].append(bool(was and now and now.likely_shape == was.likely_shape))
        lab = [to_lab(np.median(watched.view.ground_FPC, axis=0)) for watched in (before, after)]
        marks["background"].append(float(length(lab[1] - lab[0]).mean()) < BACKGROUND_APART)
    stays = ("shape", "background")
    return [
        *((f"after say: {name}", share(of), "90 %" if name in stays else "85 %") for name, of in marks.items() if of),
        ("from say to its first frames, median", f"{median(waits):.3f} s", "0.15 s on an H100, 3 s on 2 cores"),
        ("frames a second while steering", f"{median(rates):.1f}", "100 on an H100"),
    ]


def endurance(generator: Generator, count: int, seconds: float, seed: int, see: See) -> list[Row]:
    """Things that stay where they are, without a new sentence: the first and last CLIP seconds of `count` videos at once."""
    latent, temporal = clip_latents(generator), generator.tokenizer.temporal
    whole = latent_frames(1 + temporal * round(seconds * generator.config.video.fps / temporal), temporal)
    scenes = []
    for number in range(count):
        rng = random.Random(f"steering, {number}")
        pair = HELD_OUT_PAIRS[number % len(HELD_OUT_PAIRS)]
        spins = number % 2 == 1 and pair[1] in SPINNERS
        scenes.append(sample_one(rng, motion="spinning" if spins else "still", pair=pair))
    first, last, memory = [], [], []
    prompts = [canonical_caption(scene) for scene in scenes]
    begin = time.perf_counter()
    made = generator.stream(prompts, frames=pixel_frames(whole, temporal), seed=[seed + number for number in range(count)])
    for number, pixels_BCFHW in enumerate(made):
        if number <= latent:
            first.append(to_bytes(pixels_BCFHW))
        if number >= whole - latent:
            last.append(to_bytes(pixels_BCFHW))
        if number in (latent, whole - 1):
            memory.append(held(generator))
    took = time.perf_counter() - begin
    clips = [*torch.cat(first, dim=2), *torch.cat(last, dim=2)]
    seen = see(clips)
    marks: dict[str, list[bool]] = {"colour": [], "shape": []}
    apart: list[tuple[float, float]] = []
    for number, (scene, before, after) in enumerate(zip(scenes, seen[:count], seen[count:], strict=True)):
        was, now = main_object(before), main_object(after)
        marks["colour"].append(now is not None and now.colour == scene.things[0].colour)
        marks["shape"].append(now is not None and now.likely_shape == scene.things[0].shape)
        if was and scene.things[0].motion == "still":  # one that spins looks different at any time
            start_F, end_F = portraits(clips[number], was), portraits(clips[count + number], now or was)
            apart.append((distance(start_F[1:], start_F[:1]), distance(end_F, start_F[:1])))
    ratio = f"{mean(end for _, end in apart) / mean(start for start, _ in apart):.2f}" if apart else "-"
    sizes = " and ".join(f"{size / 2**20:.0f}" for size in memory)
    return [
        *((f"{name} after {seconds:g} s of one sentence", share(found), "90 %") for name, found in marks.items()),
        (f"identity distance after {seconds:g} s over that of {CLIP:g} s, {len(apart)} things", ratio, "at most 1.3"),
        (f"MiB held after {CLIP:g} and {seconds:g} s, {count} videos at once, {took:.0f} s", sizes, "constant"),
    ]


def portraits(rgb_CFHW: Tensor, thing: Followed) -> Tensor:
    """A thing as each frame shows it: its surroundings of 1.25 radii, as pixels_FCHW of PATCH."""
    side = rgb_CFHW.shape[-1]
    (x, y), reach = thing.place, 1.25 * float(np.nanmedian(thing.radius))
    top, left, size = round((y - reach) * side), round((x - reach) * side), max(2, round(2 * reach * side))
    rows = slice(min(max(0, top), side - 2), max(2, min(side, top + size)))
    columns = slice(min(max(0, left), side - 2), max(2, min(side, left + size)))
    return interpolate(to_float(rgb_CFHW[:, :, rows, columns]).transpose(0, 1), (PATCH, PATCH), mode="area")


def distance(pixels_FCHW: Tensor, first_FCHW: Tensor) -> float:
    """Mean of the frames' root mean square distance to the first."""
    return float((pixels_FCHW - first_FCHW).square().mean((1, 2, 3)).sqrt().mean())


def first_and_last(generator: Generator, count: int, seed: int, see: See) -> list[Row]:
    """Videos from a clip's first picture to its last one: how near the end comes to it, and whether the way is one motion."""
    video = generator.config.video
    clips, below, before, prompts = [], [], [], one_object(count)
    for number, prompt in enumerate(prompts):
        clip_BCFHW = render(pack([prompt.scene]), video.frames, video.height, video.fps).to(generator.device)
        end_BCFHW = clip_BCFHW[:, :, -1:]
        keyframes = {video.frames - 1: end_BCFHW[0, :, 0]}
        made_BCFHW = generator(prompt.text, seed=seed + number, given=clip_BCFHW[0, :, :1], keyframes=keyframes).to(
            generator.device
        )
        with torch.inference_mode():
            tokenizer = generator.tokenizer
            below.append(lost(tokenizer.decode(tokenizer.encode(end_BCFHW)), made_BCFHW[:, :, -1:], end_BCFHW))
            again_BCFHW = tokenizer.decode(tokenizer.encode(clip_BCFHW))
            before.append(lost(*(each[:, :, -2:-1] for each in (again_BCFHW, made_BCFHW, clip_BCFHW))))
        clips.append(to_bytes(made_BCFHW[0]))
    is_one, is_told = [], []
    for prompt, watched in zip(prompts, see(clips), strict=True):
        paths = [each.motion.path for each in watched.objects]
        is_one.append(len(paths) == 1 and paths[0] in DIRECTIONS)
        is_told.append(paths == [prompt.scene.things[0].motion])
    return [
        ("last frame: dB below the tokenizer's own PSNR, median", f"{median(below):.1f}", "at most 3"),
        ("last frame: at most 3 dB below", share([each <= 3 for each in below]), ""),
        ("the frame before it, which the model draws, median", f"{median(before):.1f}", ""),
        ("from first to last: one motion", share(is_one), "85 %"),
        ("from first to last: the one that is told", share(is_told), ""),
    ]


def lost(again_BCFHW: Tensor, made_BCFHW: Tensor, real_BCFHW: Tensor) -> float:
    """How many dB the made frames are farther from the real ones than the tokenizer's own are."""
    return float(psnr(again_BCFHW, real_BCFHW) - psnr(made_BCFHW, real_BCFHW))


def held(generator: Generator) -> int:
    """Bytes that the device has given out, or of this process."""
    if generator.device.type == "cuda":
        return torch.cuda.memory_allocated(generator.device)
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def share(marks: Sequence[bool]) -> str:
    low, high = wilson(sum(marks), len(marks))
    return f"{sum(marks)} of {len(marks)} ({low:.0%} to {high:.0%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=PACKAGED)
    parser.add_argument("--device")
    parser.add_argument("--switches", type=int, default=64)
    parser.add_argument("--long", type=int, default=16, help="videos of --seconds without a new sentence, made at once")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pairs", type=int, default=48, help="videos from a first picture to a last one")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = Generator.from_folder(args.weights, args.device)
    take(generator.session("a red circle"), 2)  # what happens only once
    print("| what | measured | wanted |\n| --- | --- | --- |", flush=True)
    with worker_pool(usual_workers(generator.device)) as workers:
        see = partial(see_all, workers, generator.config.video.fps)
        for measure, count in (
            (switches, args.switches),
            (partial(endurance, seconds=args.seconds), args.long),
            (first_and_last, args.pairs),
        ):
            begin = time.perf_counter()
            rows = measure(generator, count, seed=args.seed, see=see) if count else []
            for row in rows:
                print(f"| {' | '.join(row)} |")
            print(f"<!-- {time.perf_counter() - begin:.0f} s -->", flush=True)


if __name__ == "__main__":
    main()
