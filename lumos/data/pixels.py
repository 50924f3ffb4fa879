"""Picture shards -> batches of pixels for the tokenizer's training: clips at random places in time and space, half mirrored.

Batch number n of a rank is a function of (seed, rank, n) alone. A share of the inputs is held out, chosen by the names of their
sources, so that no clip of a held-out video is ever trained on.
"""

import hashlib
import random
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lumos.data.shards import PIXELS, ShardIndex, ShardReader, open_shards

CACHE_BYTES = 2**31  # decoded clips that a worker keeps


class PixelBatches(Dataset[Tensor]):
    """Batch number `step` of one rank: rgb_BFHWC uint8, `batch` clips of `frames` frames and `size` x `size` pixels.

    A shorter clip goes on backwards. Raises ValueError for shards of codes, of smaller pictures, or with nothing to train on.
    """

    def __init__(self, folder: str, batch: int, frames: int, size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.index = open_pixels(folder, size)
        self.batch, self.frames, self.size, self.place = batch, frames, size, f"{seed}/{rank}/{world}"
        reader = ShardReader(self.index, ["clip"], 2**29)
        clip_bytes = 3 * int(self.index.sizes_N3.prod(1).max())
        self.clip = lru_cache(max(1, CACHE_BYTES // clip_bytes))(lambda row: reader.row(row)["clip"])
        self.trained, _ = split_rows(self.index)
        if not len(self.trained):
            raise ValueError(f"{folder} must hold more than a few videos, got none to train on besides the held-out; add some")

    def __getitem__(self, step: int) -> Tensor:
        rng = random.Random(f"{self.place}/{step}")
        return torch.from_numpy(np.stack([self._clip(rng) for _ in range(self.batch)]))

    def _clip(self, rng: random.Random) -> NDArray[np.uint8]:
        row = int(self.trained[rng.randrange(len(self.trained))])
        rgb_FHWC: NDArray[np.uint8] = self.clip(row)
        F, H, W, _ = rgb_FHWC.shape
        top, left = rng.randint(0, H - self.size), rng.randint(0, W - self.size)
        start = rng.randint(0, max(0, F - self.frames))
        clip = stretched(rgb_FHWC[start:, top : top + self.size, left : left + self.size], self.frames)
        return clip[:, :, ::-1] if rng.random() < 0.5 else clip


def held_out_clips(folder: str, count: int, frames: int, size: int) -> Tensor:
    """The first frames, centre-cropped, of up to `count` held-out clips, always the same: rgb_BFHWC uint8."""
    index = open_pixels(folder, size)
    reader = ShardReader(index, ["clip"], 2**28)
    _, held = split_rows(index)
    clips = np.zeros((min(count, len(held)), frames, size, size, 3), np.uint8)
    for i, row in enumerate(held[:count]):
        rgb_FHWC = reader.row(int(row))["clip"]
        top, left = (rgb_FHWC.shape[1] - size) // 2, (rgb_FHWC.shape[2] - size) // 2
        clips[i] = stretched(rgb_FHWC[:, top : top + size, left : left + size], frames)
    return torch.from_numpy(clips)


def open_pixels(folder: str, size: int) -> ShardIndex:
    """The index of picture shards whose pictures are at least `size` pixels a side."""
    index = open_shards(folder)
    if index.form != PIXELS:
        raise ValueError(f"a tokenizer is trained on pictures, got codes in {folder}; make shards with lumos prepare --pixels")
    if index.sizes_N3[:, 1:].min() < size:
        raise ValueError(f"{folder} must hold pictures of at least {size}x{size}, got smaller ones")
    return index


def split_rows(index: ShardIndex, one_in: int = 20) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows to train on, held-out rows): about one source in `one_in` is held out, by a hash of its file's name."""
    reader = ShardReader(index, ["source"])
    sources = [reader.row(row)["source"] for row in range(len(index))]
    names = [source.partition("#")[0].rpartition("/")[2] for source in sources]  # wherever the files were when prepared
    digests = [hashlib.sha256(name.encode()).digest()[:4] for name in names]
    held = np.array([int.from_bytes(digest, "big") % one_in == 0 for digest in digests])
    return np.flatnonzero(~held), np.flatnonzero(held)


def stretched(rgb_FHWC: NDArray[np.uint8], frames: int) -> NDArray[np.uint8]:
    """The first `frames` frames; a shorter clip turns back at its ends."""
    more = max(0, frames - len(rgb_FHWC))
    return np.pad(rgb_FHWC[:frames], [(0, more), (0, 0), (0, 0), (0, 0)], "reflect")
