"""Which shape a blob has, how large it is, how it is turned and where its middle is: outlines compared with rendered ones.

An outline is brought to one size and place (those of a disc of the same area) and compared with every shape at every
angle. The templates are made by looking at rendered shapes in the same way, so nothing here is tuned by hand.

Where a part is hidden, a template is slid over what is seen: it must cover all of it and nothing of the background, while
under the objects that touch it (and outside the frame) it is free.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array
from scipy import ndimage

from lumos.evaluation.judge.background import View, look
from lumos.evaluation.judge.regions import COARSE, Blob
from lumos.worlds.shapes.motion import TURNS
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import Background, Scene
from lumos.worlds.shapes.thing import SHAPES, SIZES, Thing

RASTER = 20  # an outline is compared on this many places per side
SPAN = 1.9  # half the side, in radii of the disc of the same area
PERIOD = {"square": 90, "triangle": 120, "star": 72, "cross": 90, "pentagon": 72, "hexagon": 60, "diamond": 180}
ROUND = ("circle", "ring")  # look the same at every angle
STEP = 6.0  # degrees between templates
PAD = 16  # coarse pixels around the frame in which a thing may lie


class Templates(NamedTuple):
    """Outlines on RASTER * RASTER, their shapes and angles, and what each thing is like when the disc has radius 1."""

    picture_PG: Array
    shape_P: Array  # index into SHAPES
    angle_P: Array  # degrees, clockwise
    radius_P: Array  # of the thing
    middle_P2: Array  # of the thing, from the outline's centre of mass


class Outline(NamedTuple):
    """A blob's soft mask brought to one size: centre of mass, radius of the disc of the same area, and its picture."""

    x: float
    y: float
    disc: float
    picture_G: Array


def soft_mask(view: View, blob: Blob) -> Array:
    """How much each pixel of the full resolution belongs to the blob, 0 to 1."""
    soft_HW = np.clip((view.strength_FHW[blob.frame] / blob.weakest - 0.25) / 0.5, 0, 1)
    return soft_HW * blob.region_HW.repeat(COARSE, 0).repeat(COARSE, 1)


def outline(soft_HW: Array) -> Outline:
    """Bring a soft mask to one size."""
    side = len(soft_HW)
    row, column = ndimage.center_of_mass(soft_HW)
    disc = float((soft_HW.sum() / np.pi) ** 0.5)
    step = SPAN * disc / RASTER  # two samples per place
    start = step / 2 - SPAN * disc
    fine = ndimage.affine_transform(
        soft_HW, (step, step), (row + start, column + start), (2 * RASTER, 2 * RASTER), order=1, prefilter=False
    )
    picture_G = fine.reshape(RASTER, 2, RASTER, 2).mean((1, 3)).ravel()
    return Outline((column + 0.5) / side, (row + 0.5) / side, disc / side, picture_G)


def misfits(pictures_NG: Array) -> Array:
    """[N, P]: squared distance of outlines to every template, relative to what fills the template."""
    bank_PG = templates().picture_PG
    power_P = np.square(bank_PG).sum(1)
    # Not a matrix product: threads that wait for each other cost more than they bring.
    cross_NP = np.einsum("ng,pg->np", pictures_NG, bank_PG)
    return np.maximum(np.square(pictures_NG).sum(1)[:, None] - 2 * cross_NP + power_P, 0) / power_P


def of_shape(shape: str) -> Array:
    """The templates of a shape."""
    return np.flatnonzero(templates().shape_P == SHAPES.index(shape))


@lru_cache(maxsize=1)
def templates() -> Templates:
    """Every shape at every angle that looks different."""
    pictures, shapes, angles, radii, middles = [], [], [], [], []
    for number, shape in enumerate(SHAPES):
        count = 1 if shape in ROUND else round(PERIOD.get(shape, 360) / STEP)
        start = -(count // 2) * STEP  # of turns that look the same, the one nearest to upright
        thing = Thing(shape, "red", "large", "plain", 0.5, 0.5, "spinning", "quickly", angle=start)
        fps = TURNS["quickly"] * 360 / STEP
        view = look(render(pack([Scene(Background("light gray"), (thing,))]), count, fps=fps)[0])
        for i, blobs in enumerate(view.blobs):
            seen = outline(soft_mask(view, max(blobs, key=lambda blob: blob.area)))
            pictures.append(seen.picture_G)
            shapes.append(number)
            angles.append(start + i * STEP)
            radii.append(SIZES["large"] / seen.disc)
            middles.append(((0.5 - seen.x) / seen.disc, (0.5 - seen.y) / seen.disc))
    return Templates(*map(np.array, (pictures, shapes, angles, radii, middles)))


class Placed(NamedTuple):
    """A whole outline at a place; lengths in frame widths."""

    template: int
    disc: float  # radius of the disc of the same area
    x: float  # centre of mass
    y: float
    misfit: float = 0.0  # squared differences where it is free to be seen, relative to the region that is seen

    @property
    def radius(self) -> float:
        """Of the thing."""
        return self.disc * float(templates().radius_P[self.template])

    @property
    def centre(self) -> Array:
        """x and y of the thing's centre."""
        return np.array([self.x, self.y]) + self.disc * templates().middle_P2[self.template]


def place_whole(soft_HW: Array, others_HW: Array, choices: list[tuple[int, float]]) -> list[Placed]:
    """The best place of each of some templates (index and disc radius)."""
    side, region_HW = len(soft_HW), soft_HW > 0.5
    seen = np.pad(soft_HW, PAD)
    care = np.pad(~ndimage.binary_dilation(others_HW & ~region_HW) | region_HW, PAD).astype(float)
    size = len(seen)
    spectra = np.fft.rfft2(np.stack([seen, care]))
    total = max(float(np.square(seen).sum()), 1.0)
    found = []
    for index, disc in choices:
        template = np.fft.ifftshift(_raster_at(index, disc * side, size // 2, size // 2, size))
        overlap, cost = np.fft.irfft2(spectra * np.conj(np.fft.rfft2(np.stack([template, template**2]))), s=(size, size))
        share = 1 - overlap / np.square(template).sum()
        misfit = (total - 2 * overlap + cost) / total + 0.05 * share
        row, column = np.unravel_index(misfit.argmin(), misfit.shape)
        x, y = (((at if at < size - PAD // 2 else at - size) - PAD + 0.5) / side for at in (int(column), int(row)))
        found.append(Placed(index, disc, x, y, float(misfit[row, column])))
    return found


def covered(side: int, whole: Placed) -> Array:
    """The coarse pixels that a whole outline covers."""
    return _raster_at(whole.template, whole.disc * side, whole.y * side - 0.5, whole.x * side - 0.5, side) > 0.5


def _raster_at(index: int, disc: float, row: float, column: float, size: int) -> Array:
    """A template with its centre of mass at a pixel of a square picture; disc in pixels."""
    step = RASTER / (2 * SPAN * disc)
    offset = ((RASTER - 1) / 2 - step * row, (RASTER - 1) / 2 - step * column)
    picture = templates().picture_PG[index].reshape(RASTER, RASTER)
    return ndimage.affine_transform(picture, (step, step), offset, (size, size), order=1, prefilter=False)
