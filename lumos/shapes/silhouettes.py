"""Which shape a blob has, how large it is, how it is turned and where its middle is: outlines compared with rendered ones.

An outline is brought to one size and place (those of a disc of the same area) and compared with every shape at every
angle. The templates are made by looking at rendered shapes with the same eyes, so nothing here is tuned by hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from lumos.shapes.blobs import COARSE, Blob
from lumos.shapes.colours import Array
from lumos.shapes.motion import TURNS
from lumos.shapes.render import pack, render
from lumos.shapes.scene import Background, Scene
from lumos.shapes.seeing import View, look
from lumos.shapes.thing import SHAPES, SIZES, Thing

GRID = 20  # an outline is compared on this many places a side
REACH = 1.9  # half the side, in radii of the disc of the same area
PERIOD = {"square": 90, "triangle": 120, "star": 72, "cross": 90, "pentagon": 72, "hexagon": 60, "diamond": 180}
ROUND = ("circle", "ring")  # look the same at every angle
STEP = 6.0  # degrees between templates
BLURS = (0.15, 0.3)  # of a thing's radius: by so much each template is also blurred
BLURRED = 0.01  # what that costs


@dataclass(frozen=True)
class Templates:
    """Outlines [P, GRID * GRID] with the shape and angle of each, and what their thing is like when the disc has radius 1."""

    outline_PG: Array
    blurred_PG: tuple[Array, ...]  # the same outlines, more and more blurred
    shape_P: Array  # index into SHAPES
    angle_P: Array  # degrees, clockwise
    radius_P: Array  # of the thing
    middle_P2: Array  # of the thing, from the outline's centre of mass


@dataclass(frozen=True)
class Outline:
    """A blob's soft mask brought to one size: where, how large (radius of the disc of the same area), and its picture."""

    x: float
    y: float
    disc: float
    picture_G: Array


def outlines(view: View, blobs: Sequence[Blob]) -> list[Outline]:
    """The outlines of some blobs, from the full resolution."""
    return [outline(soft_mask(view, blob)) for blob in blobs]


def soft_mask(view: View, blob: Blob) -> tuple[Array, int, int, int]:
    """How much each pixel belongs to the blob, 0 to 1, in a window around it; the window's top and left, the frame's width."""
    rows, columns = np.flatnonzero(blob.region_HW.any(1)), np.flatnonzero(blob.region_HW.any(0))
    top, bottom = max(rows[0] - 1, 0), min(rows[-1] + 2, blob.region_HW.shape[0])
    left, right = max(columns[0] - 1, 0), min(columns[-1] + 2, blob.region_HW.shape[1])
    region = blob.region_HW[top:bottom, left:right]
    wide = region.copy()
    wide[1:] |= region[:-1]
    wide[:-1] |= region[1:]
    wide[:, 1:] |= wide[:, :-1].copy()
    wide[:, :-1] |= wide[:, 1:].copy()
    if blob.touches:
        wide = region
    top, bottom, left, right = (COARSE * value for value in (top, bottom, left, right))
    strength = view.strength_FHW[blob.frame, top:bottom, left:right]
    soft = np.clip((strength / blob.weakest - 0.25) / 0.5, 0, 1) * wide.repeat(COARSE, 0).repeat(COARSE, 1)
    return soft, top, left, view.strength_FHW.shape[2]


def outline(mask: tuple[Array, int, int, int]) -> Outline:
    """Bring a soft mask to one size."""
    soft, top, left, width = mask
    rows, columns = np.arange(soft.shape[0], dtype=np.float32), np.arange(soft.shape[1], dtype=np.float32)
    area = float(soft.sum())
    x, y = float(soft.sum(0) @ columns) / area, float(soft.sum(1) @ rows) / area
    disc = (area / np.pi) ** 0.5
    fine = 2 * GRID
    steps = ((np.arange(fine) + 0.5) / fine * 2 - 1) * REACH * disc
    across, down = _weights(x + steps, soft.shape[1]), _weights(y + steps, soft.shape[0])
    picture = (down @ soft @ across.T).reshape(GRID, 2, GRID, 2).mean((1, 3))
    return Outline((x + left + 0.5) / width, (y + top + 0.5) / width, disc / width, picture.ravel().astype(np.float32))


def _weights(places: Array, length: int) -> Array:
    """[places, length]: linear interpolation as a matrix; nothing outside."""
    return np.clip(1 - np.abs(places[:, None] - np.arange(length)), 0, 1).astype(np.float32)


def misfits(pictures_NG: Array) -> Array:
    """[N, P]: squared distance of outlines to every template, relative to what fills the template.

    What is blurred loses its corners and fills its notches: a small star looks like a pentagon. So the templates are compared
    blurred, too; that costs a little, and the best counts.
    """
    bank = templates()
    blurred_NP = [_distances(pictures_NG, each_PG) for each_PG in bank.blurred_PG]
    return np.minimum(_distances(pictures_NG, bank.outline_PG), BLURRED + np.minimum.reduce(blurred_NP))


def _distances(pictures_NG: Array, outline_PG: Array) -> Array:
    power = np.square(outline_PG).sum(1)
    # Not a matrix product: threads that wait for each other cost more than they bring.
    cross = np.einsum("ng,pg->np", pictures_NG, outline_PG)
    return np.maximum(np.square(pictures_NG).sum(1)[:, None] - 2 * cross + power, 0) / power


def _largest(view: View) -> list[Outline]:
    """The outline of each frame's largest blob."""
    return outlines(view, [max(blobs, key=lambda blob: blob.area) for blobs in view.blobs])


def _blur(pixels_CFHW: Tensor, deviation: float) -> Tensor:
    """Blurred by a Gaussian, in pixels."""
    reach = int(3 * deviation) + 1
    steps = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-(steps**2) / (2 * deviation**2))
    kernel = kernel / kernel.sum()
    padded = pad(pixels_CFHW, (reach, reach, reach, reach), mode="replicate")
    down = conv2d(padded.flatten(0, 1)[:, None], kernel[None, None, :, None])
    return conv2d(down, kernel[None, None, None]).view_as(pixels_CFHW)


@lru_cache(maxsize=1)
def templates() -> Templates:
    """Every shape at every angle that looks different."""
    outlines_, shapes, angles, radii, middles = [], [], [], [], []
    blurred: tuple[list[Array], ...] = tuple([] for _ in BLURS)
    for number, shape in enumerate(SHAPES):
        count = 1 if shape in ROUND else round(PERIOD.get(shape, 360) / STEP)
        start = -(count // 2) * STEP  # of turns that look the same, the one nearest to upright
        thing = Thing(shape, "red", "large", "plain", 0.5, 0.5, "spinning", "quickly", angle=start)
        fps = TURNS["quickly"] * 360 / STEP
        pixels_CFHW = render(pack([Scene(Background("light gray"), (thing,))]), count, fps=fps)[0]
        for i, found in enumerate(_largest(look(pixels_CFHW))):
            outlines_.append(found.picture_G)
            shapes.append(number)
            angles.append(start + i * STEP)
            radii.append(SIZES["large"] / found.disc)
            middles.append(((0.5 - found.x) / found.disc, (0.5 - found.y) / found.disc))
        for bank, share in zip(blurred, BLURS, strict=True):
            bank += [
                found.picture_G for found in _largest(look(_blur(pixels_CFHW, share * SIZES["large"] * pixels_CFHW.shape[3])))
            ]
    return Templates(
        np.stack(outlines_),
        tuple(np.stack(bank) for bank in blurred),
        np.array(shapes),
        np.array(angles),
        np.array(radii),
        np.array(middles),
    )
