"""What is in a folder of shards: counts, sizes and captions, and clips decoded from their codes for the eye."""

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lumos.config import PACKAGED
from lumos.data.loader import captions_by_clip
from lumos.data.shards import PIXELS, TOKENS, ShardIndex, ShardReader, check_tokenizer
from lumos.media.pixels import clips_to_pixels
from lumos.tokenizer.model import load_tokenizer
from lumos.weights import find_weights

SAMPLE = 2000  # captions looked at
SHEET_SIDE = 192  # pixels per side of a frame in the sheet, at most


def describe(index: ShardIndex) -> dict[str, Any]:
    """Counts and sizes of all clips; captions of up to SAMPLE of them, spread over all."""
    sampled = list(captions_by_clip(index, SAMPLE))
    captions = [caption for caption, _ in Counter(word for words in sampled for word in words).most_common()]
    sizes = Counter(map(tuple, index.sizes_N3.tolist()))
    images = int((index.sizes_N3[:, 0] == 1).sum())
    document: dict[str, Any] = {"clips": len(index), "videos": len(index) - images, "images": images, "shards": len(index.files)}
    document |= {"holds": "pictures" if index.form == PIXELS else "codes", "fps": index.fps}
    if index.fps:
        document["hours"] = round(float(index.frames_N[index.frames_N > 1].sum()) / index.fps / 3600, 4)
    document["sizes"] = {f"{t}x{h}x{w}": count for (t, h, w), count in sizes.most_common(20)}
    document["tokenizer"] = index.tokenizer or "none"
    document["captions_a_clip"] = round(float(np.mean(list(map(len, sampled)))), 2)
    if index.form != TOKENS:
        document["captions"] = captions[:: max(1, len(captions) // 8)][:8]
    return document


def draw_clips(index: ShardIndex, count: int, tokenizer: str | None) -> tuple[Tensor, list[str]]:
    """(pixels_BCFHW, captions) of `count` clips spread over all, of the commonest size. Errors where the tokenizer is another."""
    sizes, counts = np.unique(index.sizes_N3, axis=0, return_counts=True)
    same = np.flatnonzero((index.sizes_N3 == sizes[counts.argmax()]).all(1))
    rows = same[np.linspace(0, len(same) - 1, min(count, len(same))).round().astype(int)]
    model = None
    if index.form != PIXELS:
        model = load_tokenizer(find_weights(tokenizer or index.made_by or PACKAGED, "tokenizer"))
        check_tokenizer(index, model)
    reader = ShardReader(index, ["clip", index.words, "source"], codebook=model.codebook_size if model else 2**16)
    found = [reader.row(row) for row in rows.tolist()]
    captions = [row["source"] if index.form == TOKENS else " / ".join(row["captions"])[:120] for row in found]
    if model:
        pixels_BCFHW = torch.cat([model.decode(row["clip"][None]) for row in found])
    else:
        pixels_BCFHW = clips_to_pixels(torch.from_numpy(np.stack([row["clip"] for row in found])))
    F, H, W = pixels_BCFHW.shape[2:]
    if (side := max(H, W)) > SHEET_SIDE:
        pixels_BCFHW = interpolate(pixels_BCFHW, (F, H * SHEET_SIDE // side, W * SHEET_SIDE // side), mode="area")
    return pixels_BCFHW, captions
