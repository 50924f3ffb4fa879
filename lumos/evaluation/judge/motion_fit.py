"""An object followed through a clip -> its motion.

The world's own laws of motion are fitted to what was followed, and the one that explains it is named; what no single law
explains is unclear.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray as Array

from lumos.evaluation.judge.outlines import PERIOD, ROUND, STEP, Placed, of_shape
from lumos.evaluation.judge.regions import Blob
from lumos.worlds.shapes.motion import CIRCLES, DIRECTIONS, HOPS, SPEEDS, TRAVEL, TURNS, law, state

LEAST_WAY = 0.07  # frame widths; less is no motion
UNSEEN = 0.12  # what is less opaque than this cannot be seen
CLEARER = 1.25  # by so much an outline must fit better when it turns than when it does not

Named = tuple[str | None, str | None]  # a motion and its speed; None is unclear


@dataclass(frozen=True)
class Motion:
    """What an object does; None is unclear."""

    name: str | None = None
    speed: str | None = None
    path: str | None = None  # of its middle, whatever else changes: a direction, "circling", "bouncing", "still"
    paces: dict[str, str] = field(default_factory=dict)  # the speed of each thing that it does, also where the name is unclear


@dataclass(frozen=True, eq=False)
class Followed:
    """One object through a clip. Arrays have one entry per frame, nan where it is not seen; lengths in frame widths."""

    colour: str | None  # None is unclear, here and below
    shape: str | None
    likely_shape: str
    x: Array
    y: Array
    radius: Array
    opacity: Array  # 0 where it is not seen
    clean: Array  # bool: seen whole, touching nothing
    misfit_FP: Array = field(repr=False)  # of its outline to every template
    blobs: dict[int, Blob] = field(repr=False)  # by frame
    wholes: dict[int, Placed] = field(repr=False)  # its whole outlines, by frame
    size: str | None = None
    motion: Motion = Motion()

    @property
    def seen(self) -> Array:
        return self.opacity > 0

    @property
    def place(self) -> tuple[float, float]:
        """Middle of the places it was seen at."""
        return float(np.nanmedian(self.x)), float(np.nanmedian(self.y))

    @property
    def behind(self) -> Array:
        """Frames in which it is not seen, next to which it touched something: it may be hidden behind that."""
        seen = np.flatnonzero(self.seen)
        touches = np.array([self.blobs[frame].touches for frame in seen.tolist()])
        after = np.searchsorted(seen, np.arange(len(self.x)))
        return ~self.seen & (touches[np.maximum(after - 1, 0)] | touches[np.minimum(after, len(seen) - 1)])


def name_motion(thing: Followed, whole_F: Array, fps: float) -> Motion:
    """The one law of motion that explains what was followed, "still" if none is needed. whole_F: frames of a known outline."""
    seconds = np.arange(len(thing.x)) / fps
    seen, solid = thing.opacity > 0.5, whole_F & (thing.opacity > 0.5)
    if seen.sum() < 3:
        return Motion()
    path = _path(seconds[seen], thing.x[seen] + 1j * thing.y[seen])
    scaling = _scaling(seconds[solid], thing.radius[solid]) if solid.sum() >= 5 else None
    turning = _turning(seconds[solid], thing.misfit_FP[solid], thing.likely_shape) if solid.sum() >= 5 else None
    changes = [each for each in (_fading(thing, seconds), path, scaling, turning) if each is not None]
    name, speed = ("still", "normally") if not changes else changes[0] if len(changes) == 1 else (None, None)
    paces = {motion: speed for motion, speed in changes if motion and speed}
    return Motion(name, speed, path[0] if path else "still", paces)


def _fading(thing: Followed, seconds: Array) -> Named | None:
    """Fading in or out, or blinking."""
    # What lies under something takes on its colour.
    kept = (thing.clean | ~thing.seen if thing.clean.sum() >= 3 else True) & ~thing.behind
    opacity, seconds = thing.opacity[kept], seconds[kept]
    if len(opacity) < 3 or opacity.min() > 0.7:
        return None
    # What is not seen has less than the least opacity that is.
    least = max(UNSEEN, 0.9 * float(opacity[opacity > 0].min(initial=1.0)))
    opacity = np.where(opacity < least, least - 0.2, np.minimum(opacity, 1.2))
    fits: list[tuple[float, Named | None]] = []
    for motion in ("still", "fading in", "fading out", "blinking"):
        for speed in SPEEDS:
            wanted = state(law(motion, speed, 0.0, 0.0), 0.0, 0.0, seconds).opacity
            wanted = np.where(wanted < least, least - 0.2, wanted)
            error = float(np.sqrt(np.mean((opacity - wanted) ** 2)))
            fits.append((error, None if motion == "still" else (motion, speed)))
    error, named = min(fits, key=lambda fit: fit[0])
    return named if named is None or error < 0.3 * (1.2 - least) else (None, None)


def _path(seconds: Array, place: Array) -> Named | None:
    """Straight, circling or bouncing: each is a middle and one number times a course in time, places being complex numbers."""
    if np.hypot(np.ptp(place.real), np.ptp(place.imag)) < LEAST_WAY:
        return None
    fits: list[tuple[float, Named]] = []
    for rest in np.arange(0.375, seconds[-1] + 0.126, 0.125):
        _, way, error = _fitted(np.minimum(seconds, rest), place)
        name = max(DIRECTIONS, key=lambda name: float(np.array([way.real, way.imag]) @ DIRECTIONS[name]))
        if abs(way) * rest > LEAST_WAY / 2:
            fits.append((error, (name, _nearest(abs(way), TRAVEL))))
    for rate in np.outer((1, -1), _rates(CIRCLES)).ravel():
        _, radius, error = _fitted(np.exp(2j * np.pi * rate * seconds), place)
        if 0.06 < abs(radius) < 0.4:
            fits.append((error, ("circling", _nearest(abs(rate), CIRCLES))))
    for rate in _rates(HOPS):
        hop = 4 * (rate * seconds % 1.0) * (1 - rate * seconds % 1.0)
        _, height, error = _fitted(hop, place.imag)
        if height.real < -0.1:
            fits.append((float(np.hypot(error, place.real.std())), ("bouncing", _nearest(rate, HOPS))))
    error, named = min(fits, default=(1.0, (None, None)))
    return named if error < max(0.3 * place.std(), 0.015) else (None, None)


def _scaling(seconds: Array, radius: Array) -> Named | None:
    """Growing or shrinking."""
    fits = []
    for speed in SPEEDS:
        scale = state(law("growing", speed, 0.0, 0.0), 0.0, 0.0, seconds).scale
        start, change, error = _fitted(scale, radius)
        first, last = (max((start + change * at).real, 1e-3) for at in scale[[0, -1]])
        fits.append((error, speed, last / first))
    _, speed, ratio = min(fits)
    return None if 1 / 1.3 < ratio < 1.3 else ("growing" if ratio > 1 else "shrinking", speed)


def _turning(seconds: Array, misfit_FP: Array, shape: str) -> Named | None:
    """Spinning: the rate at which one angle, turning on, fits all frames best."""
    if shape in ROUND:
        return None
    turns_FK = misfit_FP[:, of_shape(shape)]
    count = turns_FK.shape[1]
    rates = np.arange(-0.68, 0.681, 0.02)
    rates = rates[np.abs(rates) * 360 * np.diff(seconds).max() < PERIOD.get(shape, 360) / 2]
    steps_RF = rates[:, None] * seconds * 360 / STEP
    places_RKF = np.rint(steps_RF[:, None] + np.arange(count)[:, None]).astype(int) % count
    cost_R = turns_FK[np.arange(len(seconds)), places_RKF].mean(2).min(1)
    best = int(cost_R.argmin())
    still = float(cost_R[np.abs(rates) < 0.01][0])
    turned = abs(float(rates[best])) * 360 * (seconds[-1] - seconds[0])
    if turned < 40 or still < CLEARER * cost_R[best] + 0.01:
        return None
    return "spinning", _nearest(abs(float(rates[best])), TURNS)


def _rates(named: dict[str, float]) -> Array:
    slow, quick = min(named.values()), max(named.values())
    return np.geomspace(slow * 0.85, quick * 1.15, 25)


def _nearest(value: float, named: dict[str, float]) -> str:
    return min(named, key=lambda name: abs(np.log(named[name] / max(value, 1e-3))))


def _fitted(course: Array, seen: Array) -> tuple[complex, complex, float]:
    """Least squares of `first + factor * course`: first, factor, and the root mean square of what is left."""
    basis = np.stack([np.ones_like(course), course], axis=1)
    first, factor = np.linalg.lstsq(basis, seen, rcond=None)[0]
    return complex(first), complex(factor), float(np.sqrt(np.mean(np.abs(seen - first - factor * course) ** 2)))
