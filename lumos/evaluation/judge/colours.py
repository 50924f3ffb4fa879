"""Colours as arrays of squared sRGB values, 0 to 1, to names and to CIE Lab.

The renderer mixes squared values: on them a thing's distance to its background is proportional to its opacity, and a
shadow scales the background.
"""

from functools import lru_cache

import numpy as np
from numpy import ndarray as Array
from scipy.spatial import KDTree

from lumos.worlds.shapes.palette import COLOURS, lab, tint

SHADE = (0.66, 1.06)  # a background pixel may be this dark (a shadow) or bright against the background
LIGHTS = (0.89, 0.95, 1.0, 1.05)  # shading of an object's colour
COLOUR_NAMES = tuple(COLOURS)


def to_lab(squared: Array) -> Array:
    """CIE Lab (D65), [..., 3]."""
    return lab(np.sqrt(np.clip(squared, 0, 1)))


def length(vectors: Array) -> Array:
    """Of the last axis; several times as fast as np.linalg.norm for three channels."""
    return np.sqrt(np.einsum("...c,...c->...", vectors, vectors))


def beyond_shade(squared: Array, ground: Array) -> Array:
    """Difference of colours to the nearest shade of the background there, [..., 3]: nothing for a shadow."""
    power = np.maximum(np.einsum("...c,...c->...", ground, ground), 1e-6)
    shade = np.clip(np.einsum("...c,...c->...", squared, ground) / power, *SHADE)
    return squared - shade[..., None] * ground


def brightness(squared: Array) -> Array:
    """What differences are relative to; not zero on black."""
    return length(squared) + 0.1


def nearest_names(squared: Array) -> Array:
    """The number in COLOUR_NAMES of the nearest object colour to each colour, [..., 3]."""
    cells = (np.sqrt(np.clip(squared, 0, 1)) * 31.99).astype(np.uint8)
    return _name_table()[cells[..., 0], cells[..., 1], cells[..., 2]]


@lru_cache(maxsize=1)
def _name_table() -> Array:
    """[32, 32, 32] -> number of the nearest object colour, over its shades and those of its second colour."""
    inks = [np.array(ink) / 255 * light for name, rgb in COLOURS.items() for ink in (rgb, tint(name)) for light in LIGHTS]
    steps = (np.arange(32) + 0.5) / 32
    cells = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    return KDTree(lab(np.clip(inks, 0, 1))).query(lab(cells))[1] // (2 * len(LIGHTS))
