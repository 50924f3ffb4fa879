"""Scenes of the shapes world: plain data that says what is in a clip, where, and how it moves; and how to draw one at random.

A scene is the exact truth of its clip: captions.py puts it into words, render.py into pixels, and videos are judged
against it. Things stay inside the frame for the whole clip, however long, and never overlap unless the relation says so.
"""

import random
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from lumos.worlds.shapes.motion import DIAGONAL, DIRECTIONS, IN_PLACE, STRAIGHT, TRAVEL
from lumos.worlds.shapes.palette import BACKGROUND_FAMILIES, BACKGROUNDS, BLENDING, COLOURS, CONTRASTING
from lumos.worlds.shapes.placing import (
    WHOLE,
    beside,
    cells,
    fitting,
    lanes,
    moved,
    place,
    place_crossing,
    place_side_by_side,
    two_boxes,
)
from lumos.worlds.shapes.thing import SHAPES, SIZES, SPINNERS, TEXTURES, Thing

RELATIONS = ("none", "left of", "right of", "above", "below", "in front of", "behind")
GRADIENTS = ("plain", "across", "down", "diagonal")
Pair = tuple[str, str]  # colour and shape


@dataclass(frozen=True)
class Background:
    """One colour, or a gradient from `colour` to `other`: to the right ("across"), "down", or to bottom right ("diagonal")."""

    colour: Annotated[str, Literal[tuple(BACKGROUNDS)]]
    gradient: Annotated[str, Literal[GRADIENTS]] = "plain"
    other: Annotated[str, Literal[("", *BACKGROUNDS)]] = ""


@dataclass(frozen=True)
class Scene:
    """A background, one to three things, and how the first stands to the second.

    Later things are drawn over earlier ones, except that a first thing "in front of" the second is drawn last.
    A thing in front of or behind another either is still and overlaps it, or passes it in a straight line.
    """

    background: Background
    things: tuple[Thing, ...]
    relation: Annotated[str, Literal[RELATIONS]] = "none"


# The (colour, shape) pairs that training never shows: one in ten, so spread that every colour and shape is seen often.
PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
HELD_OUT_PAIRS: tuple[Pair, ...] = tuple(
    (colour, shape) for i, colour in enumerate(COLOURS) for j, shape in enumerate(SHAPES) if (3 * i + 7 * j) % 10 == 4
)
SEEN_PAIRS: tuple[Pair, ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)


def sample_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """A scene of the training mixture: 30 % one thing, 30 % two, 18 % counting, 12 % occlusion, 10 % three things.

    held_out: False never draws a held-out (colour, shape) pair, True makes the first thing one.
    """
    mixture = ((0.30, sample_one), (0.60, sample_two), (0.78, sample_count), (0.90, sample_occlusion), (1.0, sample_three))
    draw = rng.random()
    return next(sample for below, sample in mixture if draw < below)(rng, held_out=held_out)


def freeze(scene: Scene) -> Scene:
    """The scene with every motion stopped at time 0, all things seen; one that passes another stops where it partly covers it."""
    things = tuple(_stopped(thing) for thing in scene.things)
    if scene.relation in ("in front of", "behind") and scene.things[0].motion in DIRECTIONS:
        mover, other = scene.things
        way_x, way_y = DIRECTIONS[mover.motion]
        along = (other.x - mover.x) * way_x + (other.y - mover.y) * way_y - 0.6 * beside(mover, other)
        things = (moved(things[0], mover.x + along * way_x, mover.y + along * way_y), things[1])
    return replace(scene, things=things)


def sample_one(
    rng: random.Random, motion: str | None = None, speed: str | None = None, pair: Pair | None = None, held_out: bool = False
) -> Scene:
    """One thing; motion, speed and (colour, shape) are drawn unless given."""
    motion = motion or _pick_motion(rng, pair)
    speed = speed or _pick_speed(rng, motion)
    thing = place(rng, WHOLE, _draft(rng, pair or _pick_pair(rng, motion, held_out), motion, tuple(SIZES), speed))
    return Scene(_pick_background(rng, (thing.colour,)), (thing,))


def sample_two(rng: random.Random, relation: str | None = None, held_out: bool = False) -> Scene:
    """Two different things; the relation is drawn unless given.

    relation: "left of", "right of", "above" or "below" for things that stay in their places, "none" for any motions.
    """
    if relation is None:
        relation = rng.choice(("left of", "right of", "above", "below")) if rng.random() < 0.6 else "none"
    things = _two_moving(rng, held_out) if relation == "none" else _two_related(rng, relation, held_out)
    return Scene(_pick_background(rng, tuple(thing.colour for thing in things)), things, relation)


def sample_count(rng: random.Random, count: int | None = None, held_out: bool = False) -> Scene:
    """Two or three things alike, all moving alike: in place, or straight left, right, up or down."""
    count = count or rng.choice((2, 3))
    motion = "still" if rng.random() < 0.55 else rng.choice((*IN_PLACE[1:], *STRAIGHT))
    boxes = lanes(count, columns=motion in ("up", "down")) if motion in STRAIGHT else cells(rng, count)
    pair = _pick_pair(rng, motion, held_out)
    draft = _draft(rng, pair, motion, fitting(boxes, ("small", "medium")))
    return Scene(_pick_background(rng, (draft.colour,)), tuple(place(rng, box, draft) for box in boxes))


def sample_occlusion(
    rng: random.Random, relation: str | None = None, passing: bool | None = None, held_out: bool = False
) -> Scene:
    """One thing "in front of" or "behind" another that stands still: passing it (usually), or still and partly covering it."""
    relation = relation or rng.choice(("in front of", "behind"))
    passing = rng.random() < 0.85 if passing is None else passing
    first, second = _pick_pairs(rng, "still", "still", held_out, same_colour=False)
    mover = _draft(rng, first, rng.choice(STRAIGHT), ("small", "medium"), "quickly")
    sizes = ("small", "medium", "large") if mover.size == "small" else ("small", "medium")
    other = _draft(rng, second, "still", sizes)
    if 2 * beside(mover, other) < 1.95 * TRAVEL["normally"] and rng.random() < 0.7:  # so that it is past in two seconds
        mover = replace(mover, speed="normally")
    scene = Scene(_pick_background(rng, (mover.colour, other.colour)), place_crossing(rng, mover, other), relation)
    return scene if passing else freeze(scene)


def sample_three(rng: random.Random, held_out: bool = False) -> Scene:
    """Three things of different colours, all still or one of them with a motion in place."""
    mover = rng.choice((-1, -1, 0, 1, 2))
    boxes = cells(rng, 3)
    colours: tuple[str, ...] = ()
    things = []
    for i, box in enumerate(boxes):
        motion = rng.choice(IN_PLACE[1:]) if i == mover else "still"
        pair = _pick_pair(rng, motion, held_out and i == 0)
        while pair[0] in colours or not _grounds((*colours, pair[0])):
            pair = _pick_pair(rng, motion, False)
        colours = (*colours, pair[0])
        things.append(place(rng, box, _draft(rng, pair, motion, fitting(boxes, ("small", "medium")))))
    return Scene(_pick_background(rng, colours), tuple(things))


def _two_related(rng: random.Random, relation: str, held_out: bool) -> tuple[Thing, Thing]:
    """Two things that stay in their places, side by side or one above the other."""
    motions = (rng.choice(IN_PLACE), rng.choice(IN_PLACE)) if rng.random() < 0.5 else ("still", "still")
    first, second = _pick_pairs(rng, *motions, held_out, same_colour=True)
    one = _draft(rng, first, motions[0], tuple(SIZES))
    # Two large things are too wide for the frame.
    other = _draft(rng, second, motions[1], ("small", "medium") if one.size == "large" else tuple(SIZES))
    if relation in ("left of", "above"):
        return place_side_by_side(rng, one, other, vertical=relation == "above")
    other, one = place_side_by_side(rng, other, one, vertical=relation == "below")
    return one, other


def _two_moving(rng: random.Random, held_out: bool) -> tuple[Thing, Thing]:
    """Two things with any motions, each in a part of the frame of its own."""
    while True:
        motions = (_pick_motion(rng), _pick_motion(rng))
        pairs = _pick_pairs(rng, *motions, held_out, same_colour=False)
        one, other = (_draft(rng, pair, motion, ("small", "medium")) for pair, motion in zip(pairs, motions, strict=True))
        if boxes := two_boxes(rng, one, other):
            return place(rng, boxes[0], one), place(rng, boxes[1], other)


def _pick_motion(rng: random.Random, pair: Pair | None = None) -> str:
    """A motion that suits the pair, if there is one."""
    draw = rng.random()
    if draw < 0.14:
        return "still"
    if draw < 0.60:
        return rng.choice(STRAIGHT if draw < 0.46 else DIAGONAL)
    motions = ("circling", "bouncing", "spinning", *IN_PLACE[1:])
    return rng.choice([motion for motion in motions if motion != "spinning" or not pair or pair[1] in SPINNERS])


def _pick_speed(rng: random.Random, motion: str) -> str:
    return "normally" if motion == "still" or rng.random() < 0.5 else rng.choice(("slowly", "quickly"))


def _pick_pair(rng: random.Random, motion: str, held_out: bool) -> Pair:
    """Colour and shape, of the shapes whose turning shows when they are to spin."""
    pairs = HELD_OUT_PAIRS if held_out else SEEN_PAIRS
    pair = rng.choice(pairs)
    while motion == "spinning" and pair[1] not in SPINNERS:
        pair = rng.choice(pairs)
    return pair


def _pick_pairs(rng: random.Random, one: str, other: str, held_out: bool, same_colour: bool) -> tuple[Pair, Pair]:
    """Two different pairs for things of two motions; of different colours, or (same_colour) seldom of the same."""
    first = _pick_pair(rng, one, held_out)
    second = _pick_pair(rng, other, False)
    while second == first or (second[0] == first[0] and not (same_colour and rng.random() < 0.3)):
        second = _pick_pair(rng, other, False)
    return first, second


def _draft(rng: random.Random, pair: Pair, motion: str, sizes: tuple[str, ...], speed: str | None = None) -> Thing:
    """A thing that has no place yet; the speed is drawn unless given."""
    speed, (colour, shape) = speed or _pick_speed(rng, motion), pair
    if motion == "spinning" and shape not in SPINNERS:
        raise ValueError(f"only shapes whose turning shows can spin ({', '.join(SPINNERS)}), got {shape!r}; use one of these")
    changes_size = motion in ("growing", "shrinking")
    if changes_size and len(sizes) > 1:
        sizes = tuple(size for size in sizes if size != "small")
    # A texture would become too fine on a thing that is small for a while.
    texture = rng.choice(TEXTURES[1:]) if rng.random() < 0.2 and not changes_size else "plain"
    tilt = 180.0 if motion == "spinning" else 10.0
    angle = round(rng.uniform(-tilt, tilt), 1)
    return Thing(shape, colour, rng.choice(sizes), texture, 0.5, 0.5, motion, speed, angle=angle)


def _pick_background(rng: random.Random, colours: tuple[str, ...]) -> Background:
    """Plain, or a gradient of two colours that go together; every thing stands out from it."""
    draw = rng.random()
    family = BACKGROUND_FAMILIES[0 if draw < 0.6 else 1 if draw < 0.88 else 2]
    grounds = _grounds(colours)
    names = [name for name in family if name in grounds] or sorted(grounds)
    colour = rng.choice(names)
    others = [name for name in names if name in BLENDING[colour]]
    if others and rng.random() < 0.4:
        return Background(colour, rng.choice(GRADIENTS[1:]), rng.choice(others))
    return Background(colour)


def _grounds(colours: tuple[str, ...]) -> frozenset[str]:
    """The backgrounds that all of these colours stand out from."""
    return frozenset.intersection(*(CONTRASTING[colour] for colour in colours))


def _stopped(thing: Thing) -> Thing:
    at = thing.at(0.0)
    angle = 0.0 if thing.motion == "spinning" else thing.angle  # upright: a square on its corner would pass for a diamond
    stopped = replace(thing, motion="still", speed="normally", reach=0.0, angle=angle, phase=0.0)
    return moved(stopped, at.x + at.orbit_x, at.y + at.orbit_y)
