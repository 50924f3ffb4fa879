"""Strength of every pixel -> blobs: connected regions that stand out from the background and have one colour.

Everything here is on a coarse grid, half the resolution; silhouettes.py goes back to the full one for outlines.
"""

from dataclasses import dataclass, field

import numpy as np

from lumos.evaluation.judge.colours import COLOUR_NAMES, Array, beyond_shade, lab, nearest_names, rgb_of

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
    colour_share: float  # of the region's inside that has this colour, or nearly
    rgb: tuple[float, float, float]  # its middle colour, 0 to 255
    strength: float  # distance to the background, relative; proportional to opacity
    x: float
    y: float
    area: float
    region_HW: Array = field(repr=False)  # bool, at the coarse resolution
    squared: Array = field(repr=False)  # its middle colour, squared values
    ground: Array = field(repr=False)  # the background's there, squared values
    weakest: float  # strength of its faintest inside: the darker parts of a texture
    touches: bool  # another object or the frame's border, so that its outline may be incomplete

    @property
    def tone(self) -> Array:
        """Difference to the nearest shade of the background; its direction stays while a thing fades."""
        return beyond_shade(self.squared, self.ground)


@dataclass
class _Window:
    """The part of one frame around a region, on the coarse grid."""

    frame: int
    top: int
    left: int
    side: int  # of the whole frame
    names: Array
    squared: Array
    ground: Array
    strength: Array


def find_blobs(strength_FHW: Array, squared_FHWC: Array, ground_FHWC: Array) -> list[list[Blob]]:
    """Regions that stand out, each cut at a third of its own strength, then split where it has several colours."""
    frames, side, _ = strength_FHW.shape
    rough = label_regions(strength_FHW > FAINT)
    tops = _tops(rough, strength_FHW)
    kept = (strength_FHW > CUT * tops[rough]) | _beside(strength_FHW)
    kept |= _of_another_colour(strength_FHW, squared_FHWC, ground_FHWC, rough, tops)
    names_FHW = nearest_names(rgb_of(squared_FHWC))
    regions = _reclaim(label_regions((rough > 0) & kept), rough, names_FHW, strength_FHW)
    inner_FHW = _erode(regions > 0)
    blobs: list[list[Blob]] = [[] for _ in range(frames)]
    counts = np.bincount(regions.ravel())
    boxes = _boxes(regions, len(counts))
    for number in np.flatnonzero(counts >= LEAST * side * side):
        if number == 0:
            continue
        frame, top, bottom, left, right = (int(edge) for edge in boxes[number])
        at = (frame, slice(top, bottom + 1), slice(left, right + 1))
        window = _Window(frame, top, left, side, names_FHW[at], squared_FHWC[at], ground_FHWC[at], strength_FHW[at])
        region = regions[at] == number
        blobs[frame] += _split(window, region, region & inner_FHW[at])
    return [_related(found, rough_HW) for found, rough_HW in zip(blobs, rough, strict=True)]


def _related(blobs: list[Blob], rough_HW: Array) -> list[Blob]:
    """The blobs of a frame with `touches` set where they are side by side, and pieces with another thing between them joined."""
    parts = [int(rough_HW[blob.region_HW].max()) for blob in blobs]
    if len(set(parts)) == len(parts):
        return blobs
    for blob, part in zip(blobs, parts, strict=True):
        others = [other.region_HW for other, of in zip(blobs, parts, strict=True) if of == part and other.colour != blob.colour]
        if others:
            around = grow(grow(blob.region_HW)) & ~blob.region_HW
            contact = int((around & np.logical_or.reduce(others)).sum())
            blob.touches |= contact > max(4, 0.06 * int(around.sum()))
    joined: dict[tuple[int, str], Blob] = {}
    kept = []
    for blob, part in sorted(zip(blobs, parts, strict=True), key=lambda pair: -pair[0].area):
        first = joined.setdefault((part, blob.colour), blob)
        if first is not blob and first.touches and blob.touches:
            _join(first, blob)
        else:
            kept.append(blob)
    return kept


def _join(blob: Blob, piece: Blob) -> None:
    share = piece.area / (blob.area + piece.area)
    blob.x += share * (piece.x - blob.x)
    blob.y += share * (piece.y - blob.y)
    blob.area += piece.area
    blob.region_HW |= piece.region_HW
    blob.weakest = min(blob.weakest, piece.weakest)


def label_regions(mask_FHW: Array) -> Array:
    """Connected regions (4 neighbours) of each frame: int labels from 1, counted through all frames; 0 elsewhere.

    Runs of a row are joined with the runs they touch in the row above, by passing on the smallest label.
    """
    frames, height, width = mask_FHW.shape
    padded = np.zeros((frames, height + 1, width + 2), dtype=np.int8)  # an empty row between frames
    padded[:, 1:, 1:-1] = mask_FHW
    steps = np.diff(padded.reshape(-1, width + 2), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, stops = np.nonzero(steps == -1)
    if not len(rows):
        return np.zeros(mask_FHW.shape, dtype=np.int32)
    stride = width + 2
    begin, end = rows * stride + starts, rows * stride + stops
    # Runs of the row above that end after this one's begin and begin before its end.
    first = np.searchsorted(end, begin - stride, side="right")
    last = np.searchsorted(begin, end - stride, side="left")
    touching = np.maximum(last - first, 0)
    below = np.repeat(np.arange(len(begin)), touching)
    above = np.repeat(first, touching) + np.arange(touching.sum()) - np.repeat(np.cumsum(touching) - touching, touching)
    label = np.arange(len(begin))
    while True:
        least = np.minimum(label[below], label[above])
        new = label.copy()
        np.minimum.at(new, below, least)
        np.minimum.at(new, above, least)
        np.minimum.at(new, label[below], least)
        np.minimum.at(new, label[above], least)
        new = new[new]
        if (new == label).all():
            break
        label = new
    _, label = np.unique(label, return_inverse=True)
    filled = np.zeros((frames * (height + 1), width + 1), dtype=np.int32)
    np.add.at(filled, (rows, starts), label + 1)
    np.subtract.at(filled, (rows, stops), label + 1)
    return np.cumsum(filled, axis=1)[:, :width].reshape(frames, height + 1, width)[:, 1:].astype(np.int32)


def _beside(strength_FHW: Array) -> Array:
    """Insides of weak things beside strong ones: not much weaker than what is around them, or flat, as soft edges are not."""
    most, least = _around(strength_FHW, np.maximum), _around(strength_FHW, np.minimum)
    around = _around(_around(most, np.maximum), np.maximum)
    return ((least > 0.7 * most) & (least > SOLID)) | ((strength_FHW > CUT * around) & (strength_FHW > SOLID))


def _around(values_FHW: Array, choose: np.ufunc) -> Array:
    """The largest (np.maximum) or smallest (np.minimum) of the 3x3 pixels around each."""
    rows = values_FHW.copy()
    choose(rows[:, 1:], values_FHW[:, :-1], out=rows[:, 1:])
    choose(rows[:, :-1], values_FHW[:, 1:], out=rows[:, :-1])
    both = rows.copy()
    choose(both[:, :, 1:], rows[:, :, :-1], out=both[:, :, 1:])
    choose(both[:, :, :-1], rows[:, :, 1:], out=both[:, :, :-1])
    return both


def _of_another_colour(strength_FHW: Array, squared_FHWC: Array, ground_FHWC: Array, rough: Array, tops: Array) -> Array:
    """Weak pixels beside something strong that are no mixture of it with the background, as its soft edge would be."""
    count = len(tops)
    strong = (rough > 0) & (strength_FHW > 0.8 * tops[rough])
    label = rough[strong]
    number = np.maximum(np.bincount(label, minlength=count), 1)
    middle = np.stack([np.bincount(label, squared_FHWC[strong][:, c], count) / number for c in range(3)], axis=1)
    weak = (rough > 0) & (strength_FHW > SOLID) & (strength_FHW <= CUT * tops[rough])
    ground = ground_FHWC[weak]
    away, way = squared_FHWC[weak] - ground, middle[rough[weak]] - ground
    share = (away * way).sum(1) / np.maximum((way * way).sum(1), 1e-6)
    kept = np.zeros(strength_FHW.shape, dtype=bool)
    kept[weak] = np.linalg.norm(away - share[:, None] * way, axis=1) > 0.5 * np.linalg.norm(away, axis=1)
    return kept


def _reclaim(regions: Array, rough: Array, names: Array, strength: Array) -> Array:
    """Give weak regions back what was cut off between them and a strong one: pixels of their colour beside them."""
    counts = np.bincount(regions.ravel())
    counts[0] = 0
    parts = np.zeros(len(counts), dtype=np.int64)
    parts[regions.ravel()] = rough.ravel()
    large = counts >= LEAST * regions.shape[1] ** 2
    crowded = np.flatnonzero(np.bincount(parts[large], minlength=1) > 1)
    for number in np.flatnonzero(large & np.isin(parts, crowded[crowded > 0])):
        frame = int(np.argmax((regions == number).any((1, 2))))
        region = regions[frame] == number
        name = np.bincount(names[frame][region]).argmax()
        free = (regions[frame] == 0) & (rough[frame] == parts[number]) & (names[frame] == name)
        free &= strength[frame] > CUT * np.median(strength[frame][region])
        for _ in range(4):
            region |= grow(region) & free
        regions[frame][region] = number
    return regions


def _tops(regions: Array, strength: Array) -> Array:
    """The strength that the strongest fifth of each region reaches."""
    count = int(regions.max()) + 1
    places = np.flatnonzero(regions)
    label, value = regions.ravel()[places], strength.ravel()[places]
    order = np.lexsort((value, label))
    ends = np.searchsorted(label[order], np.arange(1, count), side="right")
    begins = np.searchsorted(label[order], np.arange(1, count), side="left")
    tops = np.full(count, np.inf, dtype=np.float32)
    if count > 1:
        tops[1:] = value[order][np.minimum(begins + ((ends - begins) * 0.8).astype(int), ends - 1)]
    return tops


def _boxes(regions: Array, count: int) -> Array:
    """Frame, top, bottom, left and right of each label."""
    frame, row, column = np.nonzero(regions)
    label = regions[frame, row, column]
    boxes = np.full((count, 5), 10**6)
    boxes[:, [2, 4]] = -1
    boxes[label, 0] = frame
    np.minimum.at(boxes[:, 1], label, row)
    np.maximum.at(boxes[:, 2], label, row)
    np.minimum.at(boxes[:, 3], label, column)
    np.maximum.at(boxes[:, 4], label, column)
    return boxes


def _split(window: _Window, region: Array, inside: Array) -> list[Blob]:
    """One blob for a region of one colour; one for each of its colours if there are several that are plainly apart."""
    core = inside if inside.sum() >= 6 else region & (window.strength > 0.7 * window.strength[region].max())
    votes = np.bincount(window.names[core], minlength=len(COLOUR_NAMES))
    kept: list[int] = []
    middles: list[Array] = []
    for name in np.argsort(-votes, kind="stable"):
        if kept and votes[name] < max(0.025 * votes.sum(), 6):
            break
        middle = np.median(window.squared[core & (window.names == name)], axis=0)
        if all(_lab_apart(middle, other) > APART for other in middles) and not _mixed(middle, middles):
            kept.append(int(name))
            middles.append(middle)
    if len(kept) == 1:
        return [_blob(window, region, core, kept[0])]
    to_middles = lab(rgb_of(window.squared))[..., None, :] - lab(rgb_of(np.stack(middles)))
    nearest = np.where(region, np.linalg.norm(to_middles, axis=-1).argmin(-1), -1)
    parts = _settled([nearest == i for i in range(len(kept))], region)
    return [
        _blob(window, part, part & core, name)
        for name, part in zip(kept, parts, strict=True)
        if part.sum() >= LEAST * window.side**2
    ]


def _settled(parts: list[Array], region: Array) -> list[Array]:
    """Parts grown back from their insides: the soft edge of one colour may look like another, but is only a line."""
    settled = [_erode(part[None])[0] for part in parts]
    free = region & ~np.logical_or.reduce(settled)
    while True:
        for i, part in enumerate(settled):
            settled[i] = part | (grow(part) & free & parts[i])
            free = free & ~settled[i]
        grown = [grow(part) & free for part in settled]
        if not any(more.any() for more in grown):
            return settled
        for i, more in enumerate(grown):
            settled[i] = settled[i] | (more & free)
            free = free & ~more


def _mixed(middle: Array, others: list[Array]) -> bool:
    """Whether a (squared) colour is what a soft edge between the first two others looks like."""
    if len(others) < 2:
        return False
    one, other = others[:2]
    share = float((middle - one) @ (other - one) / ((other - one) @ (other - one)))
    return 0.1 < share < 0.9 and bool(np.linalg.norm(one + share * (other - one) - middle) < 0.12)


def _blob(window: _Window, part: Array, core: Array, name: int) -> Blob:
    core = core if core.any() else part
    height, width = part.shape
    top, left, side = window.top, window.left, window.side
    strength = window.strength[core]
    middle, weakest = (float(value) for value in np.quantile(strength, (0.5, 0.15)))
    soft = np.clip(window.strength / max(middle, 1e-6), 0, 1) * part
    total = float(soft.sum())
    region = np.zeros((side, side), dtype=bool)
    region[top : top + height, left : left + width] = part
    squared, ground = np.median(window.squared[core], axis=0), window.ground[core].mean(0)
    red, green, blue = rgb_of(squared)
    return Blob(
        frame=window.frame,
        colour=COLOUR_NAMES[name],
        colour_share=float((window.names[core] == name).mean()),
        rgb=(float(red), float(green), float(blue)),
        strength=middle,
        x=float(soft.sum(0) @ (np.arange(width) + left + 0.5)) / total / side,
        y=float(soft.sum(1) @ (np.arange(height) + top + 0.5)) / total / side,
        area=float(part.sum()) / side**2,
        region_HW=region,
        squared=squared,
        ground=ground,
        weakest=weakest,
        touches=top == 0 or left == 0 or top + height == side or left + width == side,
    )


def _lab_apart(one: Array, other: Array) -> float:
    return float(np.linalg.norm(lab(rgb_of(one)) - lab(rgb_of(other))))


def grow(mask_HW: Array) -> Array:
    """With the pixels beside it."""
    out = mask_HW.copy()
    out[1:] |= mask_HW[:-1]
    out[:-1] |= mask_HW[1:]
    out[:, 1:] |= mask_HW[:, :-1]
    out[:, :-1] |= mask_HW[:, 1:]
    return out


def _erode(mask_FHW: Array) -> Array:
    """Without the outermost pixels."""
    out = mask_FHW.copy()
    out[:, 1:] &= mask_FHW[:, :-1]
    out[:, :-1] &= mask_FHW[:, 1:]
    out[:, :, 1:] &= mask_FHW[:, :, :-1]
    out[:, :, :-1] &= mask_FHW[:, :, 1:]
    return out
