"""Scenes to pixels: anti-aliased signed-distance rendering in plain torch, batched, on any device.

`pack` turns scenes into two small tensors (cheap, for DataLoader workers); `render` turns those into clips. Everything in
`render` is elementwise over pixels with static control flow, so torch.compile fuses it. Colours are squared values
(close to linear light) until the last line, so that soft edges look clean.
"""

import math
from collections import namedtuple
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lumos.worlds.shapes.motion import Law, ease, law, state
from lumos.worlds.shapes.palette import BACKGROUNDS, COLOURS, tint
from lumos.worlds.shapes.scene import Scene
from lumos.worlds.shapes.thing import SIZES, TEXTURES, Thing

MOST_THINGS = 3
EDGE = 1.4  # pixels over which an edge goes from 0 to 1
WEAVE = 0.68  # period of textures, in radii: at least 8 pixels at 128


class PackedScenes(NamedTuple):
    """Scenes as float32 tensors: objects_BNP (N = 3, unseen ones fill up) and background_BP."""

    objects_BNP: Tensor
    background_BP: Tensor

    def to(self, device: torch.device | str) -> "PackedScenes":
        return PackedScenes(*(part.to(device, non_blocking=True) for part in self))


def pack(scenes: Sequence[Scene]) -> PackedScenes:
    """The tensors that `render` needs, on the CPU."""
    objects = []
    for scene in scenes:
        # Drawn in this order; a first thing "in front of" the second comes last.
        things = scene.things[::-1] if scene.relation == "in front of" else scene.things
        objects += [*map(_object, things), *[_UNSEEN] * (MOST_THINGS - len(things))]
    objects_BNP = torch.tensor(objects, dtype=torch.float32).view(len(scenes), MOST_THINGS, len(_UNSEEN))
    return PackedScenes(objects_BNP, torch.tensor([_background(scene) for scene in scenes], dtype=torch.float32))


def render(
    packed: PackedScenes, frames: int, size: int = 128, fps: float = 8.0, height: int | None = None, width: int | None = None
) -> Tensor:
    """Clips of packed scenes, on their device: pixels_BCFHW in [-1, 1], RGB. size: height and width, unless given; objects keep
    their proportions in frames that are not square. Frame n shows the scene at n / fps seconds."""
    height, width = height or size, width or size
    if min(frames, height, width) < 1 or not fps > 0:
        raise ValueError(f"frames, height, width and fps must be positive, got {frames}, {height}, {width}, {fps}")
    if packed.objects_BNP.device.type == "cpu" and not torch.compiler.is_compiling():
        # Clip by clip, without the unseen things: what is between fits into the cache then (five times faster).
        clips = zip(_seen(packed.objects_BNP), packed.background_BP.split(1), strict=True)
        return torch.cat([_render(objects, background, frames, height, width, fps) for objects, background in clips])
    return _render(packed.objects_BNP, packed.background_BP, frames, height, width, fps)


def _seen(objects_BNP: Tensor) -> list[Tensor]:
    """Each scene's things without those that fill up."""
    things: Any = _Object(*objects_BNP.unbind(2))
    count_B = (things.opacity_start + things.opacity_end > 0).sum(1)
    return [objects_NP[: int(count)][None] for objects_NP, count in zip(objects_BNP, count_B, strict=True)]


def _render(objects_BNP: Tensor, background_BP: Tensor, frames: int, height: int, width: int, fps: float) -> Tensor:
    side = min(height, width)
    device = objects_BNP.device
    # Lengths are in shorter sides of the frame, and broadcast over B, N, F, H, W.
    seconds_F11 = (torch.arange(frames, device=device) / fps)[:, None, None]
    y_H1 = ((torch.arange(height, device=device) + 0.5) / side)[:, None]
    x_1W = ((torch.arange(width, device=device) + 0.5) / side)[None, :]
    things: Any = _Object(*objects_BNP[..., None, None, None].unbind(2))
    cover, shade, light, second = _things(things, seconds_F11, x_1W, y_H1, width / side, height / side, side)
    ground = _ground(background_BP, x_1W * (side / width), y_H1 * (side / height))
    inks = zip((things.red, things.green, things.blue), (things.second_red, things.second_green, things.second_blue), strict=True)
    full = (len(objects_BNP), frames, height, width)  # said, because nothing moves in a scene without things
    channels = []
    for channel, (first_ink, second_ink) in zip(ground, inks, strict=True):
        paint = ((first_ink + (second_ink - first_ink) * second) * light).clamp(0, 1)
        for n in range(objects_BNP.shape[1]):
            shaded = channel * (1 - shade[:, n])
            channel = shaded + cover[:, n] * (paint[:, n] - shaded)
        channels.append(channel.expand(full))
    return torch.stack(channels, dim=1).clamp(0, 1).sqrt() * 2 - 1


class _Form(NamedTuple):
    """A shape as parameters of one of four distance functions; lengths in radii of the thing, y upwards."""

    family: float  # 0 round, 1 star, 2 cross, 3 heart
    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    shift_x: float = 0.0  # moves the shape, so that its middle is the thing's centre
    shift_y: float = 0.0
    squeeze: float = 1.0  # height over width
    rounding: float = 0.0


# One thing as tensors (or, packed, as numbers): colours are squared, the second one is that of the texture.
_PAINT = ("red", "green", "blue", "second_red", "second_green", "second_blue", *TEXTURES[1:])
_Object = namedtuple("_Object", ("x", "y", "radius", "angle", *Law._fields, *_Form._fields, *_PAINT))  # type: ignore[misc]


def _star(points: int, sharpness: float, radius: float, rounding: float, shift_y: float = 0.0, squeeze: float = 1.0) -> _Form:
    """A star of some points; sharpness 2 makes a regular polygon."""
    inner = math.pi / sharpness
    return _Form(1.0, math.pi / points, radius - rounding, math.cos(inner), math.sin(inner), 0.0, shift_y, squeeze, rounding)


_FORMS = {
    # round: radius of the ring's middle, half its width, bitten off by a circle at (c, 0) of radius d
    "circle": _Form(0.0, 0.0, 0.92, 0.0, -9.0),
    "ring": _Form(0.0, 0.72, 0.25, 0.0, -9.0),
    "crescent": _Form(0.0, 0.0, 1.04, 0.56, 0.84, 0.20),
    "square": _star(4, 2.0, 1.14, 0.12),
    "diamond": _star(4, 2.0, 1.16, 0.08, 0.0, 1.45),
    "triangle": _star(3, 2.0, 1.14, 0.11, -0.07),
    "pentagon": _star(5, 2.0, 1.06, 0.10),
    "hexagon": _star(6, 2.0, 1.04, 0.10),
    "star": _star(5, 3.0, 1.20, 0.09),
    "cross": _Form(2.0, 1.0, 0.34, 0.0, 0.0, 0.0, 0.0, 1.0, 0.08),
    "heart": _Form(3.0, 0.62, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.03),
}


def _object(thing: Thing) -> tuple[float, ...]:
    """The fields of _Object as numbers."""
    angle = math.radians(thing.angle) + (math.pi / 4 if thing.shape == "square" else 0.0)
    weave = tuple(float(thing.texture == texture) for texture in TEXTURES[1:])
    return (
        *(thing.x, thing.y, SIZES[thing.size], angle),
        *law(thing.motion, thing.speed, thing.reach, thing.phase),
        *_FORMS[thing.shape],
        *(*_SQUARED[thing.colour], *_square(tint(thing.colour)), *weave),
    )


def _square(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = ((value / 255) ** 2 for value in rgb)
    return red, green, blue


_SQUARED = {name: _square(rgb) for name, rgb in (COLOURS | BACKGROUNDS).items()}
_UNSEEN = (0.5, 0.5, 0.1, 0.0, *Law(opacity_start=0.0, opacity_end=0.0), *_FORMS["circle"], *(0.0 for _ in _PAINT))
SLOPES = {"plain": (0.0, 0.0), "across": (1.0, 0.0), "down": (0.0, 1.0), "diagonal": (0.5, 0.5)}


def _background(scene: Scene) -> tuple[float, ...]:
    """First colour, second colour, how much of the second each step to the right and down brings."""
    background = scene.background
    first = _SQUARED[background.colour]
    second = first if background.gradient == "plain" else _SQUARED[background.other]
    return (*first, *second, *SLOPES[background.gradient])


def _ground(background_BP: Tensor, x_1W: Tensor, y_H1: Tensor) -> list[Tensor]:
    """Red, green and blue of the empty frames, each B, 1, H, W, with slightly darker corners."""
    values = background_BP[:, :, None, None, None].unbind(1)
    first, second, (slope_x, slope_y) = values[:3], values[3:6], values[6:]
    share = slope_x * x_1W + slope_y * y_H1
    glow = 1.03 - 0.16 * ((x_1W - 0.5).square() + (y_H1 - 0.45).square())
    return [(one + (other - one) * share) * glow for one, other in zip(first, second, strict=True)]


def _things(
    thing: Any, seconds: Tensor, x: Tensor, y: Tensor, wide: float, high: float, side: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each thing and pixel: how much it covers, how dark its shadow is, its light, and how much of its second colour."""
    at = state(thing, thing.x, thing.y, seconds, torch)
    centre_x, centre_y = at.x * wide + at.orbit_x, at.y * high + at.orbit_y
    radius, angle, opacity = thing.radius * at.scale, thing.angle + at.turn, at.opacity
    right, up = (x - centre_x) / radius, (centre_y - y) / radius
    cos, sin = torch.cos(angle), torch.sin(angle)
    local_x, local_y = right * cos - up * sin, right * sin + up * cos
    distance = _distance(thing, local_x, local_y)
    cover = opacity * _soft(0.5 - distance * radius * (side / EDGE))
    # The same shape a little lower, with a wide edge, is its shadow.
    below = up + 0.14
    shadow = _distance(thing, right * cos - below * sin, right * sin + below * cos)
    shade = 0.30 * opacity * _soft(0.5 - (shadow - 0.02) / 0.44)
    light = 1.0 + 0.13 * (0.8 * up - 0.35 * right) - 0.10 * _soft(1 + distance / 0.22)
    return cover, shade, light, _texture(thing, local_x, local_y)


def _soft(value: Tensor) -> Tensor:
    return ease(value.clamp(0, 1))


def _texture(thing: Any, x: Tensor, y: Tensor) -> Tensor:
    """How much of the second colour: 0 or 1, with soft edges; turns and grows with the thing."""
    along, across = x * (math.tau / WEAVE), y * (math.tau / WEAVE)
    cos_along, cos_across = torch.cos(along), torch.cos(across)
    stripes = _soft(0.5 + 0.9 * torch.cos((along + across) * math.sqrt(0.5)))
    dots = _soft(0.5 + 0.9 * (cos_along + cos_across - 0.75))
    checks = _soft(0.5 + 1.3 * torch.cos(along * 0.75) * torch.cos(across * 0.75))
    return thing.stripes * stripes + thing.dots * dots + thing.checks * checks


def _distance(thing: Any, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the edge in radii, negative inside (after Inigo Quilez, "2D distance functions")."""
    x, y = (x - thing.shift_x) * thing.squeeze, y - thing.shift_y
    length = torch.sqrt(x * x + y * y + 1e-12)
    # Round: a ring (of no inner radius: a disc), less a disc.
    bite = thing.d - torch.sqrt((x - thing.c).square() + y * y + 1e-12)
    round_ = torch.maximum((length - thing.a).abs() - thing.b, bite)
    # Star: turn into the first sector, then the distance to one line.
    sector = torch.remainder(torch.atan2(x, y), 2 * thing.a) - thing.a
    along = length * torch.cos(sector) - thing.b * torch.cos(thing.a)
    aside = length * torch.sin(sector).abs() - thing.b * torch.sin(thing.a)
    longest = thing.b * torch.sin(thing.a) / thing.d.clamp(min=1e-6)
    slide = torch.minimum((-(along * thing.c + aside * thing.d)).clamp(min=0), longest)
    along, aside = along + thing.c * slide, aside + thing.d * slide
    star = torch.sqrt(along * along + aside * aside + 1e-12) * torch.sign(along)
    # Cross: the nearer arm, a box.
    x = x.abs()
    over_long = torch.maximum(x, y.abs()) - (thing.a - thing.rounding)
    over_short = torch.minimum(x, y.abs()) - (thing.b - thing.rounding)
    cross = torch.sqrt(over_long.clamp(min=0).square() + over_short.clamp(min=0).square() + 1e-12)
    cross = cross + torch.maximum(over_long, over_short).clamp(max=0)
    # Heart: two arcs on a corner.
    heart_x, heart_y = x * thing.a, y * thing.a + 0.56
    lobe = torch.sqrt((heart_x - 0.25).square() + (heart_y - 0.75).square()) - math.sqrt(2) / 4
    ray = 0.5 * (heart_x + heart_y).clamp(min=0)
    corner = torch.minimum(heart_x.square() + (heart_y - 1).square(), (heart_x - ray).square() + (heart_y - ray).square())
    tip = torch.sqrt(corner + 1e-12) * torch.sign(heart_x - heart_y)
    heart = torch.where(heart_x + heart_y > 1, lobe, tip) / thing.a.clamp(min=1e-6)

    cornered = torch.where(thing.family < 1.5, star, torch.where(thing.family < 2.5, cross, heart))
    return torch.where(thing.family < 0.5, round_, cornered) - thing.rounding
