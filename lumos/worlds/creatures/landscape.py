"""What is around the creatures: the ground of each place, the sky of each time of day, and their light."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Place(NamedTuple):
    """A ground of two colours, mixed by a pattern. Numbers, or tensors of B clips, here and in Time."""

    one: Any
    other: Any
    patches: Any  # how strongly large patches mix them
    grain: Any  # and small grain
    ripples: Any = 0.0  # and waves of sand
    tiles: Any = 0.0  # and a board of squares
    haze: Any = 0.012  # share of light lost on a way as long as the camera's distance
    water: Any = 0.0  # 1: under water


class Time(NamedTuple):
    """Light and sky at a time of day."""

    sun: Any
    ambient: Any
    height: Any  # of the sun, in radians over the horizon
    top: Any  # of the sky
    horizon: Any
    clouds: Any
    stars: Any = 0.0


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
_DEEP = {  # horizon and top of the water
    "day": ((0.02, 0.22, 0.42), (0.06, 0.42, 0.58)),
    "dusk": ((0.02, 0.10, 0.22), (0.10, 0.22, 0.32)),
    "night": ((0.008, 0.035, 0.09), (0.015, 0.065, 0.14)),
}
_NOISE = 256


def _under_water(time: str) -> Time:
    above, (horizon, top) = TIMES[time], _DEEP[time]
    sun, ambient = np.multiply(above.sun, (0.72, 0.98, 0.98)), np.multiply(above.ambient, (0.75, 1.15, 1.2))
    return above._replace(sun=tuple(sun), ambient=tuple(ambient), height=1.25, top=top, horizon=horizon)


# Every place at every time.
LOOKS = {
    (name, hour): (place, _under_water(hour) if place.water else TIMES[hour]) for name, place in PLACES.items() for hour in TIMES
}


class Cameras(NamedTuple):
    """Where each clip's camera is in each frame, and its axes: right, up, and back (away from what it looks at)."""

    eye_BF3: Tensor
    axes_BF33: Tensor
    unit_B: Tensor  # the distance at first: what textures and haze are measured by


class Landscape(NamedTuple):
    """Places and times of B clips as tensors."""

    place: Place
    time: Time
    way_B3: Tensor  # to the sun

    def on_things(self, clip_H: Tensor, paint_H3: Tensor, normal_H3: Tensor, away_H3: Tensor, unit_B: Tensor) -> Tensor:
        """What the eye sees of samples of things; away_H3 is the way from each to the eye."""
        place, time = self.place, self.time
        distance = away_H3.norm(dim=-1, keepdim=True)
        front = (normal_H3 * away_H3).sum(-1, keepdim=True) / distance
        normal_H3 = normal_H3 * torch.where(front < 0, -1.0, 1.0)  # the back of a cape
        sun = ((normal_H3 * self.way_B3[clip_H]).sum(-1, keepdim=True) * 0.85 + 0.15).clamp(min=0)
        upward = 0.5 + 0.5 * normal_H3[:, 1:2]
        light_H3, bounced_H3 = time.sun[clip_H], torch.stack([place.one, place.other], 1).mean(1)[clip_H]
        around = time.ambient[clip_H] * (0.45 + 0.55 * upward) + 0.25 * light_H3 * bounced_H3 * (1 - upward)
        seen = paint_H3 * (light_H3 * (0.95 * sun + 0.10 * front.abs()) + around)
        haze = 1 - torch.exp(-0.6 * place.haze[clip_H, None] * distance / unit_B[clip_H, None])
        return torch.lerp(seen, time.horizon[clip_H], haze)

    def behind(self, camera: Cameras, seconds_F: Tensor, focal: float, shadow_BFHW: Tensor) -> Tensor:
        """Ground and sky, without things but with their shadows: B, F, H, W, 3."""
        size = shadow_BFHW.shape[-1]
        across = ((torch.arange(size, device=seconds_F.device) + 0.5) * 2 / size - 1) / focal
        right, up, back = camera.axes_BF33[:, :, None, None].unbind(-2)
        ray = right * across[:, None] - up * across[:, None, None] - back
        ray = ray / ray.norm(dim=-1, keepdim=True)
        eye, unit = camera.eye_BF3[:, :, None, None], _wide(camera.unit_B)
        down = (-ray[..., 1]).clamp(min=1e-4)
        far = eye[..., 1] / down
        spot = (eye[..., ::2] + far[..., None] * ray[..., ::2]) / unit[..., None]
        reach = far / unit * (2 / size / focal) / down  # of a pixel over the ground
        lit = _wide(self.time.sun * self.way_B3[:, 1:2]) * (1 - 0.9 * shadow_BFHW[..., None])
        haze = 1 - torch.exp(-_wide(self.place.haze) * far / unit)
        haze = torch.where(ray[..., 1] < -1e-4, haze, 1.0)[..., None]
        ground = self._ground(spot, reach, seconds_F[:, None, None]) * (_wide(self.time.ambient) + lit)
        return torch.lerp(ground, self._sky(ray), haze)

    def _ground(self, spot: Tensor, reach: Tensor, seconds: Tensor) -> Tensor:
        place = Place(*map(_wide, self.place))
        large, small, finest = _noise(spot * 0.35), _noise(spot * 2.3), _noise(spot * 9.0)
        mix = 0.5 + place.patches * (large - 0.5) * 1.6
        grain = (small - 0.5) * 0.9 / (1 + (reach * 20) ** 2) + (finest - 0.5) * 1.2 / (1 + (reach * 90) ** 2)
        mix = mix + place.grain * grain
        waves = torch.sin(26 * (spot[..., 0] * 0.5 + spot[..., 1] * 0.87) + 14 * large)
        mix = mix + place.ripples * 0.5 * waves / (1 + (reach * 16) ** 2)
        board = torch.sin(spot[..., 0] * 7.0) * torch.sin(spot[..., 1] * 7.0)
        mix = mix + place.tiles * (board / (0.03 + 7 * reach)).clamp(-0.5, 0.5)
        colour = torch.lerp(place.one, place.other, mix.clamp(0, 1)[..., None])
        drift = torch.stack([seconds, 0.6 * seconds], -1) * 0.05
        bright = (1 - (_noise(spot * 0.9 + drift) + _noise(spot * 0.9 - drift + 0.37) - 1).abs() * 5).clamp(min=0) ** 3
        return colour * (1 + place.water * 0.9 * bright / (1 + (reach * 10) ** 2))[..., None]

    def _sky(self, ray: Tensor) -> Tensor:
        time, dry = Time(*map(_wide, self.time)), 1 - _wide(self.place.water)
        height = ray[..., 1].clamp(min=0)
        sky = torch.lerp(time.horizon, time.top, (1 - torch.exp(-4.5 * height))[..., None])
        over = ray[..., ::2] / (height + 0.12)[..., None]
        cloud = ((_noise(over * 0.22) - 0.52) * 5).clamp(0, 1) * (height * 8).clamp(0, 1)
        sky = torch.lerp(sky, time.clouds, (0.75 * cloud * dry)[..., None])
        around = torch.stack([torch.atan2(ray[..., 0], ray[..., 2]), height], -1)
        star = ((_noise(around * 14.0, 1) - 3.1) * 1.5).clamp(0, 1) * time.stars * dry * (1 - cloud)
        glow = ((ray * _wide(self.way_B3)).sum(-1).clamp(min=0) ** 24)[..., None] * time.sun
        return sky + star[..., None] + 0.35 * glow * dry[..., None]


def landscape(looks_B: Tensor, azimuth_B: Tensor) -> Landscape:
    """The landscapes of scenes whose place and time are given by their number in LOOKS, with the sun at this azimuth."""
    places, times = (
        [
            torch.tensor(np.array(values), dtype=torch.float32, device=looks_B.device)[looks_B]
            for values in zip(*rows, strict=True)
        ]
        for rows in zip(*LOOKS.values(), strict=True)
    )
    place, time = Place(*places), Time(*times)
    level_B = time.height.cos()
    return Landscape(place, time, torch.stack([level_B * azimuth_B.sin(), time.height.sin(), level_B * azimuth_B.cos()], -1))


def _wide(values: Tensor) -> Tensor:
    """B values or colours, to be used with all pixels: B, F, H, W."""
    return values[:, None, None, None]


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
