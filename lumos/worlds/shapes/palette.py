"""Colours of the shapes world: a dozen object colours, a separate palette of backgrounds, and which of them go together.

Colours are 8-bit sRGB. The object colours are far apart in CIE Lab, so that a judge can name them from pixels; an
object never stands on a background that is close to its colour.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rgb = tuple[int, int, int]


def _named(table: str) -> dict[str, Rgb]:
    """Colours of a table "name #rrggbb, name #rrggbb, ..."."""
    entries = (entry.split("#") for entry in table.split(","))
    return {name.strip(): (red, green, blue) for name, value in entries for red, green, blue in [bytes.fromhex(value)]}


COLOURS = _named("""
    red #de2c32, orange #f8881c, yellow #fad42c, green #2ca44e, teal #18bac2, blue #2260e6,
    purple #9238be, pink #fa76b8, brown #7a4a2a, white #fafafa, black #1a1b20, gray #848992
""")
LIGHT_BACKGROUNDS = _named("""
    light blue #bcdaf6, light green #caeaca, light pink #fcd8e2, light gray #d8dbe0, lavender #ded4f8,
    cream #fcf2da, peach #fedac0
""")
DARK_BACKGROUNDS = _named("""
    dark gray #3a3e48, dark blue #1a2654, dark green #184236, dark red #581c28, dark purple #382258
""")
MIDDLE_BACKGROUNDS = _named("tan #ccae88, slate #7084a4")  # black and white both stand out from these
BACKGROUND_FAMILIES = (LIGHT_BACKGROUNDS, DARK_BACKGROUNDS, MIDDLE_BACKGROUNDS)
BACKGROUNDS = LIGHT_BACKGROUNDS | DARK_BACKGROUNDS | MIDDLE_BACKGROUNDS

CONTRAST = 25.0  # least `distance` between an object and its background, hue counting half as much as lightness
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


def distance(one: Rgb, other: Rgb, hue: float = 1.0) -> float:
    """Euclidean distance in Lab: about 2 is just visible, 30 is plainly another colour. hue: how much that counts."""
    return float(np.linalg.norm((lab(np.array(one) / 255) - lab(np.array(other) / 255)) * (1, hue, hue)))


# For each object colour, the backgrounds it may stand on.
CONTRASTING: dict[str, frozenset[str]] = {
    colour: frozenset(name for name, other in BACKGROUNDS.items() if distance(rgb, other, hue=0.5) >= CONTRAST)
    for colour, rgb in COLOURS.items()
}
# For each background, those of its family (light or dark) that make a gradient with it.
BLENDING: dict[str, frozenset[str]] = {
    name: frozenset(other for other in family if other != name and distance(family[name], family[other]) <= BLEND)
    for family in BACKGROUND_FAMILIES
    for name in family
}
