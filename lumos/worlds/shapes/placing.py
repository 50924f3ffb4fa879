"""Where things go: every thing gets a box of the frame for itself, and a place in which its whole way stays inside that box.

So nothing leaves the frame and nothing overlaps, however long the clip, without a simulation.
"""

import itertools
import random
from dataclasses import replace

from lumos.worlds.shapes.motion import DIRECTIONS, TRAVEL
from lumos.worlds.shapes.thing import REACH, SIZES, Thing

MARGIN = 0.02  # left free around every thing, in frame widths
CLEAR_TRAVEL = 0.27  # what a straight motion has room for at least

Box = tuple[float, float, float, float]  # left, top, right, bottom
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def place(rng: random.Random, box: Box, thing: Thing) -> Thing:
    """The thing somewhere in the box, with a reach that keeps it there."""
    left, top, right, bottom = box
    room = half(thing.size)
    left, top, right, bottom = left + room, top + room, right - room, bottom - room  # where its centre may be
    reach = phase = 0.0
    if thing.motion in DIRECTIONS:
        reach, (left, top, right, bottom) = straight_way(rng, (left, top, right, bottom), thing.motion, thing.speed, (2.0, 4.0))
    elif thing.motion == "circling":
        reach = rng.uniform(0.12, min(0.26, (right - left) / 2, (bottom - top) / 2))
        phase = round(rng.uniform(0, 360), 1)
        left, top, right, bottom = left + reach, top + reach, right - reach, bottom - reach
    elif thing.motion == "bouncing":
        reach = rng.uniform(0.2, min(0.4, bottom - top))
        top = top + reach
    assert right > left - 1e-9 and bottom > top - 1e-9, (box, thing)
    return replace(moved(thing, rng.uniform(left, right), rng.uniform(top, bottom)), reach=round(reach, 4), phase=phase)


def straight_way(rng: random.Random, box: Box, motion: str, speed: str, seconds: tuple[float, float]) -> tuple[float, Box]:
    """How far something goes whose centre stays in the box, for so many seconds if there is room; and where it may start."""
    left, top, right, bottom = box
    way_x, way_y = DIRECTIONS[motion]
    longest = min((right - left) / abs(way_x) if way_x else 9.0, (bottom - top) / abs(way_y) if way_y else 9.0)
    reach = rng.uniform(*(min(count * TRAVEL[speed], longest) for count in seconds))
    left, right = left + max(-way_x, 0) * reach, right - max(way_x, 0) * reach
    return reach, (left, top + max(-way_y, 0) * reach, right, bottom - max(way_y, 0) * reach)


def place_crossing(rng: random.Random, mover: Thing, other: Thing) -> tuple[Thing, Thing]:
    """The mover's straight way leads past the other, from beside it on one side to beside it on the other."""
    room, clear = half(mover.size), beside(mover, other)
    middle = 0.5 + rng.uniform(-1, 1) * max(0.5 - room - clear, 0.0)
    start = max(middle - clear - rng.uniform(0.0, 0.02), room)
    least, most = middle + clear - start, 1 - room - start
    reach = rng.uniform(least, min(max(4 * TRAVEL[mover.speed], least), most))
    level = rng.uniform(half(other.size), 1 - half(other.size))
    mover_level = min(max(level + rng.uniform(-0.3, 0.3) * SIZES[mover.size], room), 1 - room)
    if mover.motion in ("left", "up"):
        start, middle = 1 - start, 1 - middle
    mover = replace(mover, reach=round(reach, 4))
    if mover.motion in ("left", "right"):
        return moved(mover, start, mover_level), moved(other, middle, level)
    return moved(mover, mover_level, start), moved(other, level, middle)


def place_side_by_side(rng: random.Random, low: Thing, high: Thing, vertical: bool) -> tuple[Thing, Thing]:
    """Two things that stay in place: `low` left of `high`, or (vertical) above it, and no other relation nearly as true."""
    half_low, half_high = half(low.size), half(high.size)
    split = rng.uniform(2 * half_low, 1 - 2 * half_high)
    along_low, along_high = rng.uniform(half_low, split - half_low), rng.uniform(split + half_high, 1 - half_high)
    widest = max(half_low, half_high)
    level = rng.uniform(widest, 1 - widest)
    level_low = min(max(level + rng.uniform(-0.05, 0.05), half_low), 1 - half_low)
    level_high = min(max(level + rng.uniform(-0.05, 0.05), half_high), 1 - half_high)
    if vertical:
        return moved(low, level_low, along_low), moved(high, level_high, along_high)
    return moved(low, along_low, level_low), moved(high, along_high, level_high)


def two_boxes(rng: random.Random, one: Thing, other: Thing) -> tuple[Box, Box] | None:
    """Two columns or two rows in which the two things have room to move, if there are any."""
    (wide, high), (other_wide, other_high) = _need(one), _need(other)
    columns, rows = wide + other_wide <= 1, high + other_high <= 1
    if columns and (not rows or rng.random() < 0.5):
        split = rng.uniform(wide, 1 - other_wide)
        return (0.0, 0.0, split, 1.0), (split, 0.0, 1.0, 1.0)
    if rows:
        split = rng.uniform(high, 1 - other_high)
        return (0.0, 0.0, 1.0, split), (0.0, split, 1.0, 1.0)
    return None


def lanes(count: int, columns: bool) -> tuple[Box, ...]:
    """Columns or rows of equal width."""
    spans = itertools.pairwise(i / count for i in range(count + 1))
    return tuple((low, 0.0, high, 1.0) if columns else (0.0, low, 1.0, high) for low, high in spans)


def cells(rng: random.Random, count: int) -> tuple[Box, ...]:
    """Boxes for things that stay in place: lanes, or two quarters and a half."""
    columns = rng.random() < 0.65
    if count == 2 or rng.random() < 0.35:
        return lanes(count, columns)
    boxes: list[Box] = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)]
    if rng.random() < 0.5:
        boxes = [(left, 1 - bottom, right, 1 - top) for left, top, right, bottom in boxes]
    if not columns:
        boxes = [(top, left, bottom, right) for left, top, right, bottom in boxes]
    rng.shuffle(boxes)
    return tuple(boxes)


def fitting(boxes: tuple[Box, ...], sizes: tuple[str, ...]) -> tuple[str, ...]:
    """The sizes that fit into the narrowest box."""
    narrowest = min(min(right - left, bottom - top) for left, top, right, bottom in boxes)
    return tuple(size for size in sizes if 2 * half(size) <= narrowest)


def beside(one: Thing, other: Thing) -> float:
    """The distance of their centres at which two things are beside each other."""
    return SIZES[one.size] + SIZES[other.size]


def half(size: str) -> float:
    """Half the side of the box that a thing needs when it does not move."""
    return REACH * SIZES[size] + MARGIN


def moved(thing: Thing, x: float, y: float) -> Thing:
    """The thing elsewhere. Rounded, so that a scene is short to print."""
    return replace(thing, x=round(float(x), 4), y=round(float(y), 4))


def _need(thing: Thing) -> tuple[float, float]:
    """Width and height of the smallest box for a thing and its motion."""
    side = 2 * half(thing.size)
    if thing.motion in DIRECTIONS:
        way_x, way_y = DIRECTIONS[thing.motion]
        return side + abs(way_x) * CLEAR_TRAVEL, side + abs(way_y) * CLEAR_TRAVEL
    if thing.motion == "circling":
        return side + 0.26, side + 0.26
    if thing.motion == "bouncing":
        return side, side + 0.24
    return side, side
