"""Blobs -> objects followed through a clip: colour, shape, size, place, angle, opacity in every frame, and how each one moves.

`watch` is the whole of seeing: pixels in, a `Watched` out. A motion is named by fitting the world's own laws of motion to
what was followed and taking the one that explains it; what no law explains is None, "unclear".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from lumos.shapes.motion import BLINKS, CHANGE, CIRCLES, DIRECTIONS, HOPS, SPEEDS, TRAVEL, TURNS
from lumos.shapes.overlap import Hidden, complete
from lumos.shapes.palette import COLOURS
from lumos.shapes.seeing import COARSE, FAINT, Array, Blob, View, beyond_shade, lab, look
from lumos.shapes.silhouettes import PERIOD, ROUND, STEP, misfits, outlines, soft_mask, templates
from lumos.shapes.thing import SHAPES, SIZES

FAR = 0.45  # frame widths a thing may have moved between two frames, less what else changed
LEAST_TRAVEL = 0.07  # frame widths; less is no motion
WHOLE = 0.06  # an outline that fits this well is seen whole
SOLID = 0.13  # least strength of an object when it is strongest
BRIEF = 3  # an object is seen in at least this many frames (or in all of a shorter clip)


Named = tuple[str | None, str | None]  # a motion and its speed; None is unclear


@dataclass
class Followed:
    """One object through the clip. Arrays have one entry a frame, nan where it is not seen; lengths in frame widths."""

    colour: str | None
    shape: str | None
    size: str | None
    motion: str | None
    speed: str | None
    x: Array
    y: Array
    radius: Array
    angle: Array  # degrees, clockwise
    opacity: Array  # 0 where it is not seen
    clean: Array  # bool: seen whole, touching nothing
    hidden: Array  # share of it that lies under another object
    fit: Array  # how far its outline is from the shape's, 0 is the same
    blobs: list[Blob | None] = field(repr=False)

    @property
    def seen(self) -> Array:
        return self.opacity > 0

    @property
    def place(self) -> tuple[float, float]:
        """Middle of the places it was seen at."""
        return float(np.nanmedian(self.x)), float(np.nanmedian(self.y))


@dataclass
class Watched:
    """Everything that is seen in a clip."""

    objects: list[Followed]
    specks: int  # blobs that belong to no object
    view: View = field(repr=False)


def watch(pixels_CFHW: Tensor, fps: float = 8.0) -> Watched:
    """Find and follow every object of a clip."""
    view = look(pixels_CFHW)
    least = min(BRIEF, len(view.blobs))
    tracks = [track for track in _link(view.blobs) if len(track) >= least and max(blob.strength for blob in track) > SOLID]
    specks = sum(map(len, view.blobs)) - sum(map(len, tracks))
    drafts = [_draft(view, track) for track in tracks]
    # Of things that touch in every frame the one that looks most like a shape is in front, and the others are not seen whole.
    never_clean = sorted((draft for draft in drafts if not draft.clean_N.any()), key=lambda draft: draft.best)
    for rank, draft in enumerate(never_clean):
        if rank > 0 or draft.best > WHOLE:
            _complete_never_clean(view, draft)
    for draft in drafts:
        if draft.clean_N.any():
            _complete(view, draft)
    return Watched([_describe(draft, len(view.blobs), fps) for draft in drafts], specks, view)


def _link(blobs: Sequence[Sequence[Blob]]) -> list[list[Blob]]:
    """Blobs of the same object, in order of time: each goes on with the nearest one, of its colour if there is one."""
    tracks: list[list[Blob]] = []
    for found in blobs:
        pairs = sorted((_apart(track, blob), i, j) for i, track in enumerate(tracks) for j, blob in enumerate(found))
        taken: set[int] = set()
        grown: set[int] = set()
        for apart, i, j in pairs:
            if apart < FAR and i not in grown and j not in taken:
                tracks[i].append(found[j])
                grown.add(i)
                taken.add(j)
        tracks += [[blob] for j, blob in enumerate(found) if j not in taken]
    return tracks


def _apart(track: list[Blob], blob: Blob) -> float:
    """How unlike the continuation of a track a blob is."""
    last = track[-1]
    near = np.hypot(blob.x - last.x, blob.y - last.y)
    if last.touches:  # it may have been hidden for a while, and its middle is not known well
        near *= 0.5
    elif len(track) > 1 and not track[-2].touches:
        steps = min((blob.frame - last.frame) / (last.frame - track[-2].frame), 6.0)
        ahead_x, ahead_y = last.x + steps * (last.x - track[-2].x), last.y + steps * (last.y - track[-2].y)
        near = min(near, np.hypot(blob.x - ahead_x, blob.y - ahead_y) + 0.02)
    alike = min(track[-6:], key=lambda other: abs(np.log(other.strength / blob.strength)))
    if 0.75 < alike.strength / blob.strength < 1.33:
        colours = min(float(np.linalg.norm(lab(np.array(blob.rgb)) - lab(np.array(alike.rgb)))) / 80, 0.4)
    else:  # fading mixes the colour with the background's, but the difference keeps its direction
        colours = 0.05 if blob.tone @ alike.tone > 0.9 * np.linalg.norm(blob.tone) * np.linalg.norm(alike.tone) else 0.4
    sizes = 0.0 if blob.touches or last.touches else 0.1 * abs(np.log(blob.area / last.area))
    return float(near + colours + sizes)


@dataclass
class _Draft:
    """A track and its outlines; N counts its blobs. Where it is partly hidden the outline is completed later."""

    track: list[Blob]
    strength_N: Array
    clean_N: Array
    misfit_NP: Array
    shape: str
    is_clear: bool
    choice_N: Array  # template
    x_N: Array  # centre of mass
    y_N: Array
    disc_N: Array
    hidden_N: Array

    @property
    def best(self) -> float:
        """How well it fits its shape where it fits best."""
        return float(self.misfit_NP[np.arange(len(self.track)), self.choice_N].min())

    def take(self, shape: str) -> None:
        """Name the shape, and choose the best angle in every frame."""
        self.shape = shape
        of_shape = _of_shape(shape)
        self.choice_N = of_shape[self.misfit_NP[:, of_shape].argmin(1)]


def _of_shape(shape: str) -> Array:
    return np.flatnonzero(templates().shape_P == SHAPES.index(shape))


def _draft(view: View, track: list[Blob]) -> _Draft:
    found = outlines(view, track)
    misfit_NP = misfits(np.stack([each.picture_G for each in found]))
    strength_N = np.array([blob.strength for blob in track])
    clean_N = np.array([not blob.touches for blob in track])
    weight_N = np.clip(strength_N / strength_N.max() - 0.15, 1e-6, 0.6) * (clean_N if clean_N.any() else 1.0)
    shape, is_clear = _shape(misfit_NP, weight_N)
    x_N, y_N, disc_N = (np.array([getattr(each, name) for each in found]) for name in ("x", "y", "disc"))
    nothing_N = np.zeros(len(track))
    draft = _Draft(track, strength_N, clean_N, misfit_NP, shape, is_clear, nothing_N.astype(int), x_N, y_N, disc_N, nothing_N)
    draft.take(shape)
    return draft


def _complete(view: View, draft: _Draft) -> None:
    """Where it touches something: its whole outline, as it is in the nearest frame in which it touches nothing."""
    clean = np.flatnonzero(draft.clean_N)
    for n in np.flatnonzero(~draft.clean_N):
        nearest = clean[np.abs(clean - n).argmin()]
        same = [(int(draft.choice_N[nearest]), float(draft.disc_N[nearest]))]
        _put(draft, n, complete(_soft(view, draft.track[n]), _others(view, draft.track[n]), same)[0])


def _complete_never_clean(view: View, draft: _Draft) -> None:
    """The shape that explains what is seen of it where most is seen, and then in every frame."""
    bank = templates()
    n = int(np.argmax([blob.area for blob in draft.track]))
    # Every shape, at every other angle and each of the sizes.
    every = [(int(p), size / bank.radius_P[p]) for shape in SHAPES for p in _of_shape(shape)[::2] for size in SIZES.values()]
    found = complete(_soft(view, draft.track[n]), _others(view, draft.track[n]), every)
    by_shape = [
        min((each for each in found if bank.shape_P[each.template] == s), key=lambda each: each.misfit)
        for s in range(len(SHAPES))
    ]
    whole, second = sorted(by_shape, key=lambda each: each.misfit)[:2]
    draft.shape = SHAPES[bank.shape_P[whole.template]]
    draft.is_clear = whole.misfit < 0.4 and second.misfit > 1.1 * whole.misfit
    for n, blob in enumerate(draft.track):
        _put(draft, n, complete(_soft(view, blob), _others(view, blob), [(whole.template, whole.disc)])[0])


def _put(draft: _Draft, n: int, whole: Hidden) -> None:
    draft.choice_N[n], draft.disc_N[n] = whole.template, whole.disc
    draft.x_N[n], draft.y_N[n], draft.hidden_N[n] = whole.x, whole.y, whole.share


def _describe(draft: _Draft, frames: int, fps: float) -> Followed:
    number, bank = np.array([blob.frame for blob in draft.track]), templates()

    def by_frame(values: Array, missing: float = np.nan) -> Array:
        full = np.full((frames, *values.shape[1:]), missing)
        full[number] = values
        return full

    blobs: list[Blob | None] = [None] * frames
    for blob in draft.track:
        blobs[blob.frame] = blob
    followed = Followed(
        colour=_colour(draft.track, draft.strength_N),
        shape=draft.shape if draft.is_clear else None,
        size=None,
        motion=None,
        speed=None,
        x=by_frame(draft.x_N + bank.middle_P2[draft.choice_N, 0] * draft.disc_N),
        y=by_frame(draft.y_N + bank.middle_P2[draft.choice_N, 1] * draft.disc_N),
        radius=by_frame(draft.disc_N * bank.radius_P[draft.choice_N]),
        angle=by_frame(bank.angle_P[draft.choice_N]),
        opacity=by_frame(_opacity(draft.track), 0.0),
        clean=by_frame(draft.clean_N, 0.0) > 0,
        hidden=by_frame(draft.hidden_N),
        fit=by_frame(draft.misfit_NP[np.arange(len(number)), draft.choice_N]),
        blobs=blobs,
    )
    whole_F = followed.clean & (followed.opacity > 0.3) if draft.clean_N.any() else followed.seen
    followed.size = _size(followed.radius[whole_F])
    if frames > 1:
        turns_FK = by_frame(draft.misfit_NP[:, _of_shape(draft.shape)])
        followed.motion, followed.speed = _motion(followed, whole_F, turns_FK, draft.shape, fps)
    return followed


def _soft(view: View, blob: Blob) -> Array:
    """The blob's soft mask on the coarse grid."""
    soft, top, left, _ = soft_mask(view, blob)
    rows, columns = soft.shape[0] // COARSE, soft.shape[1] // COARSE
    full = np.zeros(blob.region_HW.shape)
    window = (slice(top // COARSE, top // COARSE + rows), slice(left // COARSE, left // COARSE + columns))
    full[window] = soft.reshape(rows, COARSE, columns, COARSE).mean((1, 3))
    return full


def _others(view: View, blob: Blob) -> Array:
    """Where the frame's other blobs are."""
    others = np.zeros_like(blob.region_HW)
    for other in view.blobs[blob.frame]:
        if other is not blob:
            others |= other.region_HW
    return others


def _opacity(track: list[Blob]) -> Array:
    """How far each blob's colour is from the background to the object's colour; 1 where it is strongest."""
    full = _strongest(track)
    way = full.squared - full.ground
    share = np.array([(blob.squared - blob.ground) @ way for blob in track]) / max(float(way @ way), 1e-6)
    return np.clip(share, 0.01, 1.3)


def _strongest(track: list[Blob]) -> Blob:
    """The strongest but one (one may be a slip)."""
    return sorted(track, key=lambda blob: blob.strength)[-min(2, len(track))]


def _visible(thing: Followed) -> float:
    """The opacity from which it can be seen: gray that fades in on a bright background looks like a shadow at first."""
    full = _strongest([blob for blob in thing.blobs if blob])
    shares = np.linspace(0.02, 1, 50)[:, None]
    mixed = (1 - shares) * full.ground + shares * full.squared
    strength = np.linalg.norm(beyond_shade(mixed, full.ground), axis=1) / (np.linalg.norm(full.ground) + 0.1)
    return float(shares[np.argmax(strength > 1.3 * FAINT), 0])


def _shape(misfit_NP: Array, weight_N: Array) -> tuple[str, bool]:
    """The shape that fits best over all frames, and whether that is clear."""
    bank = templates()
    misfit_NS = np.stack([misfit_NP[:, bank.shape_P == s].min(1) for s in range(len(SHAPES))], axis=1)
    misfit_S = (weight_N[:, None] * np.minimum(misfit_NS, 0.4)).sum(0) / weight_N.sum()
    best, second = np.argsort(misfit_S)[:2]
    return SHAPES[int(best)], bool(misfit_S[best] < 0.2 and misfit_S[second] > misfit_S[best] * 1.05 + 0.001)


def _colour(track: list[Blob], strengths: Array) -> str | None:
    votes = dict.fromkeys(COLOURS, 0.0)
    for blob, strength in zip(track, strengths / strengths.max(), strict=True):
        votes[blob.colour] += strength**4 * blob.colour_share
    best = max(votes, key=votes.__getitem__)
    return best if votes[best] > 0.55 * sum(votes.values()) else None


def _size(radius: Array) -> str | None:
    radius = radius[np.isfinite(radius)]
    if not len(radius):
        return None
    largest = np.sort(radius)[-min(2, len(radius))]  # one may be a slip
    return min(SIZES, key=lambda size: abs(np.log(SIZES[size] / largest)))


def _motion(thing: Followed, whole_F: Array, turns_FK: Array, shape: str, fps: float) -> Named:
    """Name and speed of the one law of motion that explains what was followed; (None, None) for none or several."""
    seconds = np.arange(len(thing.x)) / fps
    fading = _fading(thing, seconds)
    seen, solid = thing.opacity > 0.5, whole_F & (thing.opacity > 0.5)
    path = _path(seconds[seen], thing.x[seen], thing.y[seen]) if seen.sum() >= 3 else None
    # While something fades its outline is not sharp enough for more.
    scaling = _scaling(seconds[solid], thing.radius[solid]) if not fading and solid.sum() >= 5 else None
    turning = _turning(seconds[solid], turns_FK[solid], shape) if not fading and solid.sum() >= 5 else None
    changes = [each for each in (fading, path, scaling, turning) if each is not None]
    if not changes:
        return ("still", "normally") if seen.sum() >= 3 else (None, None)
    return changes[0] if len(changes) == 1 else (None, None)


def _fading(thing: Followed, seconds: Array) -> Named | None:
    """Fading in or out, or blinking."""
    visible = max(_visible(thing), 0.12)
    opacity = np.where(thing.opacity < visible, 0.0, np.minimum(thing.opacity, 1.2))
    hidden = ~thing.seen & _between(thing.seen) & near_touching(thing)
    kept = ~hidden & (thing.clean | ~thing.seen if thing.clean.sum() >= 3 else True)
    opacity, seconds = opacity[kept], seconds[kept]
    if len(opacity) < 3 or opacity.min() > 0.7:
        return None
    laws: list[tuple[Array, Named]] = []
    for speed in SPEEDS:
        change = _ease(seconds / CHANGE[speed])
        laws += [(change, ("fading in", speed)), (1 - change, ("fading out", speed))]
        laws.append((_ease(0.5 + 1.2 * np.cos(2 * np.pi * BLINKS[speed] * seconds)), ("blinking", speed)))
    fits = []
    for law, named in laws:
        law = np.where(law < visible, 0.0, law)
        most = float(np.clip(opacity @ law / max(float(law @ law), 1e-6), 0.7, 1.3))
        fits.append((float(np.sqrt(np.mean((opacity - most * law) ** 2))), named))
    error, named = min(fits)
    return named if error < 0.25 else (None, None)


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
    if turned < 40 or still < 2 * cost_R[best] + 0.01:
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
