"""What is around the creatures: the ground of each place, the sky of each time of day, and their light, as numbers."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lumos.worlds.creatures.render import Cameras

Colour = tuple[float, float, float]  # red, green, blue of linear light


@dataclass(frozen=True)
class Place:
    """A ground of two colours, mixed by a pattern."""

    one: Colour
    other: Colour
    patches: float  # how strongly large patches mix them
    grain: float  # and small grain
    ripples: float = 0.0  # and waves of sand
    tiles: float = 0.0  # and a board of squares
    haze: float = 0.012  # share of light lost on a way as long as the camera's distance
    water: float = 0.0  # 1: under water


@dataclass(frozen=True)
class Time:
    """Light and sky at a time of day."""

    sun: Colour
    ambient: Colour
    height: float  # of the sun, in radians over the horizon
    top: Colour  # of the sky
    horizon: Colour
    clouds: Colour
    stars: float = 0.0


PLACES = {
    "grass": Place((0.10, 0.26, 0.035), (0.26, 0.42, 0.08), 0.5, 0.45),
    "snow": Place((0.50, 0.57, 0.70), (0.72, 0.75, 0.80), 0.6, 0.35),
    "sand": Place((0.48, 0.31, 0.14), (0.64, 0.46, 0.24), 0.35, 0.25, ripples=0.35),
    "forest": Place((0.13, 0.10, 0.035), (0.10, 0.19, 0.04), 0.9, 0.7, haze=0.018),
    "leaves": Place((0.36, 0.14, 0.03), (0.48, 0.30, 0.06), 0.6, 0.9, haze=0.015),
    "rock": Place((0.17, 0.16, 0.155), (0.37, 0.355, 0.33), 0.6, 0.7),
    "tiles": Place((0.55, 0.53, 0.50), (0.12, 0.14, 0.17), 0.05, 0.05, tiles=1.0),
    "water": Place((0.26, 0.27, 0.19), (0.44, 0.41, 0.28), 0.4, 0.3, ripples=0.25, haze=0.13, water=1.0),
}
TIMES = {
    "day": Time((1.30, 1.22, 1.08), (0.46, 0.52, 0.62), 1.0, (0.12, 0.30, 0.72), (0.62, 0.76, 0.90), (0.95, 0.95, 0.97)),
    "dusk": Time((1.30, 0.76, 0.42), (0.38, 0.34, 0.42), 0.38, (0.09, 0.09, 0.26), (0.92, 0.42, 0.16), (0.85, 0.36, 0.24)),
    "night": Time(
        (0.36, 0.42, 0.60), (0.13, 0.16, 0.26), 0.8, (0.005, 0.01, 0.035), (0.045, 0.065, 0.14), (0.05, 0.06, 0.1), 1.0
    ),
}
_DEEP = {"day": ((0.02, 0.22, 0.42), (0.06, 0.42, 0.58)), "dusk": ((0.02, 0.10, 0.22), (0.10, 0.22, 0.32))}
_DEEP["night"] = ((0.008, 0.035, 0.09), (0.015, 0.065, 0.14))  # horizon and top of the water
_NOISE = 256


@dataclass(frozen=True)
class Landscape:
    """Places and times of B clips as tensors."""

    sun_B3: Tensor  # the way to the sun
    ground_B23: Tensor
    pattern_BP: Tensor  # patches, grain, ripples, tiles, haze, water
    light_B3: Tensor  # of the sun
    ambient_B3: Tensor
    top_B3: Tensor
    horizon_B3: Tensor
    clouds_B3: Tensor
    stars_B: Tensor

    def on_things(self, clip_H: Tensor, paint_H3: Tensor, normal_H3: Tensor, away_H3: Tensor, unit_B: Tensor) -> Tensor:
        """What the eye sees of samples of things; away_H3 is the way from each to the eye."""
        distance = away_H3.norm(dim=-1, keepdim=True)
        front = (normal_H3 * away_H3).sum(-1, keepdim=True) / distance
        normal_H3 = normal_H3 * torch.where(front < 0, -1.0, 1.0)  # the back of a cape
        sun = ((normal_H3 * self.sun_B3[clip_H]).sum(-1, keepdim=True) * 0.85 + 0.15).clamp(min=0)
        upward = 0.5 + 0.5 * normal_H3[:, 1:2]
        light_H3, bounced_H3 = self.light_B3[clip_H], self.ground_B23[clip_H].mean(1)
        around = self.ambient_B3[clip_H] * (0.45 + 0.55 * upward) + 0.25 * light_H3 * bounced_H3 * (1 - upward)
        seen = paint_H3 * (light_H3 * (0.95 * sun + 0.10 * front.abs()) + around)
        haze = 1 - torch.exp(-0.6 * self.pattern_BP[clip_H, 4, None] * distance / unit_B[clip_H, None])
        return torch.lerp(seen, self.horizon_B3[clip_H], haze)

    def behind(self, camera: "Cameras", seconds_F: Tensor, focal: float, shadow_BFHW: Tensor) -> Tensor:
        """Ground and sky, without things but with their shadows: B, F, H, W, 3."""
        size = shadow_BFHW.shape[-1]
        across = ((torch.arange(size, device=seconds_F.device) + 0.5) * 2 / size - 1) / focal
        right, up, back = camera.axes_BF33[:, :, None, None].unbind(-2)
        ray = right * across[:, None] - up * across[:, None, None] - back
        ray = ray / ray.norm(dim=-1, keepdim=True)
        eye, unit = camera.eye_BF3[:, :, None, None], camera.unit_B[:, None, None, None]
        down = (-ray[..., 1]).clamp(min=1e-4)
        far = eye[..., 1] / down
        spot = (eye[..., ::2] + far[..., None] * ray[..., ::2]) / unit[..., None]
        reach = far / unit * (2 / size / focal) / down  # of a pixel over the ground
        lit = self.light_B3 * self.sun_B3[:, 1:2]
        shade = self._ground(spot, reach, seconds_F[:, None, None])
        light = self.ambient_B3[:, None, None, None] + lit[:, None, None, None] * (1 - 0.9 * shadow_BFHW[..., None])
        haze = 1 - torch.exp(-self.pattern_BP[:, 4, None, None, None] * far / unit)
        haze = torch.where(ray[..., 1] < -1e-4, haze, 1.0)[..., None]
        return torch.lerp(shade * light, self._sky(ray), haze)

    def _ground(self, spot: Tensor, reach: Tensor, seconds: Tensor) -> Tensor:
        patches, grain, ripples, tiles, _, water = self.pattern_BP[:, :, None, None, None].unbind(1)
        large, small = _noise(spot * 0.35), _noise(spot * 2.3)
        finest = _noise(spot * 9.0)
        mix = 0.5 + patches * (large - 0.5) * 1.6
        mix = mix + grain * ((small - 0.5) * 0.9 / (1 + (reach * 20) ** 2) + (finest - 0.5) * 1.2 / (1 + (reach * 90) ** 2))
        waves = torch.sin(26 * (spot[..., 0] * 0.5 + spot[..., 1] * 0.87) + 14 * large)
        mix = mix + ripples * 0.5 * waves / (1 + (reach * 16) ** 2)
        board = torch.sin(spot[..., 0] * 7.0) * torch.sin(spot[..., 1] * 7.0)
        mix = mix + tiles * (board / (0.03 + 7 * reach)).clamp(-0.5, 0.5)
        one, other = self.ground_B23[:, :, None, None, None].unbind(1)
        colour = torch.lerp(one, other, mix.clamp(0, 1)[..., None])
        drift = torch.stack([seconds, 0.6 * seconds], -1) * 0.05
        bright = (1 - (_noise(spot * 0.9 + drift) + _noise(spot * 0.9 - drift + 0.37) - 1).abs() * 5).clamp(min=0) ** 3
        return colour * (1 + water * 0.9 * bright / (1 + (reach * 10) ** 2))[..., None]

    def _sky(self, ray: Tensor) -> Tensor:
        top, horizon, clouds = (colour[:, None, None, None] for colour in (self.top_B3, self.horizon_B3, self.clouds_B3))
        height = ray[..., 1].clamp(min=0)
        sky = torch.lerp(horizon, top, (1 - torch.exp(-4.5 * height))[..., None])
        over = ray[..., ::2] / (height + 0.12)[..., None]
        cloud = ((_noise(over * 0.22) - 0.52) * 5).clamp(0, 1) * (height * 8).clamp(0, 1)
        dry = 1 - self.pattern_BP[:, 5, None, None, None]
        sky = torch.lerp(sky, clouds, (0.75 * cloud * dry)[..., None])
        around = torch.stack([torch.atan2(ray[..., 0], ray[..., 2]), height], -1)
        star = ((_noise(around * 14.0, 1) - 3.1) * 1.5).clamp(0, 1) * self.stars_B[:, None, None, None] * dry * (1 - cloud)
        glow = ((ray * self.sun_B3[:, None, None, None]).sum(-1).clamp(min=0) ** 24)[..., None] * self.light_B3[
            :, None, None, None
        ]
        return sky + star[..., None] + 0.35 * glow * dry[..., None]


def landscape(looks_B2: Tensor, azimuth_B: Tensor) -> Landscape:
    """The landscapes of scenes whose place and time are given by number, with the sun at this azimuth."""
    device = looks_B2.device
    rows = [_row(place, time) for place in PLACES for time in TIMES]
    chosen_B = looks_B2[:, 0] * len(TIMES) + looks_B2[:, 1]
    values = torch.tensor(rows, device=device)[chosen_B]
    height_B, patterns_BP, colours_B73 = values[:, 0], values[:, 1:8], values[:, 8:].view(-1, 7, 3)
    level_B = height_B.cos()
    sun_B3 = torch.stack([level_B * azimuth_B.sin(), height_B.sin(), level_B * azimuth_B.cos()], -1)
    light_B3, ambient_B3, top_B3, horizon_B3, clouds_B3 = colours_B73[:, 2:].unbind(1)
    sky = (top_B3, horizon_B3, clouds_B3, patterns_BP[:, 6])
    return Landscape(sun_B3, colours_B73[:, :2], patterns_BP[:, :6], light_B3, ambient_B3, *sky)


def _row(name: str, hour: str) -> tuple[float, ...]:
    place, time = PLACES[name], TIMES[hour]
    sun, ambient, height, top, horizon = time.sun, time.ambient, time.height, time.top, time.horizon
    if place.water:
        horizon, top = _DEEP[hour]
        sun, ambient = _times(sun, (0.72, 0.98, 0.98)), _times(ambient, (0.75, 1.15, 1.2))
        height = 1.25
    pattern = (place.patches, place.grain, place.ripples, place.tiles, place.haze, place.water, time.stars)
    return (height, *pattern, *place.one, *place.other, *sun, *ambient, *top, *horizon, *time.clouds)


def _times(one: Colour, other: Colour) -> Colour:
    return one[0] * other[0], one[1] * other[1], one[2] * other[2]


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> Tensor:
    """Two periodic tables, flat: clouds of all sizes between about 0 and 1, and white noise."""
    white = torch.randn(_NOISE, _NOISE, generator=torch.Generator().manual_seed(7))
    steps = torch.fft.fftfreq(_NOISE) * _NOISE
    size = (steps[:, None].square() + steps[: _NOISE // 2 + 1].abs().square()).sqrt()
    spectrum = torch.fft.rfft2(white) / size.clamp(min=3) ** 1.4
    spectrum[0, 0] = 0
    smooth = torch.fft.irfft2(spectrum, s=(_NOISE, _NOISE))
    return torch.stack([0.5 + 0.25 * smooth / smooth.std(), white]).view(2, -1).to(device)


def _noise(spot: Tensor, table: int = 0) -> Tensor:
    """A table's values at places, in periods of the smooth one or cells of the white one; linear between cells."""
    at = spot * (_NOISE / 8 if table == 0 else 8)
    cell = at.floor()
    share_x, share_y = (at - cell).unbind(-1)
    x, y = cell.long().unbind(-1)
    last = _NOISE - 1  # a power of two less one: `&` is the remainder, and faster
    x0, x1, y0, y1 = x & last, (x + 1) & last, (y & last) * _NOISE, (y + 1 & last) * _NOISE
    values = _tables(spot.device)[table]
    upper = torch.lerp(values[y0 + x0], values[y0 + x1], share_x)
    return torch.lerp(upper, torch.lerp(values[y1 + x0], values[y1 + x1], share_x), share_y)
