"""The judge: is a clip what its scene promises? Everything is read from pixels; the scene only says what was asked for.

`judge` gives one mark per attribute: True, False, or None for what cannot be seen clearly, which counts as wrong.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lumos.evaluation.judge.background import GRID
from lumos.evaluation.judge.colours import brightness, length, to_lab
from lumos.evaluation.judge.motion_fit import Followed
from lumos.evaluation.judge.objects import Watched, watch
from lumos.evaluation.judge.outlines import covered
from lumos.worlds.shapes.motion import DIRECTIONS
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import GRADIENTS, Background, Scene
from lumos.worlds.shapes.thing import Thing

Mark = bool | None

ATTRIBUTES = {
    "count": "as many objects as there should be",
    "colour": "all the colours, on whichever objects",
    "shape": "all the shapes, on whichever objects",
    "size": "small, medium or large, each as it should be",
    "place": "each object on its way, to a twentieth of the frame",
    "binding": "the right colour on the right shape with the right motion (of several objects)",
    "position": "left of, right of, above, below",
    "occlusion": "who is in front",
    "motion": "the kind of motion of each object: still, straight, circling, bouncing, growing, ...",
    "direction": "which of eight directions the objects that move straight go",
    "speed": "slowly, normally, quickly",
    "permanence": "objects that do not fade or blink are there in every frame, and no others come",
    "background": "its colour or two colours",
    "steadiness": "the background stays as it is",
    "flicker": "no flicker in background, colours and sizes",
    "wholeness": "every object keeps its shape, and there are no stray pieces",
}

OFF_COURSE = 0.05  # frame widths that a place may be off
LEAST_OVERLAP = 8  # pixels of the coarse grid, over all frames, that must tell who is in front
GONE = 20  # pixels that a frame counts in which one of two is hidden altogether
BACKGROUND_APART = 6.0  # Lab: mean distance to the background asked for
DRIFT = 3.0  # Lab: how far the background of a frame may be from the clip's
SHIMMER = 0.012  # mean change of the background from frame to frame, relative to its brightness
EMPTY = 0.05  # relative distance to the fitted background of a place that shows only background
WOBBLE = 0.12  # relative jump of an object's size in one frame
JUMP = 12.0  # Lab: jump of an object's colour in one frame
WORN = 0.15  # an outline this far from its shape has fallen apart
VANISHING = {"fading in", "fading out", "blinking"}  # motions of things that need not be seen in every frame


class Verdict(NamedTuple):
    """Marks for the attributes that the scene has, and for each that is not right what was wanted and seen."""

    marks: dict[str, Mark]
    notes: dict[str, str]

    def all_of(self, names: Iterable[str]) -> Mark:
        """True if all of these that the scene has are right, False if one is wrong, else None (unclear)."""
        return _every(self.marks[name] for name in names if name in self.marks)


def judge(scene: Scene, pixels_CFHW: Tensor, fps: float = 8.0) -> Verdict:
    """Compare a clip (or an image: one frame, for a scene of things that are still) with its scene.

    pixels_CFHW: RGB in [-1, 1], square; raises ValueError for others.
    """
    watched = watch(pixels_CFHW, fps)
    objects = sorted(watched.objects, key=lambda each: -each.seen.sum() * float(np.nanmean(each.radius)))[:6]
    things, frames = scene.things, len(watched.view.blobs)
    pairs = _matched(things, objects)
    marks: dict[str, Mark] = {"count": len(watched.objects) == len(things)}
    marks["colour"] = _all_there([thing.colour for thing in things], [each.colour for each in objects])
    marks["shape"] = _all_there([thing.shape for thing in things], [each.shape for each in objects])
    marks["size"] = _every(_same(thing.size, each.size if each else None) for thing, each in pairs)
    marks["place"] = _every(each is not None and _on_its_way(thing, each, fps) for thing, each in pairs)
    if len({(thing.colour, thing.shape, thing.motion) for thing in things}) > 1:
        marks["binding"] = _binding(pairs, frames > 1)
    if scene.relation in ("in front of", "behind"):
        marks["occlusion"] = _in_front(pairs[0][1], pairs[1][1], scene.relation == "in front of")
    elif scene.relation != "none":
        marks["position"] = _position(scene.relation, pairs[0][1], pairs[1][1])
    marks["background"] = _background_apart(scene.background, watched) < BACKGROUND_APART
    marks["wholeness"] = watched.specks <= frames // 3 and not any(_worn(each) for each in objects)
    if frames > 1:
        marks |= _marks_over_time(pairs, watched)
        marks["permanence"] = marks["permanence"] and marks["count"]
    marks = {name: marks[name] for name in ATTRIBUTES if name in marks}
    return Verdict(marks, {name: _note(name, scene, objects) for name, mark in marks.items() if not mark})


Pairs = list[tuple[Thing, Followed | None]]


def _matched(things: Sequence[Thing], objects: Sequence[Followed]) -> Pairs:
    """Each thing with the object that it most likely is."""

    def likeness(thing: Thing, each: Followed) -> float:
        alike = 3.0 * (each.colour == thing.colour) + 2.0 * (each.shape == thing.shape) + (each.motion.name == thing.motion)
        return 2.0 + alike + 0.5 * (each.size == thing.size) - math.dist(each.place, (thing.x, thing.y))

    likenesses = np.array([[likeness(thing, each) for each in objects] for thing in things]).reshape(len(things), len(objects))
    chosen = dict(zip(*linear_sum_assignment(likenesses, maximize=True), strict=True))
    return [(thing, objects[chosen[i]] if i in chosen else None) for i, thing in enumerate(things)]


def _every(marks: Iterable[Mark]) -> Mark:
    """All of them: False if one is, else None if one is unclear."""
    known = list(marks)
    return False if False in known else None if None in known else True


def _same(wanted: str | None, seen: str | None) -> Mark:
    return None if seen is None else seen == wanted


def _all_there(wanted: Sequence[str], seen: Sequence[str | None]) -> Mark:
    """Whether everything wanted is among what was seen; None if it may be."""
    missing = (Counter(wanted) - Counter(name for name in seen if name)).total()
    return True if not missing else None if missing <= list(seen).count(None) else False


def _on_its_way(thing: Thing, each: Followed, fps: float) -> bool:
    frames = np.flatnonzero(each.opacity > 0.4)
    at = thing.at(frames / fps)
    off = np.hypot(each.x[frames] - at.x - at.orbit_x, each.y[frames] - at.y - at.orbit_y)
    return len(frames) > 0 and float(np.median(off)) < OFF_COURSE


def _binding(pairs: Pairs, moving: bool) -> Mark:
    """Whether each thing's object has its colour, its shape and its motion."""
    marks: list[Mark] = []
    for thing, each in pairs:
        if each is None:
            return False
        marks += [_same(thing.colour, each.colour), _same(thing.shape, each.shape)]
        marks += [_same(thing.motion, each.motion.name)] if moving else []
    return _every(marks)


def _position(relation: str, first: Followed | None, second: Followed | None) -> Mark:
    if first is None or second is None:
        return False
    across, along = np.subtract(second.place, first.place)
    if relation in ("above", "below"):
        across, along = along, across
    if relation in ("right of", "below"):
        across = -across
    return bool(across > max(0.05, abs(along)))


def _in_front(first: Followed | None, second: Followed | None, wanted: bool) -> Mark:
    """Whether the first is in front: where both outlines lie its colour is seen, or the second is gone while they overlap."""
    if first is None or second is None:
        return False
    votes = [GONE * int(second.behind.sum()), GONE * int(first.behind.sum())]
    for frame in first.blobs.keys() & second.blobs.keys():
        one, other = first.blobs[frame].region_HW, second.blobs[frame].region_HW
        both = covered(len(one), first.wholes[frame]) & covered(len(one), second.wholes[frame])
        votes = [votes[0] + int((both & one).sum()), votes[1] + int((both & other).sum())]
    is_clear = max(votes) >= LEAST_OVERLAP and max(votes) >= 2 * min(votes)
    return (votes[0] > votes[1]) == wanted if is_clear else None


def _background_apart(background: Background, watched: Watched) -> float:
    """Mean distance in Lab to the background asked for, whichever way its gradient runs."""
    seen = to_lab(np.median(watched.view.ground_FPC, axis=0))
    ways = [background]
    if background.gradient != "plain":
        pairs = ((background.colour, background.other), (background.other, background.colour))
        ways = [Background(colour, way, other) for colour, other in pairs for way in GRADIENTS[1:]]
    return min(float(length(seen - _lab_of_empty(way)).mean()) for way in ways)


@lru_cache(maxsize=256)
def _lab_of_empty(background: Background) -> Array:
    """A background with nothing on it, on the grid of `View`."""
    squared_CHW = ((render(pack([Scene(background, ())]), 1)[0, :, 0] + 1) / 2).square()
    return to_lab(avg_pool2d(squared_CHW, squared_CHW.shape[1] // GRID).flatten(1).T.numpy())


def _worn(each: Followed) -> bool:
    """Whether its outline is not that of its shape in several frames."""
    steady = np.flatnonzero(each.clean & (each.opacity > 0.8))
    return sum(each.wholes[int(frame)].misfit > WORN for frame in steady) > max(2, len(steady) // 4)


def _marks_over_time(pairs: Pairs, watched: Watched) -> dict[str, Mark]:
    marks: dict[str, Mark] = {}
    marks["motion"] = _every(_same(_kind(thing.motion), _kind(each.motion.name if each else None)) for thing, each in pairs)
    # Direction and speed are those of the motion asked for: a thing that also shrinks still goes where and as quickly as it goes.
    if any(thing.motion in DIRECTIONS for thing, _ in pairs):
        straight = [pair for pair in pairs if pair[0].motion in DIRECTIONS]
        marks["direction"] = _every(_same(thing.motion, each.motion.path if each else None) for thing, each in straight)
    if any(thing.motion != "still" for thing, _ in pairs):
        marks["speed"] = _every(_pace(thing, each) for thing, each in pairs if thing.motion != "still")
    marks["permanence"] = all(
        each is not None and (thing.motion in VANISHING or bool((each.seen | each.behind).all())) for thing, each in pairs
    )
    marks["steadiness"] = _drift(watched) < DRIFT
    marks["flicker"] = _shimmer(watched) < SHIMMER and not any(_flickers(thing, each) for thing, each in pairs if each)
    return marks


def _kind(motion: str | None) -> str | None:
    return "straight" if motion in DIRECTIONS else motion


def _pace(thing: Thing, each: Followed | None) -> Mark:
    paces = {_kind(motion): speed for motion, speed in each.motion.paces.items()} if each else {}
    return _same(thing.speed, paces.get(_kind(thing.motion)))


def _drift(watched: Watched) -> float:
    """How far (Lab) the background of a frame is from that of the clip, at most."""
    ground = to_lab(watched.view.ground_FPC)
    return float(length(ground - np.median(ground, axis=0)).mean(1).max())


def _shimmer(watched: Watched) -> float:
    """Mean change from frame to frame where there is only background, relative to its brightness."""
    grid, ground = watched.view.grid_FPC, watched.view.ground_FPC
    empty = length(grid - ground) < EMPTY * brightness(ground)
    change = length(np.diff(grid, axis=0)) / brightness(ground[1:])
    both = empty[1:] & empty[:-1]
    return float((change * both).sum() / max(both.sum(), 1))


def _flickers(thing: Thing, each: Followed) -> bool:
    """Jumps of size or colour that last for one frame."""
    if {thing.motion, each.motion.name} & VANISHING:
        return False
    steady = each.clean & (each.opacity > 0.4)
    middle = steady[:-2] & steady[1:-1] & steady[2:]
    colours = np.array([each.blobs[n].lab if n in each.blobs else (0, 0, 0) for n in range(len(each.x))])
    sizes = np.abs(2 * each.radius[1:-1] / (each.radius[:-2] + each.radius[2:]) - 1)
    jumps = length(colours[1:-1] - (colours[:-2] + colours[2:]) / 2)
    return bool((sizes[middle] > WOBBLE).any() or (jumps[middle] > JUMP).any())


def _note(name: str, scene: Scene, objects: Sequence[Followed]) -> str:
    """What was wanted and what was seen."""
    if name in ("colour", "shape", "size"):
        wanted, seen = [getattr(thing, name) for thing in scene.things], [getattr(each, name) for each in objects]
    elif name in ("motion", "direction", "speed"):
        part = {"motion": "name", "direction": "path", "speed": "speed"}[name]
        wanted = [thing.speed if name == "speed" else thing.motion for thing in scene.things]
        seen = [getattr(each.motion, part) for each in objects]
    elif name == "count":
        wanted, seen = [str(len(scene.things))], [str(len(objects))]
    else:
        return f"wanted {scene.relation if name in ('position', 'occlusion') else ATTRIBUTES[name]}"
    return f"wanted {', '.join(wanted)}; saw {', '.join(each or 'unclear' for each in seen) or 'nothing'}"
