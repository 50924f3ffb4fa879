"""A manifest of stickers -> what is known of them, and their pictures as one tensor.

The manifest has a JSON object per line: path of a WebP, GIF or PNG, still or animated, or of a Lottie (.json); noun, captions and
mirror as in `Sticker`. examples/emoji.md makes one of public emoji.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lumos.config import read_object
from lumos.files import text_of
from lumos.worlds.stickers.render import Pictures
from lumos.worlds.stickers.scene import Sticker

MOST_SECONDS = 10.0  # of an animation, which then starts again


def load_stickers(manifest: Path, size: int, fps: float, workers: int = 0) -> tuple[list[Sticker], Pictures]:
    """All stickers, drawn at size x size and `fps` frames per second, by so many processes: 0.1 s each or less.

    ValueError, naming file and line, for a line that says something else or a picture that cannot be read.
    """
    rows = [_row(manifest, number, line) for number, line in enumerate(text_of(manifest).splitlines(), 1) if line]
    if not any(known["noun"] for _, known in rows):
        raise ValueError(f"{manifest} must have a line per sticker, one of them with a noun, got none; see examples/emoji.md")
    draw, paths = partial(_frames, size=size, fps=fps), [path for path, _ in rows]
    with ProcessPoolExecutor(max(1, workers)) as pool:
        drawn = [torch.from_numpy(frames) for frames in (pool.map(draw, paths, chunksize=4) if workers else map(draw, paths))]
    count_N = torch.tensor([len(frames) for frames in drawn])
    stickers = [Sticker(**known, animated=len(frames) > 1) for (_, known), frames in zip(rows, drawn, strict=True)]
    return stickers, Pictures(torch.cat(drawn), count_N.cumsum(0) - count_N, count_N, fps)


def _row(manifest: Path, number: int, line: str) -> tuple[Path, dict[str, Any]]:
    try:
        row = read_object(line, "it")
        path, noun, captions, mirror = (row[name] for name in ("path", "noun", "captions", "mirror"))
        words = (noun, *captions)
        if not (captions and isinstance(mirror, bool) and all(isinstance(each, str) for each in words)):
            raise ValueError("another type")
        return manifest.parent / path, {"noun": noun, "captions": tuple(captions), "mirror": mirror}
    except (ValueError, KeyError, TypeError) as error:
        rule = 'must be an object with "path", "noun", "captions" (at least one) and "mirror"'
        raise ValueError(f"{manifest} line {number} {rule}, got {line[:60]!r} ({error})") from None


def _frames(path: Path, size: int, fps: float) -> NDArray[np.uint8]:
    """All frames, [F, 4, S, S], colours multiplied by their opacity."""
    try:
        rgba_FHW4 = _lottie(path, size, fps) if path.suffix == ".json" else _animation(path, size, fps)
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: what Pillow says of broken PNG chunks
        raise ValueError(f"{path} must be a picture or animation that can be read, got an error: {error}") from None
    return rgba_FHW4.transpose(0, 3, 1, 2)


def _animation(path: Path, size: int, fps: float) -> NDArray[np.uint8]:
    shown, times, seconds = [], [], 0.0
    with Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            frame = np.asarray(image.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)).astype(np.uint16)
            shown.append(np.concatenate([frame[..., :3] * frame[..., 3:] // 255, frame[..., 3:]], axis=-1).astype(np.uint8))
            times.append(seconds)
            seconds += max(image.info.get("duration", 100), 10) / 1000
            if seconds > MOST_SECONDS:
                break
    if len(shown) == 1:
        return shown[0][None]
    wanted = np.arange(max(1, round(seconds * fps))) / fps + 1e-6  # times are sums of rounded numbers
    return np.stack([shown[place - 1] for place in np.searchsorted(times, wanted, side="right")])


def _lottie(path: Path, size: int, fps: float) -> NDArray[np.uint8]:
    try:
        from rlottie_python import LottieAnimation
    except ImportError:
        raise ValueError("drawing a Lottie needs the package rlottie-python; pip install rlottie-python") from None

    animation = LottieAnimation.from_data(path.read_text("utf-8"))
    total, rate = animation.lottie_animation_get_totalframe(), animation.lottie_animation_get_framerate()
    if not (total > 0 and rate > 0):
        raise ValueError("no frames")
    shown = []
    for number in range(max(1, round(min(total / rate, MOST_SECONDS) * fps))):
        raw = animation.lottie_animation_render(round(number * rate / fps) % total, width=size, height=size)
        shown.append(np.frombuffer(raw, np.uint8).reshape(size, size, 4)[..., [2, 1, 0, 3]])  # premultiplied BGRA
    return np.stack(shown)
