"""Scenes of the stickers world: one to three stickers on a coloured ground, moved by the laws of the shapes world.

In: what is known of every sticker (`Sticker`). Out: scenes as plain data, drawn at random; captions.py puts them into words,
render.py into pixels. Some (noun, motion) pairs are never drawn for training.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lumos.worlds.shapes.motion import DIRECTIONS, SPEEDS
from lumos.worlds.shapes.palette import BACKGROUNDS, BLENDING
from lumos.worlds.shapes.placing import MARGIN, WHOLE, Box, lanes, straight_way
from lumos.worlds.shapes.scene import GRADIENTS, Background

WHITE = "white"
GROUNDS = {WHITE: (255, 255, 255), **BACKGROUNDS}
RADII = {"small": 0.14, "medium": 0.22, "large": 0.33}  # half the side of the sticker's square, in sides of the frame
FULL = 0.5  # a sticker that fills the frame
STICKER_MOTIONS = ("still", *DIRECTIONS, "bouncing", "circling", "growing", "shrinking", "spinning")
# motions for which a row of the frame is wide enough, and a column
IN_ROWS = ("still", "left", "right", "growing", "shrinking", "spinning")
IN_COLUMNS = ("still", "up", "down", "bouncing", "growing", "shrinking", "spinning")
HELD_OUT = 12  # one in so many (noun, motion) pairs is kept for judging


@dataclass(frozen=True)
class Sticker:
    """What is known of one sticker."""

    # without article, in words that follow "a small": "octopus", "man with beard"; "" where only whole captions are true
    noun: str
    captions: tuple[str, ...]  # of it alone, filling the frame over white
    mirror: bool = True  # it has no writing, hands of a clock, left or right
    animated: bool = True  # it moves by itself


@dataclass(frozen=True)
class PlacedSticker:
    """One sticker in a scene. x, y: its middle at time 0 (circling: the circle's; bouncing: on the ground)."""

    sticker: int  # its number
    size: str  # of RADII, or "full"
    motion: str = "still"
    speed: str = "normally"
    x: float = 0.5
    y: float = 0.5
    reach: float = 0.0  # straight: way until it rests; circling: radius; bouncing: height
    phase: float = 0.0  # circling: degrees on the circle at time 0
    mirrored: bool = False
    start: float = 0.0  # seconds of its own animation that have passed at time 0

    @property
    def radius(self) -> float:
        return FULL if self.size == "full" else RADII[self.size]


@dataclass(frozen=True)
class Scene:
    """Stickers side by side, and the ground behind them. Of those of one number all move alike, or the first at most."""

    ground: Background
    things: tuple[PlacedSticker, ...]


def is_kept_back(noun: str, motion: str) -> bool:
    """Whether training never shows this sticker in this motion."""
    return motion != "still" and zlib.crc32(f"{noun} {motion}".encode()) % HELD_OUT == 0


def sample_scene(rng: random.Random, stickers: Sequence[Sticker], held_out: bool = False) -> Scene:
    """Two in five scenes are a sticker as it comes, filling the frame; the others one to three that are placed and moved.

    held_out: False never draws a held-out (noun, motion) pair; True always gives the one sticker such a motion.
    """
    draw = 0.6 if held_out else rng.random()
    if draw < 0.4:
        number = rng.randrange(len(stickers))
        thing = PlacedSticker(number, "full", start=_start(rng), mirrored=stickers[number].mirror and rng.random() < 0.3)
        return Scene(Background(WHITE) if rng.random() < 0.7 else _ground(rng), (thing,))
    if draw < 0.75:
        one = _draft(rng, stickers, tuple(RADII), STICKER_MOTIONS, held_out)
        things: tuple[PlacedSticker, ...] = (_place(rng, WHOLE, one),)
    else:
        motions = rng.choice((IN_ROWS, IN_COLUMNS))
        rows = lanes(2 if draw < 0.94 else 3, columns=motions is IN_COLUMNS)
        boxes = rng.sample(rows, len(rows))
        sizes = ("small",) if len(boxes) == 3 else ("small", "medium")
        if draw < 0.88:  # two of any kind
            each = [_draft(rng, stickers, sizes, motions) for _ in boxes]
        else:  # alike; all move, or only the first
            first = _draft(rng, stickers, sizes, motions)
            still = first if rng.random() < 0.5 else replace(first, motion="still", speed="normally")
            each = [first, *[replace(still, start=_start(rng)) for _ in boxes[1:]]]
        things = tuple(_place(rng, box, thing) for box, thing in zip(boxes, each, strict=True))
    return Scene(_ground(rng), things)


def _start(rng: random.Random) -> float:
    return 0.0 if rng.random() < 0.3 else round(rng.uniform(0, 3), 2)


def _draft(
    rng: random.Random, stickers: Sequence[Sticker], sizes: tuple[str, ...], motions: tuple[str, ...], held_out: bool = False
) -> PlacedSticker:
    """A sticker that can be talked about, with a motion but no place yet."""
    while True:
        number = rng.randrange(len(stickers))
        still = 0.0 if held_out else 0.25 if stickers[number].animated else 0.1
        motion = "still" if rng.random() < still else rng.choice(motions[1:])
        noun = stickers[number].noun
        if noun and is_kept_back(noun, motion) == held_out:
            break
    speed = "normally" if motion == "still" or rng.random() < 0.5 else rng.choice(SPEEDS)
    changes = motion in ("growing", "shrinking")  # what is small would become too small to know
    size = rng.choice(sizes[1:] or sizes) if changes else rng.choice(sizes)
    mirrored = stickers[number].mirror and rng.random() < 0.3
    return PlacedSticker(number, size, motion, speed, start=_start(rng), mirrored=mirrored)


def _place(rng: random.Random, box: Box, thing: PlacedSticker) -> PlacedSticker:
    """The sticker somewhere in the box, with a reach that keeps it there."""
    room = thing.radius + MARGIN
    left, top, right, bottom = box[0] + room, box[1] + room, box[2] - room, box[3] - room
    reach = phase = 0.0
    if thing.motion in DIRECTIONS:
        reach, (left, top, right, bottom) = straight_way(rng, (left, top, right, bottom), thing.motion, thing.speed, (1.2, 2.5))
    elif thing.motion == "circling":
        reach = rng.uniform(0.5, 0.9) * min(right - left, bottom - top) / 2
        phase = round(rng.uniform(0, 360), 1)
        left, top, right, bottom = left + reach, top + reach, right - reach, bottom - reach
    elif thing.motion == "bouncing":
        reach = rng.uniform(0.5, 0.9) * min(0.4, bottom - top)
        top = top + reach
    return replace(thing, x=rng.uniform(left, right), y=rng.uniform(top, bottom), reach=round(reach, 4), phase=phase)


def _ground(rng: random.Random) -> Background:
    """White, one colour, or a gradient of two that go together."""
    colour = rng.choice((WHITE, *BACKGROUNDS, *BACKGROUNDS))
    others = [name for name in BACKGROUNDS if colour != WHITE and name in BLENDING[colour]]
    if others and rng.random() < 0.35:
        return Background(colour, rng.choice(GRADIENTS[1:]), rng.choice(others))
    return Background(colour)
