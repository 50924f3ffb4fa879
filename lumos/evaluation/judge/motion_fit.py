"""An object followed through a clip, and the name of its motion.

A motion is named by fitting the world's own laws of motion to what was followed and taking the one that explains it; what
no single law explains is None, "unclear".
"""

from dataclasses import dataclass, field

import numpy as np

from lumos.evaluation.judge.colours import Array, beyond_shade
from lumos.evaluation.judge.regions import FAINT, Blob
from lumos.evaluation.judge.silhouettes import PERIOD, ROUND, STEP
from lumos.worlds.shapes.motion import BLINKS, CHANGE, CIRCLES, DIRECTIONS, HOPS, SPEEDS, TRAVEL, TURNS

LEAST_TRAVEL = 0.07  # frame widths; less is no motion
COVERED = 0.2  # share of a thing under another from which its colour is a mixture
CLEARER = 1.25  # by so much an outline must fit better when it turns than when it does not

Named = tuple[str | None, str | None]  # a motion and its speed; None is unclear


@dataclass
class Followed:
    """One object through the clip. Arrays have one entry a frame, nan where it is not seen; lengths in frame widths."""

    colour: str | None
    shape: str | None
    size: str | None
    motion: str | None
    speed: str | None
    path: str | None  # what its middle does, whatever else changes: a direction, "circling", "bouncing", "still"
    paces: dict[str, str]  # the speed of everything that it does, also where several things together leave `motion` unclear
    x: Array
    y: Array
    radius: Array
    angle: Array  # degrees, clockwise
    opacity: Array  # 0 where it is not seen
    clean: Array  # bool: seen whole, touching nothing
    hidden: Array  # share of it that lies under another object
    fit: Array  # how far its outline is from the shape's, 0 is the same
    blobs: list[Blob | None] = field(repr=False)
    outlines: list[tuple[int, float, float, float] | None] = field(repr=False)  # template, disc radius, centre of mass

    @property
    def seen(self) -> Array:
        return self.opacity > 0

    @property
    def track(self) -> list[Blob]:
        """Its blobs in the frames that have one."""
        return [blob for blob in self.blobs if blob is not None]

    def outline_at(self, frame: int) -> tuple[int, float, float, float] | None:
        """Its outline in any frame: where it is not seen whole, that of the nearest frame in which it is, on the way between."""
        clean = np.flatnonzero(self.clean)
        if self.clean[frame] or not len(clean):
            return self.outlines[frame]
        known = [outline for outline, is_clean in zip(self.outlines, self.clean, strict=True) if outline and is_clean]
        nearest = known[int(np.abs(clean - frame).argmin())]
        x, y = (float(np.interp(frame, clean, [outline[i] for outline in known])) for i in (2, 3))
        return nearest[0], nearest[1], x, y

    @property
    def place(self) -> tuple[float, float]:
        """Middle of the places it was seen at."""
        return float(np.nanmedian(self.x)), float(np.nanmedian(self.y))


def strongest(track: list[Blob]) -> Blob:
    """The strongest but one (one may be a slip)."""
    return sorted(track, key=lambda blob: blob.strength)[-min(2, len(track))]


def name_motion(thing: Followed, whole_F: Array, turns_FK: Array, shape: str, fps: float) -> None:
    """Set motion and speed to the one law of motion that explains what was followed (None if none or several do); path, paces."""
    seconds = np.arange(len(thing.x)) / fps
    fading = _fading(thing, seconds)
    seen, solid = thing.opacity > 0.5, whole_F & (thing.opacity > 0.5)
    sure = seen & (thing.hidden < 0.5)
    sure = sure if sure.sum() >= 5 else seen
    path = _path(seconds[sure], thing.x[sure], thing.y[sure]) if sure.sum() >= 3 else None
    # While something fades its outline is not sharp enough for more.
    scaling = _scaling(seconds[solid], thing.radius[solid]) if not fading and solid.sum() >= 5 else None
    turning = _turning(seconds[solid], turns_FK[solid], shape) if not fading and solid.sum() >= 5 else None
    changes = [each for each in (fading, path, scaling, turning) if each is not None]
    if not changes and seen.sum() >= 3:
        thing.motion, thing.speed = "still", "normally"
    elif len(changes) == 1:
        thing.motion, thing.speed = changes[0]
    thing.path = path[0] if path else "still" if sure.sum() >= 3 else None
    thing.paces = {motion: speed for motion, speed in changes if motion and speed}


def _fading(thing: Followed, seconds: Array) -> Named | None:
    """Fading in or out, or blinking."""
    hidden = ~thing.seen & _between(thing.seen) & near_touching(thing)
    known = thing.clean  # what lies under something takes on its colour
    covered = np.flatnonzero(hidden | (thing.hidden >= COVERED))
    if known.sum() < 3 and len(covered):  # and while it passes something
        known = thing.seen.copy()
        known[covered[0] : covered[-1] + 1] = False
    kept = ~hidden & (known | ~thing.seen if known.sum() >= 3 else True)
    opacity, seconds = thing.opacity[kept], seconds[kept]
    if len(opacity) < 3 or opacity.min() > 0.7:
        return None
    # What is not seen has less than the least opacity that is.
    least = max(_visible(thing), 0.12, 0.9 * float(opacity[opacity > 0].min(initial=1.0)))
    unseen = least - 0.2
    opacity = np.where(opacity < least, unseen, np.minimum(opacity, 1.2))
    laws: list[tuple[Array, Named | None]] = []
    for speed in SPEEDS:
        change = _ease(seconds / CHANGE[speed])
        laws += [(change, ("fading in", speed)), (1 - change, ("fading out", speed))]
        laws.append((_ease(0.5 + 1.2 * np.cos(2 * np.pi * BLINKS[speed] * seconds)), ("blinking", speed)))
    laws.append((np.ones_like(seconds), None))  # steady
    fits = []
    for law, named in laws:
        fits.append((float(np.sqrt(np.mean((opacity - np.where(law < least, unseen, law)) ** 2))), named))
    error, named = min(fits, key=lambda fit: fit[0])
    return named if named is None or error < 0.3 * (1 - unseen) else (None, None)


def _path(seconds: Array, x: Array, y: Array) -> Named | None:
    """Straight, circling or bouncing."""
    if np.hypot(np.ptp(x), np.ptp(y)) < LEAST_TRAVEL:
        return None
    one, fits = np.ones_like(seconds), []
    for rest in np.arange(0.375, seconds[-1] + 0.126, 0.125):
        basis = np.stack([one, np.minimum(seconds, rest)], axis=1)
        way, error = _least_squares(basis, np.stack([x, y], axis=1))
        speed = float(np.hypot(*way[1]))
        name = max(DIRECTIONS, key=lambda name: float(way[1] @ np.array(DIRECTIONS[name])))
        if speed * rest > LEAST_TRAVEL / 2:
            fits.append((error, (name, _nearest(speed, TRAVEL))))
    zero = 0 * one
    for rate in _rates(CIRCLES):
        for sense in (1, -1):
            cos, sin = np.cos(2 * np.pi * rate * seconds), sense * np.sin(2 * np.pi * rate * seconds)
            basis = np.concatenate([np.stack([one, zero, cos, -sin], 1), np.stack([zero, one, sin, cos], 1)])
            way, error = _least_squares(basis, np.concatenate([x, y])[:, None])
            if 0.06 < np.hypot(way[2, 0], way[3, 0]) < 0.4:
                fits.append((error * 2**0.5, ("circling", _nearest(rate, CIRCLES))))
    for rate in _rates(HOPS):
        hop = rate * seconds % 1.0
        way, error = _least_squares(np.stack([one, 4 * hop * (1 - hop)], axis=1), y[:, None])
        error = float(np.hypot(error, x.std()))
        if way[1, 0] < -0.1:
            fits.append((error, ("bouncing", _nearest(rate, HOPS))))
    error, named = min(fits, default=(1.0, (None, None)))
    extent = float(np.hypot(x.std(), y.std()))
    return named if error < max(0.3 * extent, 0.015) else (None, None)


def _scaling(seconds: Array, radius: Array) -> Named | None:
    """Growing or shrinking."""
    fits = []
    for speed in SPEEDS:
        change = _ease(seconds / CHANGE[speed])
        way, error = _least_squares(np.stack([1 - change, change], axis=1), radius[:, None])
        start, end = (max(float(way[0, 0] * (1 - at) + way[1, 0] * at), 1e-3) for at in (change[0], change[-1]))
        fits.append((error, speed, end / start))
    _, speed, ratio = min(fits)
    if 1 / 1.3 < ratio < 1.3:
        return None
    return ("growing" if ratio > 1 else "shrinking"), speed


def _turning(seconds: Array, turns_FK: Array, shape: str) -> Named | None:
    """Spinning: the rate at which one angle, turning on, fits all frames best."""
    if shape in ROUND:
        return None
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


def _between(seen: Array) -> Array:
    """Frames after the first and before the last in which it is seen."""
    return np.maximum.accumulate(seen) & np.maximum.accumulate(seen[::-1])[::-1]


def near_touching(thing: Followed) -> Array:
    """Unseen frames next to which it touched something, so that it may be hidden behind that."""
    touched = np.array([blob is not None and blob.touches for blob in thing.blobs])
    hidden = np.zeros(len(touched), dtype=bool)
    for frame in np.flatnonzero(~thing.seen):
        before, after = np.flatnonzero(thing.seen[:frame]), np.flatnonzero(thing.seen[frame:])
        hidden[frame] = bool((len(before) and touched[before[-1]]) or (len(after) and touched[frame + after[0]]))
    return hidden


def _rates(named: dict[str, float]) -> Array:
    slow, quick = min(named.values()), max(named.values())
    return np.geomspace(slow * 0.85, quick * 1.15, 25)


def _nearest(value: float, named: dict[str, float]) -> str:
    return min(named, key=lambda name: abs(np.log(named[name] / max(value, 1e-3))))


def _least_squares(basis: Array, target: Array) -> tuple[Array, float]:
    """The solution and the root mean square of what is left, all columns of the target together."""
    way = np.linalg.lstsq(basis, target, rcond=None)[0]
    return way, float(np.sqrt(np.square(target - basis @ way).sum() / len(basis)))


def _ease(value: Array) -> Array:
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def _visible(thing: Followed) -> float:
    """The opacity from which it can be seen: gray that fades in on a bright background looks like a shadow at first."""
    full = strongest(thing.track)
    shares = np.linspace(0.02, 1, 50)[:, None]
    mixed = (1 - shares) * full.ground + shares * full.squared
    strength = np.linalg.norm(beyond_shade(mixed, full.ground), axis=1) / (np.linalg.norm(full.ground) + 0.1)
    return float(shares[np.argmax(strength > 1.3 * FAINT), 0])
