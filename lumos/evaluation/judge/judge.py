"""The judge: is a clip what its scene promises? Everything is read from pixels; the scene only says what was asked for.

`judge` gives one mark an attribute: True, False, or None for what cannot be seen clearly, which counts as wrong. Colour and
direction of one-object clips have functions of their own that need no scene.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from lumos.evaluation.judge.background import View, look
from lumos.evaluation.judge.colours import Array, lab, rgb_of
from lumos.evaluation.judge.motion_fit import Followed, near_touching, strongest
from lumos.evaluation.judge.objects import Watched, watch
from lumos.evaluation.judge.occlusion import covered
from lumos.evaluation.judge.regions import Blob
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

LEAST_TRAVEL = 0.07  # frame widths: less than this is no motion
NEAR = 0.05  # frame widths that a place may be off
LEAST_OVERLAP = 8  # pixels of the coarse grid, over all frames, that must tell who is in front
GONE = 20  # pixels that a frame counts in which one of two is hidden altogether
MIXED = 0.07  # where two things overlap, a mean colour this near the middle of both does not tell
BACKGROUND_APART = 6.0  # Lab: mean distance to the background asked for
DRIFT = 3.0  # Lab: how far the background of a frame may be from the clip's
SHIMMER = 0.012  # mean change of the background from frame to frame, relative to its brightness
WOBBLE = 0.12  # relative jump of an object's size in one frame
JUMP = 12.0  # Lab: jump of an object's colour in one frame
WORN = 0.15  # an outline this far from its shape has fallen apart


@dataclass(frozen=True)
class Verdict:
    """Marks for the attributes that the scene has, and for each that is not right what was wanted and seen."""

    marks: dict[str, Mark]
    notes: dict[str, str]

    @property
    def wrong(self) -> tuple[str, ...]:
        return tuple(name for name, mark in self.marks.items() if mark is False)

    @property
    def unclear(self) -> tuple[str, ...]:
        return tuple(name for name, mark in self.marks.items() if mark is None)

    def all_of(self, names: Iterable[str]) -> Mark:
        """True if all of these that the scene has are right, False if one is wrong, else None (unclear)."""
        marks = [self.marks[name] for name in names if name in self.marks]
        return _every(marks)


def judge(scene: Scene, pixels_CFHW: Tensor, fps: float = 8.0) -> Verdict:
    """Compare a clip (or an image: one frame, for a scene of things that are still) with its scene.

    pixels_CFHW: RGB in [-1, 1], square; raises ValueError for others.
    """
    return compare(scene, watch(pixels_CFHW, fps), fps)


def compare(scene: Scene, watched: Watched, fps: float = 8.0) -> Verdict:
    """`judge` of what `watch` gave."""
    objects = sorted(watched.objects, key=lambda each: -each.seen.sum() * float(np.nanmean(each.radius)))[:6]
    frames = len(watched.view.blobs)
    pairs = _matched(scene.things, objects)
    marks: dict[str, Mark] = {"count": len(watched.objects) == len(scene.things)}
    marks["colour"] = _all_there([thing.colour for thing in scene.things], [each.colour for each in objects])
    marks["shape"] = _all_there([thing.shape for thing in scene.things], [each.shape for each in objects])
    marks["size"] = _every(_same(thing.size, each.size if each else None) for thing, each in pairs)
    marks["place"] = _every(each is not None and _on_its_way(thing, each, fps) for thing, each in pairs)
    if len({(thing.colour, thing.shape, thing.motion) for thing in scene.things}) > 1:
        marks["binding"] = _binding(scene.things, objects, frames > 1)
    if scene.relation in ("left of", "right of", "above", "below"):
        marks["position"] = _position(scene.relation, pairs[0][1], pairs[1][1])
    elif scene.relation != "none":
        marks["occlusion"] = _in_front(pairs[0][1], pairs[1][1], watched.view, scene.relation == "in front of")
    marks["background"] = _background(scene.background, watched) < BACKGROUND_APART
    if frames > 1:
        marks["motion"] = _every(_same(_kind(thing.motion), _kind(each.motion) if each else None) for thing, each in pairs)
        straight = [(thing, each) for thing, each in pairs if thing.motion in DIRECTIONS]
        if straight:
            marks["direction"] = _every(_direction(thing, each) for thing, each in straight)
        moving = [(thing, each) for thing, each in pairs if thing.motion != "still"]
        if moving:
            marks["speed"] = _every(_speed(thing, each) for thing, each in moving)
        marks["permanence"] = bool(marks["count"]) and all(each is not None and _stays(thing, each) for thing, each in pairs)
        marks["steadiness"] = _drift(watched) < DRIFT
        marks["flicker"] = _shimmer(watched) < SHIMMER and not any(
            _flickers(thing, each) for thing, each in pairs if each is not None
        )
    marks["wholeness"] = watched.specks <= frames // 3 and not any(_worn(each) for each in objects)
    ordered = {name: marks[name] for name in ATTRIBUTES if name in marks}
    told = {name: _note(name, scene, objects) for name, mark in ordered.items() if not mark}
    return Verdict(ordered, told)


def dominant_colour(pixels_CFHW: Tensor) -> str | None:
    """The colour name of what stands out most over the whole clip, or None when nothing does. Needs no scene."""
    votes: dict[str, float] = {}
    for blobs in look(pixels_CFHW).blobs:
        for blob in blobs:
            votes[blob.colour] = votes.get(blob.colour, 0.0) + blob.area * min(blob.strength, 1.0)
    return max(votes, key=votes.__getitem__) if votes else None


def direction(pixels_CFHW: Tensor) -> str | None:
    """Which of the eight directions the largest object moves in, or None: nothing moves, or not straight. Needs no scene."""
    path = _largest(look(pixels_CFHW).blobs)
    if len(path) < 3:
        return None
    place = np.array([(blob.x, blob.y) for blob in path])
    end = len(place) // 4 + 1
    way = np.median(place[-end:], axis=0) - np.median(place[:end], axis=0)
    length = math.hypot(*way)
    aside = np.abs((place - place[0]) @ np.array([-way[1], way[0]])) / max(length, 1e-6)
    back = -np.minimum(np.diff(place @ way) / max(length, 1e-6), 0).sum()
    if length < LEAST_TRAVEL or aside.max() > max(0.25 * length, 0.04) or back > 0.35 * length:
        return None
    return max(DIRECTIONS, key=lambda name: float(way @ np.array(DIRECTIONS[name])))


def _largest(blobs: list[list[Blob]]) -> list[Blob]:
    """The largest blob of each frame, of the colour that is largest overall if there is one."""
    votes: dict[str, float] = {}
    for frame in blobs:
        for blob in frame:
            votes[blob.colour] = votes.get(blob.colour, 0.0) + blob.area * min(blob.strength, 1.0)
    if not votes:
        return []
    colour = max(votes, key=votes.__getitem__)
    path = []
    for frame in blobs:
        same = [blob for blob in frame if blob.colour == colour] or frame
        if same:
            path.append(max(same, key=lambda blob: blob.area * min(blob.strength, 1.0)))
    return path


Pairs = list[tuple[Thing, Followed | None]]


def _matched(things: Sequence[Thing], objects: Sequence[Followed]) -> Pairs:
    """Each thing with the object that it most likely is."""

    def likeness(thing: Thing, each: Followed | None) -> float:
        if each is None:
            return 0.0
        x, y = each.place
        near = math.hypot(x - thing.x, y - thing.y)
        alike = 3.0 * (each.colour == thing.colour) + 2.0 * (each.shape == thing.shape) + (each.motion == thing.motion)
        return 2.0 + alike + 0.5 * (each.size == thing.size) - near

    candidates: list[Followed | None] = [*objects, *[None] * len(things)]
    best = max(
        itertools.permutations(range(len(candidates)), len(things)),
        key=lambda order: sum(likeness(thing, candidates[i]) for thing, i in zip(things, order, strict=True)),
    )
    return [(thing, candidates[i]) for thing, i in zip(things, best, strict=True)]


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


def _kind(motion: str | None) -> str | None:
    return "straight" if motion in DIRECTIONS else motion


def _binding(things: Sequence[Thing], objects: Sequence[Followed], moving: bool) -> Mark:
    """Whether there is an object for every thing with its colour, shape and motion."""
    if len(objects) < len(things):
        return False
    marks = []
    for order in itertools.permutations(objects, len(things)):
        same = [_same(thing.colour, each.colour) for thing, each in zip(things, order, strict=True)]
        same += [_same(thing.shape, each.shape) for thing, each in zip(things, order, strict=True)]
        if moving:
            same += [_same(thing.motion, each.motion) for thing, each in zip(things, order, strict=True)]
        marks.append(_every(same))
    return True if True in marks else None if None in marks else False


def _on_its_way(thing: Thing, each: Followed, fps: float) -> bool:
    off = []
    for frame in np.flatnonzero(each.opacity > 0.4):
        at = thing.at(frame / fps)
        off.append(math.hypot(each.x[frame] - at.x - at.orbit_x, each.y[frame] - at.y - at.orbit_y))
    return bool(off) and float(np.median(off)) < NEAR


def _position(relation: str, first: Followed | None, second: Followed | None) -> Mark:
    if first is None or second is None:
        return False
    (x, y), (other_x, other_y) = first.place, second.place
    across, along = other_x - x, other_y - y
    if relation in ("above", "below"):
        across, along = along, across
    if relation in ("right of", "below"):
        across = -across
    return across > 0.05 and across > abs(along)


def _in_front(first: Followed | None, second: Followed | None, view: View, wanted: bool) -> Mark:
    """Whether the first is in front: where both outlines lie its colour is seen, or the second is gone while they overlap."""
    if first is None or second is None:
        return False
    votes = [0, 0]
    for frame, (one, other) in enumerate(zip(first.blobs, second.blobs, strict=True)):
        one_put, other_put = first.outlines[frame], second.outlines[frame]
        if one and other and one_put and other_put:
            side = len(one.region_HW)
            both = covered(side, *one_put) & covered(side, *other_put)
            votes[0] += int((both & one.region_HW).sum())
            votes[1] += int((both & other.region_HW).sum())
    for number, hidden in enumerate((second, first)):
        votes[number] += GONE * int((~hidden.seen & near_touching(hidden)).sum())
    if max(votes) >= LEAST_OVERLAP and max(votes) >= 2 * min(votes):
        return (votes[0] > votes[1]) == wanted
    share = _share_of_first(first, second, view)
    return None if share is None or abs(share - 0.5) < MIXED else (share > 0.5) == wanted


def _share_of_first(first: Followed, second: Followed, view: View) -> float | None:
    """Where both outlines must lie, over all frames: how far the mean colour is from the second's to the first's, 0 to 1.

    For what is too blurred to be cut into regions. None if they hardly overlap.
    """
    near, far = strongest(first.track).squared, strongest(second.track).squared
    way = (near - far) / max(float((near - far) @ (near - far)), 1e-6)
    side, shares = view.squared_FHWC.shape[1], [np.zeros(0)]
    for frame, squared_HWC in enumerate(view.squared_FHWC):
        one, other = first.outline_at(frame), second.outline_at(frame)
        if one and other:
            both = covered(side, *one) & covered(side, *other)
            shares.append(np.clip((squared_HWC[both] - far) @ way, 0, 1))
    seen = np.concatenate(shares)
    return float(seen.mean()) if len(seen) >= LEAST_OVERLAP else None


def _direction(thing: Thing, each: Followed | None) -> Mark:
    """Of the way alone: a thing that also shrinks still goes where it goes."""
    return None if each is None else _same(thing.motion, each.path)


def _speed(thing: Thing, each: Followed | None) -> Mark:
    """Of the motion asked for alone: a thing that also shrinks still goes as quickly as it goes."""
    paces = {_kind(motion): speed for motion, speed in each.paces.items()} if each else {}
    return _same(thing.speed, paces.get(_kind(thing.motion)))


def _stays(thing: Thing, each: Followed) -> bool:
    """There in all frames, but for those in which it may be hidden behind something."""
    if thing.motion in ("fading in", "fading out", "blinking"):
        return True
    missing = ~each.seen & ~near_touching(each)
    return not missing.any()


def _flickers(thing: Thing, each: Followed) -> bool:
    """Jumps of size or colour that last for one frame."""
    if {thing.motion, each.motion} & {"fading in", "fading out", "blinking"}:
        return False
    steady = each.clean & (each.opacity > 0.4)
    middle = steady[:-2] & steady[1:-1] & steady[2:]
    colours = lab(np.array([blob.rgb if blob else (0, 0, 0) for blob in each.blobs]))
    sizes = np.abs(2 * each.radius[1:-1] / (each.radius[:-2] + each.radius[2:]) - 1)
    jumps = np.linalg.norm(colours[1:-1] - (colours[:-2] + colours[2:]) / 2, axis=1)
    return bool((sizes[middle] > WOBBLE).any() or (jumps[middle] > JUMP).any())


def _worn(each: Followed) -> bool:
    """Whether its outline is not that of its shape in several frames."""
    steady = each.clean & (each.opacity > 0.8)
    return int((each.fit[steady] > WORN).sum()) > max(2, steady.sum() // 4)


def _background(background: Background, watched: Watched) -> float:
    """Mean distance in Lab to the background asked for, whichever way its gradient runs."""
    seen = lab(rgb_of(np.median(watched.view.ground_FPC, axis=0)))
    ways = [background]
    if background.gradient != "plain":
        pairs = ((background.colour, background.other), (background.other, background.colour))
        ways = [Background(colour, way, other) for colour, other in pairs for way in GRADIENTS[1:]]
    return min(float(np.linalg.norm(seen - _empty(way), axis=1).mean()) for way in ways)


@lru_cache(maxsize=256)
def _empty(background: Background) -> Array:
    """Lab of a background with nothing on it, on the grid of `View`."""
    values = (render(pack([Scene(background, ())]), 1)[0, :, 0] + 1) / 2
    return lab(rgb_of(values.square().unflatten(1, (32, -1)).unflatten(3, (32, -1)).mean((2, 4)).flatten(1).T.numpy()))


def _drift(watched: Watched) -> float:
    """How far (Lab) the background of a frame is from that of the clip, at most."""
    ground = lab(rgb_of(watched.view.ground_FPC))
    return float(np.linalg.norm(ground - np.median(ground, axis=0), axis=2).mean(1).max())


def _shimmer(watched: Watched) -> float:
    """Mean change from frame to frame where there is only background, relative to its brightness."""
    view = watched.view
    change = np.linalg.norm(np.diff(view.grid_FPC, axis=0), axis=2) / (np.linalg.norm(view.ground_FPC[1:], axis=2) + 0.1)
    empty = (view.residue_FP[1:] < 0.05) & (view.residue_FP[:-1] < 0.05)
    return float((change * empty).sum() / max(empty.sum(), 1))


def _note(name: str, scene: Scene, objects: Sequence[Followed]) -> str:
    """What was wanted and what was seen."""
    if name in ("colour", "shape", "size", "motion", "direction", "speed"):
        wanted = [getattr(thing, "motion" if name == "direction" else name) for thing in scene.things]
        seen = [getattr(each, "path" if name == "direction" else name) or "unclear" for each in objects]
        return f"wanted {', '.join(wanted)}; saw {', '.join(seen) or 'nothing'}"
    if name == "count":
        return f"wanted {len(scene.things)}; saw {len(objects)}"
    if name in ("position", "occlusion"):
        return f"wanted {scene.relation}"
    return f"wanted: {ATTRIBUTES[name]}"
