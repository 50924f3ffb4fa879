"""Picture shards -> batches of pixels for the tokenizer's training: clips at random places in time and space, half mirrored.

Batch number n of a rank is a function of (seed, n) alone. A share of the inputs is held out, chosen by the names of their
sources, so that no clip of a held-out video is ever trained on.
"""

import hashlib
import random
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lumos.data.clips import unpack_picture
from lumos.data.shards import PIXELS, ByteCache, ShardIndex, ShardReader, open_shards

CACHE_BYTES = 2**31  # decoded clips that a worker keeps


class PixelBatches(Dataset[Tensor]):
    """Batch number `step` of one rank: rgb_BFHWC uint8, `batch` clips of `frames` frames and `size` x `size` pixels.

    A shorter clip goes on backwards. Raises ValueError for shards of codes, of smaller pictures, or with nothing to train on.
    """

    def __init__(self, folder: str, batch: int, frames: int, size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.index = open_pixels(folder, size)
        self.batch, self.frames, self.size = batch, frames, size
        self.seed, self.rank, self.world = seed, rank, world
        self.reader = ShardReader(self.index, ["picture", "F", "height", "width"], 2**29)
        self.trained, _ = split_rows(self.index)
        if not len(self.trained):
            raise ValueError(f"{folder} must hold more than a few videos, got none to train on besides the held-out; add some")
        self.clips = ByteCache(CACHE_BYTES)

    def __getitem__(self, step: int) -> Tensor:
        rng = random.Random(f"{self.seed}/{self.rank}/{self.world}/{step}")
        clips = []
        for _ in range(self.batch):
            row = int(self.trained[rng.randrange(len(self.trained))])
            rgb_FHWC: NDArray[np.uint8] = self.clips.get(row, partial(_unpacked, self.reader, row))
            F, H, W, _ = rgb_FHWC.shape
            top, left = rng.randint(0, H - self.size), rng.randint(0, W - self.size)
            start = rng.randint(0, max(0, F - self.frames))
            clip = stretched(rgb_FHWC[start:, top : top + self.size, left : left + self.size], self.frames)
            clips.append(clip[:, :, ::-1] if rng.random() < 0.5 else clip)
        return torch.from_numpy(np.stack(clips))


def held_out_clips(folder: str, count: int, frames: int, size: int) -> Tensor:
    """The first frames, centre-cropped, of up to `count` held-out clips, always the same: rgb_BFHWC uint8."""
    index = open_pixels(folder, size)
    reader = ShardReader(index, ["picture", "F", "height", "width"], 2**28)
    _, held = split_rows(index)
    clips = []
    for row in held[:count]:
        rgb_FHWC = _unpacked(reader, int(row))
        top, left = (rgb_FHWC.shape[1] - size) // 2, (rgb_FHWC.shape[2] - size) // 2
        clips.append(stretched(rgb_FHWC[:, top : top + size, left : left + size], frames))
    return torch.from_numpy(np.stack(clips)) if clips else torch.zeros((0, frames, size, size, 3), dtype=torch.uint8)


def open_pixels(folder: str, size: int) -> ShardIndex:
    """The index of picture shards whose pictures are at least `size` pixels a side."""
    index = open_shards(folder)
    if index.form != PIXELS:
        raise ValueError(f"a tokenizer is trained on pictures, got codes in {folder}; make shards with lumos prepare --pixels")
    if index.sizes_N3[:, 1:].min() < size:
        raise ValueError(
            f"{folder} must hold pictures of at least {size}x{size}, got smaller ones; prepare them larger, or set size"
        )
    return index


def split_rows(index: ShardIndex, one_in: int = 20) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows to train on, held-out rows): about one source in `one_in` is held out, by a hash of its file's name."""
    reader = ShardReader(index, ["source"])
    held = [_hash(reader.row(row)["source"]) % one_in == 0 for row in range(len(index))]
    return np.flatnonzero(np.logical_not(held)), np.flatnonzero(held)


def stretched(rgb_FHWC: NDArray[np.uint8], frames: int) -> NDArray[np.uint8]:
    """The first `frames` frames; a shorter clip turns back at its ends."""
    more = max(0, frames - len(rgb_FHWC))
    return np.pad(rgb_FHWC[:frames], [(0, more), (0, 0), (0, 0), (0, 0)], "reflect")


def _unpacked(reader: ShardReader, number: int) -> NDArray[np.uint8]:
    row = reader.row(number)
    return unpack_picture(row["picture"], row["F"], row["height"], row["width"])


def _hash(source: str) -> int:
    name = source.partition("#")[0].rpartition("/")[2]  # wherever the files were when they were prepared
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
