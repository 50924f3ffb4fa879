"""Pixels -> objects followed through a clip: colour, shape, size, place, angle and opacity in every frame, and their motions.

`watch` is the whole of seeing. Outlines are named where they touch nothing, and completed where something hides a part.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array
from torch import Tensor

from lumos.evaluation.judge.background import View, look
from lumos.evaluation.judge.motion_fit import Followed, name_motion
from lumos.evaluation.judge.outlines import PERIOD, Placed, misfits, of_shape, outline, place_whole, soft_mask, templates
from lumos.evaluation.judge.regions import COARSE, Blob
from lumos.evaluation.judge.tracks import Track, find_tracks
from lumos.worlds.shapes.thing import SHAPES, SIZES

FITS = 0.06  # an outline whose misfit is less is seen whole


class Watched(NamedTuple):
    """Everything that is seen in a clip."""

    objects: list[Followed]
    specks: int  # blobs that belong to no object
    view: View


def watch(pixels_CFHW: Tensor, fps: float = 8.0) -> Watched:
    """Find and follow every object of a clip."""
    view = look(pixels_CFHW)
    tracks, specks = find_tracks(view.blobs)
    return Watched([_follow(view, track, fps) for track in tracks], specks, view)


def _follow(view: View, track: Track, fps: float) -> Followed:
    """N counts the track's blobs."""
    found = [outline(soft_mask(view, blob)) for blob in track]
    misfit_NP = misfits(np.stack([each.picture_G for each in found]))
    alone_N, disc_N = np.array([not blob.touches for blob in track]), np.array([each.disc for each in found])
    # Seen whole: it touches nothing, or looks just like a shape and is largest: then it is only beside something.
    alike_N = misfit_NP.min(1) < 0.5 * FITS
    clean_N = alone_N | (alike_N & (disc_N > 0.93 * disc_N[alone_N | alike_N].max(initial=0.0)))
    shape, is_clear = _shape(misfit_NP[clean_N] if clean_N.any() else misfit_NP)
    best_N = of_shape(shape)[misfit_NP[:, of_shape(shape)].argmin(1)]
    fit_N = misfit_NP[np.arange(len(track)), best_N]
    wholes = [Placed(int(p), each.disc, each.x, each.y, float(fit)) for p, each, fit in zip(best_N, found, fit_N, strict=True)]
    if clean_N.any():
        wholes = _completed(view, track, wholes, clean_N)
    elif fit_N.min() >= FITS:
        shape, is_clear, wholes = _guessed(view, track)
    number = [blob.frame for blob in track]

    def by_frame(values: list[float] | Array, missing: float = np.nan) -> Array:
        full = np.full((len(view.blobs), *np.shape(values)[1:]), missing)
        full[number] = values
        return full

    followed = Followed(
        # seen in most places, and most strongly
        colour=max((blob.colour for blob in track), key=lambda name: sum(b.strength * b.area for b in track if b.colour == name)),
        shape=shape if is_clear else None,
        likely_shape=shape,
        x=by_frame([whole.centre[0] for whole in wholes]),
        y=by_frame([whole.centre[1] for whole in wholes]),
        radius=by_frame([whole.radius for whole in wholes]),
        opacity=by_frame(_opacity(track), 0.0),
        clean=by_frame(clean_N, 0.0) > 0,
        misfit_FP=by_frame(misfit_NP),
        blobs=dict(zip(number, track, strict=True)),
        wholes=dict(zip(number, wholes, strict=True)),
    )
    whole_F = followed.clean if clean_N.any() else followed.seen
    largest = float(np.max(followed.radius[whole_F], initial=0.0))
    size = min(SIZES, key=lambda size: abs(np.log(SIZES[size] / largest))) if largest else None
    return replace(followed, size=size, motion=name_motion(followed, whole_F, fps))


def _shape(misfit_NP: Array) -> tuple[str, bool]:
    """The shape that fits best over all frames, and whether that is clear."""
    misfit_S = np.array([misfit_NP[:, of_shape(shape)].min(1).mean() for shape in SHAPES])
    best, second = np.argsort(misfit_S)[:2]
    return SHAPES[int(best)], bool(misfit_S[best] < 0.2 and misfit_S[second] > misfit_S[best] * 1.05 + 0.001)


def _opacity(track: Track) -> Array:
    """How far each blob's colour is from the background to the object's colour; 1 where it is strongest."""
    full = max(track, key=lambda blob: blob.strength)
    way = full.squared - full.ground
    share = np.array([(blob.squared - blob.ground) @ way for blob in track]) / max(float(way @ way), 1e-6)
    return np.clip(share, 0.01, 1.3)


def _completed(view: View, track: Track, wholes: list[Placed], clean_N: Array) -> list[Placed]:
    """Where it touches something: its whole outline, as it is in the nearest frame in which it touches nothing."""
    known = [wholes[min(np.flatnonzero(clean_N), key=lambda m: abs(m - n))] for n in range(len(track))]
    return [
        whole if is_clean else place_whole(*_masks(view, blob), [(like.template, like.disc)])[0]
        for blob, whole, like, is_clean in zip(track, wholes, known, clean_N, strict=True)
    ]


def _guessed(view: View, track: Track) -> tuple[str, bool, list[Placed]]:
    """What touches in every frame, and never looks like a shape: the upright shape that explains best what is seen of it."""
    bank, choices = templates(), []
    for shape in SHAPES:
        period = PERIOD.get(shape, 360)
        for p in of_shape(shape):
            if abs((bank.angle_P[p] + period / 2) % period - period / 2) <= 13:
                choices += [(int(p), size / float(bank.radius_P[p])) for size in SIZES.values()]
    found = place_whole(*_masks(view, max(track, key=lambda blob: blob.area)), choices)
    best = min(found, key=lambda each: each.misfit)
    second = min(each.misfit for each in found if bank.shape_P[each.template] != bank.shape_P[best.template])
    wholes = [place_whole(*_masks(view, blob), [(best.template, best.disc)])[0] for blob in track]
    return SHAPES[bank.shape_P[best.template]], best.misfit < 0.4 and second > 1.1 * best.misfit, wholes


def _masks(view: View, blob: Blob) -> tuple[Array, Array]:
    """A blob's soft mask at the coarse resolution, and where the frame's other blobs are."""
    side = len(blob.region_HW)
    others = [other.region_HW for other in view.blobs[blob.frame] if other is not blob]
    soft = soft_mask(view, blob).reshape(side, COARSE, side, COARSE).mean((1, 3))
    return soft, np.logical_or.reduce([np.zeros_like(blob.region_HW), *others])
