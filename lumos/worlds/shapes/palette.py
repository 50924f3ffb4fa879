"""Colours of the shapes world: a dozen object colours, a separate palette of backgrounds, and which of them go together.

All values are 8-bit sRGB. The object colours are far apart in CIE Lab, so that a judge can name them from pixels; an
object never stands on a background that is close to its colour.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (222, 44, 50),
    "orange": (248, 136, 28),
    "yellow": (250, 212, 44),
    "green": (44, 164, 78),
    "teal": (24, 186, 194),
    "blue": (34, 96, 230),
    "purple": (146, 56, 190),
    "pink": (250, 118, 184),
    "brown": (122, 74, 42),
    "white": (250, 250, 250),
    "black": (26, 27, 32),
    "gray": (132, 137, 146),
}

LIGHT_BACKGROUNDS: dict[str, Rgb] = {
    "light blue": (188, 218, 246),
    "light green": (202, 234, 202),
    "light pink": (252, 216, 226),
    "light gray": (216, 219, 224),
    "lavender": (222, 212, 248),
    "cream": (252, 242, 218),
    "peach": (254, 218, 192),
}

DARK_BACKGROUNDS: dict[str, Rgb] = {
    "dark gray": (58, 62, 72),
    "dark blue": (26, 38, 84),
    "dark green": (24, 66, 54),
    "dark red": (88, 28, 40),
    "dark purple": (56, 34, 88),
}

MIDDLE_BACKGROUNDS: dict[str, Rgb] = {  # black and white both stand out from these
    "tan": (204, 174, 136),
    "slate": (112, 132, 164),
}

BACKGROUND_FAMILIES = (LIGHT_BACKGROUNDS, DARK_BACKGROUNDS, MIDDLE_BACKGROUNDS)
BACKGROUNDS: dict[str, Rgb] = LIGHT_BACKGROUNDS | DARK_BACKGROUNDS | MIDDLE_BACKGROUNDS

CONTRAST = 25.0  # least `contrast` between an object and its background
BLEND = 45.0  # most `distance` between the two colours of a gradient: beyond it the middle turns muddy

_TO_XYZ = np.array([[0.412453, 0.212671, 0.019334], [0.357580, 0.715160, 0.119193], [0.180423, 0.072169, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])


def tint(colour: str) -> Rgb:
    """The second colour of a textured object: darker, or lighter where the colour itself is black."""
    red, green, blue = COLOURS[colour]
    if colour == "black":
        return red + 44, green + 44, blue + 46
    amount = 0.80 if colour in ("white", "gray", "orange", "yellow") else 0.72
    return round(red * amount), round(green * amount), round(blue * amount)


def lab(rgb: ArrayLike) -> NDArray[Any]:
    """CIE Lab (D65) of sRGB colours from 0 to 1, [..., 3]."""
    rgb = np.asarray(rgb)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ / _WHITE
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def distance(one: Rgb, other: Rgb) -> float:
    """Euclidean distance in Lab: about 2 is just visible, 30 is plainly another colour."""
    return float(np.linalg.norm(_difference(one, other)))


def contrast(one: Rgb, other: Rgb) -> float:
    """How well two colours stand apart: Lab distance with hue counting half as much as lightness."""
    return float(np.linalg.norm(_difference(one, other) * (1, 0.5, 0.5)))


def _difference(one: Rgb, other: Rgb) -> NDArray[Any]:
    return lab(np.array(one) / 255) - lab(np.array(other) / 255)


# For each object colour, the backgrounds it may stand on.
CONTRASTING: dict[str, frozenset[str]] = {
    colour: frozenset(name for name, other in BACKGROUNDS.items() if contrast(rgb, other) >= CONTRAST)
    for colour, rgb in COLOURS.items()
}
# For each background, those of its family (light or dark) that make a gradient with it.
BLENDING: dict[str, frozenset[str]] = {
    name: frozenset(other for other in family if other != name and distance(family[name], family[other]) <= BLEND)
    for family in BACKGROUND_FAMILIES
    for name in family
}
