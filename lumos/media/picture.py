"""What every reader of pictures and videos yields: `Picture`, upright and over white, drawn at any size by one crop rule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

MIN_SIDE = 16
MAX_PIXELS = 2**27
HDR = {16: "PQ", 18: "HLG"}  # transfer functions by their number in ITU-T H.273
# Wider colours, BT.2020's and Display P3's, by the number of their primaries there: light in those -> in sRGB's.
WIDE = {
    9: np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32),
    12: np.array([[1.2249, -0.2249, 0.0], [-0.0421, 1.0421, 0.0], [-0.0196, -0.0786, 1.0983]], np.float32),
}


class Header(NamedTuple):
    """What a file says of itself, and the size at which its first picture is shown."""

    kind: Literal["image", "video"]
    width: float
    height: float
    seconds: float = 0.0  # 0 for an image, and where the file does not say
    fps: float = 0.0  # on average; 0 where the file does not say
    tick: float = 0.0  # seconds that the file's times are rounded to


class Picture(NamedTuple):
    """One frame as it is shown: its size in square pixels, and the whole of it scaled to (rows, columns) as rgb_HWC uint8."""

    width: float
    height: float
    scaled: Callable[[int, int], NDArray[np.uint8]]
    done: str = ""  # what was done to it, in words

    def draw(self, rows: int, columns: int) -> NDArray[np.uint8]:
        """rgb_HWC of `rows` x `columns`: scaled until it covers them, then cropped in the middle."""
        scale = max(columns / self.width, rows / self.height)
        high, wide = max(rows, round(self.height * scale)), max(columns, round(self.width * scale))
        top, left = (high - rows) // 2, (wide - columns) // 2
        return np.ascontiguousarray(self.scaled(high, wide)[top : top + rows, left : left + columns])

    def note(self, rows: int, columns: int) -> list[str]:
        """What was done to the picture, and what `draw` does, in words."""
        scale = max(columns / self.width, rows / self.height)
        whole = f"{self.width:.0f}x{self.height:.0f}"
        kept = f"{min(columns / scale, self.width):.0f}x{min(rows / scale, self.height):.0f}"
        cropped = f"center-cropped {whole} to {kept}" if kept != whole else ""
        resized = f"resized to {columns}x{rows}" if kept != f"{columns}x{rows}" else ""
        return [words for words in (self.done, cropped, resized) if words]


# Seconds since the beginning of the file, seconds for which it is shown, the picture.
Timed = tuple[float, float, Picture]


def of_rgb(rgb_HWC: NDArray[np.uint8], done: str = "") -> Picture:
    """A picture whose pixels are there already. Bicubic, as swscale draws decoded frames."""

    def scaled(rows: int, columns: int) -> NDArray[np.uint8]:
        if rgb_HWC.shape[:2] == (rows, columns):
            return rgb_HWC
        rgb_1CHW = torch.from_numpy(np.ascontiguousarray(rgb_HWC)).permute(2, 0, 1)[None]
        resized: NDArray[np.uint8] = interpolate(rgb_1CHW, (rows, columns), mode="bicubic", antialias=True)[0].numpy()
        return resized.transpose(1, 2, 0)

    return Picture(rgb_HWC.shape[1], rgb_HWC.shape[0], scaled, done)


def over_white(rgba_HWC: NDArray[Any]) -> NDArray[np.uint8]:
    """rgb_HWC of a picture with transparency laid over white."""
    alpha_HW1 = rgba_HWC[..., 3:].astype(np.float32) / 255
    return (rgba_HWC[..., :3] * alpha_HW1 + 255 * (1 - alpha_HW1)).round().astype(np.uint8)


def in_srgb(rgb_HWC: NDArray[np.uint8], primaries: int) -> NDArray[np.uint8]:
    """The same colours in sRGB; those that it does not have are clipped."""
    if primaries not in WIDE:
        return rgb_HWC
    levels = np.arange(256, dtype=np.float32) / 255
    light_HWC = np.where(levels < 0.0404, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)[rgb_HWC] @ WIDE[primaries].T
    shown_HWC = np.where(light_HWC < 0.0031, 12.92 * light_HWC, 1.055 * light_HWC.clip(0) ** (1 / 2.4) - 0.055)
    return (255 * shown_HWC.clip(0, 1)).round().astype(np.uint8)


def check_size(path: Path, columns: int, rows: int) -> None:
    """ValueError for a picture that is too small or too large to be meant."""
    if min(columns, rows) < MIN_SIDE:
        raise ValueError(f"{path} must be at least {MIN_SIDE}x{MIN_SIDE} pixels, got {columns}x{rows}; use a larger picture")
    if columns * rows > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise ValueError(f"{path} must have at most {limit} million pixels, got {columns}x{rows}; make it smaller first")
