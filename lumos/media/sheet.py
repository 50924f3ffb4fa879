"""Samples and their captions -> one picture, to be looked at."""

from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lumos.media.pixels import to_bytes

GAP, MARGIN, FONT_SIZE = 4, 16, 13  # pixels


def contact_sheet(pixels_BCFHW: Tensor, captions: list[str], columns: int = 5) -> Image.Image:
    """Samples [B, 3, F, H, W] with their captions as one picture, to be looked at.

    Videos: one row each, `columns` frames evenly spread from the first to the last. Images: `columns` to a row.
    """
    B, _, frames, H, W = pixels_BCFHW.shape
    if len(captions) != B:
        raise ValueError(f"captions must be as many as samples, got {len(captions)} for {B}; give one each")
    shown, samples_a_row = min(columns, frames), min(columns, B) if frames == 1 else 1
    wide = shown * (W + GAP) - GAP
    font = ImageFont.load_default(FONT_SIZE)
    letters = max(1, int(wide / font.getlength("n")))
    lines = [wrap(caption, letters, break_long_words=False) for caption in captions]
    text_height = (FONT_SIZE + 4) * max(1, *map(len, lines)) + 6
    across, down = samples_a_row * (wide + GAP) - GAP, -(-B // samples_a_row) * (H + text_height + MARGIN)
    sheet = Image.new("RGB", (across + 2 * MARGIN, down + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    rgb_BFHWC = to_bytes(pixels_BCFHW).permute(0, 2, 3, 4, 1).contiguous().numpy()
    for b in range(B):
        x = MARGIN + (b % samples_a_row) * (wide + GAP)
        y = MARGIN + (b // samples_a_row) * (H + text_height + MARGIN)
        draw.multiline_text((x, y), "\n".join(lines[b]), fill="#333333", font=font, spacing=4)
        for i in range(shown):
            frame = Image.fromarray(rgb_BFHWC[b, round(i * (frames - 1) / max(shown - 1, 1))])
            sheet.paste(frame, (x + i * (W + GAP), y + text_height))
    return sheet
