"""Colours as arrays: names, CIE Lab, and squared values, in which the renderer mixes.

On squared values the distance of an object to its background is proportional to its opacity, and a shadow scales the background.
"""

from functools import lru_cache

import numpy as np

from lumos.worlds.shapes.palette import COLOURS, tint

Array = np.ndarray
SHADE = (0.66, 1.06)  # a background pixel may be this dark (a shadow) or bright against the background
LIGHTS = (0.89, 0.95, 1.0, 1.05)  # shading of an object's colour
COLOUR_NAMES = tuple(COLOURS)
_RGB_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_TO_XYZ: Array = (np.array(_RGB_TO_XYZ).T / np.array([0.95047, 1.0, 1.08883])).astype(np.float32)


def lab(rgb: Array) -> Array:
    """CIE Lab (D65) of sRGB colours 0 to 255, [..., 3]."""
    value = np.clip(np.asarray(rgb, dtype=np.float32) / 255, 0, 1)
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ
    cube = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(cube, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def rgb_of(squared: Array) -> Array:
    """0 to 255, of squared values."""
    return np.sqrt(np.maximum(squared, 0)) * 255


def beyond_shade(squared: Array, ground: Array) -> Array:
    """Difference of a squared colour (or several, [..., 3]) to the nearest shade of the background there."""
    shade = np.clip(squared @ ground / max(float(ground @ ground), 1e-6), *SHADE)
    return squared - shade[..., None] * ground


def nearest_names(rgb: Array) -> Array:
    """The number in COLOUR_NAMES of the nearest object colour to each colour, 0 to 255, [..., 3]."""
    cells = rgb.astype(np.uint8) >> 3
    return _name_table()[cells[..., 0], cells[..., 1], cells[..., 2]]


@lru_cache(maxsize=1)
def _name_table() -> Array:
    """[32, 32, 32] -> number of the nearest object colour, over its shades and those of its second colour."""
    steps = np.arange(32, dtype=np.float32) * 8 + 4
    place = lab(np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)).reshape(-1, 3)
    best = np.full(len(place), np.inf, dtype=np.float32)
    table = np.zeros(len(place), dtype=np.uint8)
    for number, (name, rgb) in enumerate(COLOURS.items()):
        for ink in (rgb, tint(name)):
            for light in LIGHTS:
                distance = np.square(place - lab(np.array(ink, dtype=np.float32) * light)).sum(-1)
                table[distance < best] = number
                best = np.minimum(best, distance)
    return table.reshape(32, 32, 32)
