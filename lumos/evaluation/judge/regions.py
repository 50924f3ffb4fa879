"""Strength of every pixel -> blobs: connected regions that stand out from the background and have one colour.

Everything here is on a coarse grid, half the resolution; outlines.py goes back to the full one.
"""

from collections import namedtuple
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray as Array
from scipy import ndimage

from lumos.evaluation.judge.colours import COLOUR_NAMES, length, nearest_names, to_lab

COARSE = 2  # blobs are found on this fraction of the resolution
FAINT = 0.035  # least strength of a visible blob
APART = 22.0  # least Lab distance of two colours that are two objects' and not shades of one
SOLID = 0.15  # least strength of an object that is not fading
CUT = 0.3  # a region's edge, relative to its strength: low, so that the darker parts of textures stay in
LEAST = 0.003  # smallest blob, fraction of the frame's area


@dataclass(eq=False)
class Blob:
    """One connected region of one colour in one frame. Lengths are in frame widths, x to the right and y down."""

    frame: int
    colour: str
    strength: float  # distance to the background, relative; proportional to opacity
    weakest: float  # strength of its faintest inside: the darker parts of a texture
    x: float
    y: float
    area: float
    region_HW: Array = field(repr=False)  # bool, at the coarse resolution
    squared: Array = field(repr=False)  # its middle colour, squared values
    ground: Array = field(repr=False)  # the background's there, squared values
    lab: Array = field(repr=False)  # its middle colour
    touches: bool = False  # another object or the frame's border, so that its outline may be incomplete


# One frame at the coarse resolution.
_Frame = namedtuple("_Frame", "number strength_HW squared_HWC ground_HWC names_HW")


def find_blobs(strength_FHW: Array, squared_FHWC: Array, ground_FHWC: Array) -> list[list[Blob]]:
    """The blobs of every frame."""
    names_FHW = nearest_names(squared_FHWC)
    values = zip(strength_FHW, squared_FHWC, ground_FHWC, names_FHW, strict=True)
    return [_blobs_of(_Frame(number, *each)) for number, each in enumerate(values)]


def _blobs_of(frame: _Frame) -> list[Blob]:
    """Regions that stand out, each cut at a third of its own strength, then split where it has several colours."""
    found = []
    # Insides of weak things beside strong ones: flat, as soft edges are not.
    most, least = ndimage.maximum_filter(frame.strength_HW, 3), ndimage.minimum_filter(frame.strength_HW, 3)
    solid = (least > 0.7 * most) & (least > SOLID)
    for part in _regions(frame.strength_HW > FAINT):
        top = np.quantile(frame.strength_HW[part], 0.8)
        kept = part & ((frame.strength_HW > CUT * top) | solid)
        regions = _regions(kept)
        if len(regions) > 1:
            regions = [_reclaimed(frame, region, part & ~kept) for region in regions]
        blobs = [blob for region in regions for blob in _split(frame, region)]
        for blob in blobs:
            blob.touches = _touches(blob, blobs)
        found += blobs
    return found


def _regions(mask_HW: Array) -> list[Array]:
    """The connected regions that are large enough."""
    labels, _ = ndimage.label(mask_HW)
    sizes = np.bincount(labels.ravel())
    return [labels == number for number in range(1, len(sizes)) if sizes[number] >= LEAST * mask_HW.size]


def _reclaimed(frame: _Frame, region: Array, free: Array) -> Array:
    """A region with what was cut off between it and a stronger one: pixels of its colour beside it."""
    name = np.bincount(frame.names_HW[region]).argmax()
    free = free & (frame.names_HW == name) & (frame.strength_HW > CUT * np.median(frame.strength_HW[region]))
    return ndimage.binary_dilation(region, iterations=4, mask=free)


def _split(frame: _Frame, region: Array) -> list[Blob]:
    """One blob for a region of one colour; one for each of its colours if there are several that are plainly apart."""
    inside = ndimage.binary_erosion(region)
    core = inside if inside.sum() >= 6 else region & (frame.strength_HW > 0.7 * frame.strength_HW[region].max())
    votes = np.bincount(frame.names_HW[core], minlength=len(COLOUR_NAMES))
    kept: list[int] = []
    middles: list[Array] = []
    for name in np.argsort(-votes, kind="stable"):
        if kept and votes[name] < max(0.025 * votes.sum(), 6):
            break
        middle = np.median(frame.squared_HWC[core & (frame.names_HW == name)], axis=0)
        apart = [length(to_lab(middle) - to_lab(other)) for other in middles]
        if min(apart, default=np.inf) > APART and not _is_mixture(middle, middles):
            kept.append(int(name))
            middles.append(middle)
    if len(kept) == 1:
        return [_blob(frame, kept[0], region, core)]
    nearest = length(to_lab(frame.squared_HWC)[..., None, :] - to_lab(np.stack(middles))).argmin(-1)
    parts = _settled([region & (nearest == i) for i in range(len(kept))], region)
    return [_blob(frame, name, part, core) for name, part in zip(kept, parts, strict=True) if part.mean() >= LEAST]


def _is_mixture(middle: Array, others: list[Array]) -> bool:
    """Whether a colour is what a soft edge between the first two others looks like."""
    if len(others) < 2:
        return False
    one, way = others[0], others[1] - others[0]
    share = float((middle - one) @ way / (way @ way))
    return 0.1 < share < 0.9 and bool(np.linalg.norm(one + share * way - middle) < 0.12)


def _settled(parts: list[Array], region: Array) -> list[Array]:
    """Parts grown back from their insides: the soft edge of one colour may look like another, but is only a line."""
    grown = [ndimage.binary_propagation(ndimage.binary_erosion(part), mask=part) for part in parts]
    labels = sum((number * part for number, part in enumerate(grown, 1)), start=np.zeros(region.shape, dtype=int))
    row, column = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return [region & (labels[row, column] == number) for number in range(1, len(parts) + 1)]


def _touches(blob: Blob, blobs: list[Blob]) -> bool:
    """Whether it has the frame's border or another colour beside it."""
    part = blob.region_HW
    edges = np.concatenate([part[[0, -1]], part[:, [0, -1]].T])
    around = ndimage.binary_dilation(part, iterations=2) & ~part
    beside = sum((around & other.region_HW).sum() for other in blobs if other.colour != blob.colour)
    return bool(edges.any() or beside > max(4, 0.06 * around.sum()))


def _blob(frame: _Frame, name: int, part: Array, core: Array) -> Blob:
    core, side = part & core if (part & core).any() else part, len(part)
    middle, weakest = (float(value) for value in np.quantile(frame.strength_HW[core], (0.5, 0.15)))
    row, column = ndimage.center_of_mass(np.clip(frame.strength_HW / max(middle, 1e-6), 0, 1) * part)
    squared = np.median(frame.squared_HWC[core], axis=0)
    return Blob(
        frame=frame.number,
        colour=COLOUR_NAMES[name],
        strength=middle,
        weakest=weakest,
        x=(column + 0.5) / side,
        y=(row + 0.5) / side,
        area=float(part.mean()),
        region_HW=part,
        squared=squared,
        ground=frame.ground_HWC[core].mean(0),
        lab=to_lab(squared),
    )
