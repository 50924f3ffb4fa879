"""Outlines that are partly hidden: where the whole thing must be, when what lies under another object may be anything.

A template is slid over the region that is seen; it must cover all of it and nothing of the background, while under the
objects that touch it (and outside the frame) it is free. All on the coarse grid of seeing.py.
"""

from dataclasses import dataclass

import numpy as np

from lumos.evaluation.judge.colours import Array
from lumos.evaluation.judge.regions import grow
from lumos.evaluation.judge.silhouettes import GRID, REACH, templates

PAD = 16  # coarse pixels around the frame in which a thing may lie


@dataclass(frozen=True)
class Hidden:
    """The best place of a partly hidden outline."""

    misfit: float  # squared differences where it is free to be seen, relative to the region that is seen
    template: int
    disc: float  # radius of the disc of the same area, frame widths
    x: float  # its centre of mass, frame widths
    y: float
    share: float  # of it that is not seen


def complete(soft_HW: Array, others_HW: Array, choices: list[tuple[int, float]]) -> list[Hidden]:
    """The best place of each of some templates (index and disc radius)."""
    side = len(soft_HW)
    region_HW = soft_HW > 0.5
    size = side + 2 * PAD
    inner = (slice(PAD, PAD + side), slice(PAD, PAD + side))
    seen, care = np.zeros((size, size)), np.zeros((size, size))
    seen[inner] = soft_HW
    care[inner] = ~grow(others_HW & ~region_HW) | region_HW
    spectra = np.fft.rfft2(np.stack([seen, care]))
    total = max(float(np.square(seen).sum()), 1.0)
    found = []
    for index, disc in choices:
        template = _template(index, disc * side, size)
        shapes = np.conj(np.fft.rfft2(np.stack([template, template * template])))
        overlap, cost = np.fft.irfft2(spectra * shapes, s=(size, size))
        share = 1 - overlap / np.square(template).sum()
        misfit = (total - 2 * overlap + cost) / total + 0.05 * share
        at = int(misfit.argmin())
        row, column = divmod(at, size)
        x, y = _centre(column, size, side), _centre(row, size, side)
        found.append(Hidden(float(misfit.flat[at]), index, disc, x, y, float(share.flat[at])))
    return found


def covered(side: int, index: int, disc: float, x: float, y: float) -> Array:
    """The pixels of the coarse grid that a whole outline covers."""
    size = side + 2 * PAD
    shift = (round(y * side - 0.5) + PAD, round(x * side - 0.5) + PAD)
    return np.roll(_template(index, disc * side, size), shift, (0, 1))[PAD : PAD + side, PAD : PAD + side] > 0.5


def _template(index: int, disc: float, size: int) -> Array:
    """A template at a disc radius in coarse pixels, its centre of mass in the middle of pixel 0, 0 (it wraps around)."""
    steps = np.arange(size) - size // 2
    places = (steps / (REACH * disc) + 1) / 2 * GRID - 0.5
    spread = np.clip(1 - np.abs(places[:, None] - np.arange(GRID)), 0, 1)
    picture = templates().outline_PG[index].reshape(GRID, GRID)
    return np.roll(spread @ picture @ spread.T, (-(size // 2), -(size // 2)), (0, 1))


def _centre(place: int, size: int, side: int) -> float:
    """Frame widths of a shift on the padded grid."""
    return ((place if place < size - PAD // 2 else place - size) - PAD + 0.5) / side
