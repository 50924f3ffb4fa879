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

from lumos.evaluation.judge.background import View, look
from lumos.evaluation.judge.colours import Array
from lumos.evaluation.judge.regions import COARSE, Blob
from lumos.worlds.shapes.motion import TURNS
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import Background, Scene
from lumos.worlds.shapes.thing import SHAPES, SIZES, Thing

GRID = 20  # an outline is compared on this many places a side
REACH = 1.9  # half the side, in radii of the disc of the same area
PERIOD = {"square": 90, "triangle": 120, "star": 72, "cross": 90, "pentagon": 72, "hexagon": 60, "diamond": 180}
ROUND = ("circle", "ring")  # look the same at every angle
STEP = 6.0  # degrees between templates
BLURS = (0.0, 0.15, 0.3)  # of a thing's radius: each template is seen sharp, and blurred by so much
BLURRED = 0.01  # what a blurred one costs


@dataclass(frozen=True)
class Templates:
    """Outlines on GRID * GRID places, their shapes and angles, and what each thing is like when the disc has radius 1."""

    seen_SPG: Array  # for each of BLURS
    shape_P: Array  # index into SHAPES
    angle_P: Array  # degrees, clockwise
    radius_P: Array  # of the thing
    middle_P2: Array  # of the thing, from the outline's centre of mass

    @property
    def outline_PG(self) -> Array:
        """The sharp ones."""
        return self.seen_SPG[0]


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
    bank_QG = templates().seen_SPG.reshape(-1, pictures_NG.shape[1])
    power_Q = np.square(bank_QG).sum(1)
    # Not a matrix product: threads that wait for each other cost more than they bring.
    cross_NQ = np.einsum("ng,qg->nq", pictures_NG, bank_QG)
    distance_NQ = np.maximum(np.square(pictures_NG).sum(1)[:, None] - 2 * cross_NQ + power_Q, 0) / power_Q
    distance_NSP = distance_NQ.reshape(len(pictures_NG), len(BLURS), -1)
    distance_NSP[:, 1:] += BLURRED
    return distance_NSP.min(1)


def _largest(view: View) -> list[Outline]:
    """The outline of each frame's largest blob."""
    return outlines(view, [max(blobs, key=lambda blob: blob.area) for blobs in view.blobs])


def _blur(pixels_CFHW: Tensor, deviation: float) -> Tensor:
    """Blurred by a Gaussian, in pixels: rows and columns times a matrix."""
    if not deviation:
        return pixels_CFHW
    place = torch.arange(pixels_CFHW.shape[-1])
    away = (place[:, None] - place).square()
    weight = torch.exp(-away / (2 * deviation**2)) * (away <= (3 * deviation + 1) ** 2)
    weight = weight / weight.sum(1, keepdim=True)
    return weight @ pixels_CFHW @ weight.T


@lru_cache(maxsize=1)
def templates() -> Templates:
    """Every shape at every angle that looks different."""
    shapes, angles, radii, middles = [], [], [], []
    seen: list[list[Array]] = [[] for _ in BLURS]
    for number, shape in enumerate(SHAPES):
        count = 1 if shape in ROUND else round(PERIOD.get(shape, 360) / STEP)
        start = -(count // 2) * STEP  # of turns that look the same, the one nearest to upright
        thing = Thing(shape, "red", "large", "plain", 0.5, 0.5, "spinning", "quickly", angle=start)
        fps = TURNS["quickly"] * 360 / STEP
        pixels_CFHW = render(pack([Scene(Background("light gray"), (thing,))]), count, fps=fps)[0]
        radius = SIZES["large"] * pixels_CFHW.shape[-1]
        for blur, bank in zip(BLURS, seen, strict=True):
            found = _largest(look(_blur(pixels_CFHW, blur * radius)))
            bank += [each.picture_G for each in found]
            if not blur:
                shapes += [number] * count
                angles += [start + i * STEP for i in range(count)]
                radii += [SIZES["large"] / each.disc for each in found]
                middles += [((0.5 - each.x) / each.disc, (0.5 - each.y) / each.disc) for each in found]
    return Templates(np.stack([np.stack(bank) for bank in seen]), *map(np.array, (shapes, angles, radii, middles)))
