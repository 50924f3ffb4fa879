"""Pixels -> objects followed through a clip: colour, shape, size, place, angle and opacity in every frame, and their motions.

`watch` is the whole of seeing. Outlines are named where they touch nothing, and completed where something hides a part.
"""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from lumos.evaluation.judge.background import View, look
from lumos.evaluation.judge.colours import Array
from lumos.evaluation.judge.motion_fit import Followed, name_motion, strongest
from lumos.evaluation.judge.occlusion import Hidden, complete
from lumos.evaluation.judge.regions import COARSE, Blob
from lumos.evaluation.judge.silhouettes import PERIOD, misfits, outlines, soft_mask, templates
from lumos.evaluation.judge.tracks import find_tracks
from lumos.worlds.shapes.palette import COLOURS
from lumos.worlds.shapes.thing import SHAPES, SIZES

WHOLE = 0.06  # an outline that fits this well is seen whole
PIECE = 0.25  # what is seen for a short while and never fits a shape this well is no object


@dataclass
class Watched:
    """Everything that is seen in a clip."""

    objects: list[Followed]
    specks: int  # blobs that belong to no object
    view: View = field(repr=False)


def watch(pixels_CFHW: Tensor, fps: float = 8.0) -> Watched:
    """Find and follow every object of a clip."""
    view = look(pixels_CFHW)
    tracks, specks = find_tracks(view.blobs)
    drafts = [_draft(view, track) for track in tracks]
    pieces = [draft for draft in drafts if len(draft.track) < len(view.blobs) / 3 and draft.best > PIECE]
    drafts = [draft for draft in drafts if draft not in pieces]
    specks += sum(len(piece.track) for piece in pieces)
    _complete_never_clean(view, [draft for draft in drafts if not draft.clean_N.any()])
    for draft in drafts:
        if draft.clean_N.any():
            _complete(view, draft)
    return Watched([_describe(draft, len(view.blobs), fps) for draft in drafts], specks, view)


@dataclass(eq=False)
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
    disc_N = np.array([each.disc for each in found])
    clean_N = _seen_whole(np.array([not blob.touches for blob in track]), misfit_NP.min(1), disc_N)
    weight_N = np.clip(strength_N / strength_N.max() - 0.15, 1e-6, 0.6) * (clean_N if clean_N.any() else 1.0)
    shape, is_clear = _shape(misfit_NP, weight_N)
    x_N, y_N = np.array([each.x for each in found]), np.array([each.y for each in found])
    nothing_N = np.zeros(len(track))
    draft = _Draft(track, strength_N, clean_N, misfit_NP, shape, is_clear, nothing_N.astype(int), x_N, y_N, disc_N, nothing_N)
    draft.take(shape)
    return draft


def _seen_whole(alone_N: Array, best_N: Array, disc_N: Array) -> Array:
    """Where it touches nothing, or looks just like a shape and is largest: then it is only beside something.

    Not when it always looks the same: what is left of a heart may be a good diamond.
    """
    alike_N = (best_N < 0.5 * WHOLE) & (disc_N.max() > 1.12 * disc_N.min())
    largest = disc_N[alone_N | alike_N].max(initial=0.0)
    return alone_N | (alike_N & (disc_N > 0.93 * largest))


def _complete(view: View, draft: _Draft) -> None:
    """Where it touches something: its whole outline, as it is in the nearest frame in which it touches nothing."""
    clean = np.flatnonzero(draft.clean_N)
    for n in np.flatnonzero(~draft.clean_N).tolist():
        nearest = clean[np.abs(clean - n).argmin()]
        same = [(int(draft.choice_N[nearest]), float(draft.disc_N[nearest]))]
        _put(draft, n, complete(_soft(view, draft.track[n]), _others(view, draft.track[n]), same)[0])


def _complete_never_clean(view: View, drafts: list[_Draft]) -> None:
    """Things that touch in every frame: one is in front and seen whole, the others are partly hidden; what explains both best."""
    if not drafts:
        return
    found = []
    for draft in drafts:
        n = int(np.argmax([blob.area for blob in draft.track]))
        soft, others = _soft(view, draft.track[n]), _others(view, draft.track[n])
        found.append(
            (_best_shape(complete(soft, np.zeros_like(others), _upright())), _best_shape(complete(soft, others, _upright())))
        )
    gains = [whole[0].misfit - hidden[0].misfit for whole, hidden in found]
    front = int(np.argmin(gains))  # what gains least from being hidden
    for i, (draft, choices) in enumerate(zip(drafts, found, strict=True)):
        best, second = choices[i != front]
        if i == front and draft.best < WHOLE:
            continue  # its outline says more than the coarse grid
        draft.shape = SHAPES[templates().shape_P[best.template]]
        draft.is_clear = best.misfit < 0.4 and second.misfit > 1.1 * best.misfit
        for n, blob in enumerate(draft.track):
            _put(draft, n, complete(_soft(view, blob), _others(view, blob), [(best.template, best.disc)])[0])


def _upright() -> list[tuple[int, float]]:
    """Every shape in each of the sizes, at most a little turned."""
    bank = templates()
    choices = []
    for number, shape in enumerate(SHAPES):
        period = PERIOD.get(shape, 360)
        turn = (bank.angle_P + period / 2) % period - period / 2
        for p in np.flatnonzero((bank.shape_P == number) & (np.abs(turn) <= 13)):
            choices += [(int(p), size / float(bank.radius_P[p])) for size in SIZES.values()]
    return choices


def _best_shape(found: list[Hidden]) -> tuple[Hidden, Hidden]:
    """The best of them, and the best of another shape."""
    shapes = templates().shape_P
    best = min(found, key=lambda each: each.misfit)
    return best, min((each for each in found if shapes[each.template] != shapes[best.template]), key=lambda each: each.misfit)


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
    whole: list[tuple[int, float, float, float] | None] = [None] * frames
    for n, blob in enumerate(draft.track):
        blobs[blob.frame] = blob
        whole[blob.frame] = (int(draft.choice_N[n]), float(draft.disc_N[n]), float(draft.x_N[n]), float(draft.y_N[n]))
    followed = Followed(
        colour=_colour(draft.track, draft.strength_N),
        shape=draft.shape if draft.is_clear else None,
        size=None,
        motion=None,
        speed=None,
        path=None,
        paces={},
        x=by_frame(draft.x_N + bank.middle_P2[draft.choice_N, 0] * draft.disc_N),
        y=by_frame(draft.y_N + bank.middle_P2[draft.choice_N, 1] * draft.disc_N),
        radius=by_frame(draft.disc_N * bank.radius_P[draft.choice_N]),
        angle=by_frame(bank.angle_P[draft.choice_N]),
        opacity=by_frame(_opacity(draft.track), 0.0),
        clean=by_frame(draft.clean_N, 0.0) > 0,
        hidden=by_frame(draft.hidden_N),
        fit=by_frame(draft.misfit_NP[np.arange(len(number)), draft.choice_N]),
        blobs=blobs,
        outlines=whole,
    )
    whole_F = followed.clean & (followed.opacity > 0.3) if draft.clean_N.any() else followed.seen
    followed.size = _size(followed.radius[whole_F])
    if frames > 1:
        turns_FK = by_frame(draft.misfit_NP[:, _of_shape(draft.shape)])
        name_motion(followed, whole_F, turns_FK, draft.shape, fps)
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
    full = strongest([blob for blob in track if not blob.touches] or track)
    way = full.squared - full.ground
    share = np.array([(blob.squared - blob.ground) @ way for blob in track]) / max(float(way @ way), 1e-6)
    return np.clip(share, 0.01, 1.3)


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
