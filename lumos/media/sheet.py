"""Samples and their captions -> one picture, to be looked at."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from lumos.media.pixels import to_bytes

if TYPE_CHECKING:
    from PIL.Image import Image


def contact_sheet(pixels_BCFHW: Tensor, captions: list[str], columns: int = 5, scale: int = 1) -> Image:
    """Samples [B, 3, F, H, W] with their captions as one picture, to be looked at.

    Videos: one row each, `columns` frames evenly spread from the first to the last. Images: `columns` to a row.
    `scale` enlarges every frame by a whole factor, without smoothing.
    """
    B, _, frames, H, W = pixels_BCFHW.shape
    if len(captions) != B:
        raise ValueError(f"captions must be as many as samples, got {len(captions)} for {B}; give one each")
    from PIL import Image, ImageDraw, ImageFont

    gap, margin, size = 4, 16, 13
    height, width = H * scale, W * scale
    shown = min(columns, frames if frames > 1 else B)
    spread = [round(i * (frames - 1) / max(shown - 1, 1)) for i in range(shown)]
    font = ImageFont.load_default(size)
    text_width = width if frames == 1 else shown * (width + gap) - gap
    lines = [_wrap(caption, text_width, font.getlength) for caption in captions]
    text_height = (size + 4) * max(map(len, lines)) + 6
    samples_a_row = shown if frames == 1 else 1
    rows = math.ceil(B / samples_a_row)
    sheet_size = (2 * margin + shown * (width + gap) - gap, 2 * margin + rows * (height + text_height + margin) - margin)
    sheet = Image.new("RGB", sheet_size, "white")
    draw = ImageDraw.Draw(sheet)
    rgb_BFHWC = to_bytes(pixels_BCFHW).permute(0, 2, 3, 4, 1)
    for b in range(B):
        x = margin + (b % samples_a_row) * (width + gap)
        y = margin + (b // samples_a_row) * (height + text_height + margin)
        draw.multiline_text((x, y), "\n".join(lines[b]), fill="#333333", font=font, spacing=4)
        for i, frame in enumerate([0] if frames == 1 else spread):
            picture = Image.fromarray(rgb_BFHWC[b, frame].contiguous().numpy())
            sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x + i * (width + gap), y + text_height))
    return sheet


def _wrap(text: str, width: float, length: Callable[[str], float]) -> list[str]:
    """Break text between words into lines of at most `width` (a single longer word stays whole)."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and length(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
