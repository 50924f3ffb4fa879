"""MM-RoPE as one gather (paper section 3.2): angle = position[axis of channel] * inverse frequency of channel.

In: position_BL3 (t, h, w; text has the same number on all three). Out: cos and sin per token and channel pair. The paper's
other variants are other axis tables here and other positions, written by `sequence/layout.py` (`PLACES` says which).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

RopeKind = Literal["mm-rope", "m-rope-interleaved", "m-rope", "1d"]
# What `Grid.places` must be for each kind: the positions that it turns by.
PLACES: dict[RopeKind, Literal["pixel", "latent", "index"]] = {
    "mm-rope": "pixel",
    "m-rope-interleaved": "latent",
    "m-rope": "latent",
    "1d": "index",
}
TIME, HEIGHT, WIDTH = 0, 1, 2
# Every 16 channels hold t:h:w = 4:6:6, so that each axis covers the whole frequency spectrum.
INTERLEAVED: Sequence[int] = (TIME,) * 4 + (HEIGHT, HEIGHT, WIDTH, WIDTH) * 3


class Rotation(NamedTuple):
    """cos_BLK and sin_BLK of every channel's angle, float32; sin with the sign that channel i + K/2 comes into channel i by."""

    cos_BLK: Tensor
    sin_BLK: Tensor


def axis_of_channel(kind: RopeKind, pairs: int) -> list[int]:
    """Which coordinate turns each of `pairs` = K/2 channel pairs.

    mm-rope and m-rope-interleaved: the interleaved groups. m-rope: one contiguous split 4:6:6, so time takes the high
    frequencies. 1d: needs no table (all three coordinates are the sequence index), any will do.
    """
    if pairs % 16:
        raise ValueError(f"half of head_width must be a multiple of 16 for the 4:6:6 split, got {pairs}; use 64 or 128")
    if kind == "m-rope":
        return [TIME] * (pairs // 16 * 4) + [HEIGHT] * (pairs // 16 * 6) + [WIDTH] * (pairs // 16 * 6)
    return list(INTERLEAVED) * (pairs // 16)


def inverse_frequency(pairs: int, theta: float) -> Tensor:
    """theta^(-i / pairs) for pair i, float32: Llama's table."""
    # On the CPU, also where models are built without memory: arange on the meta device loads the compiler, a second of start-up.
    return 1.0 / theta ** (torch.arange(pairs, dtype=torch.float32, device="cpu") / pairs)


def rotation(position_BL3: Tensor, axis_K: Tensor, inverse_frequency_K: Tensor) -> Rotation:
    """Positions -> angles' cos and sin. Computed in float32: positions reach thousands."""
    angle_BLK = position_BL3.float()[..., axis_K] * inverse_frequency_K
    cos_BLK, sin_BLK = angle_BLK.cos(), angle_BLK.sin()
    return Rotation(torch.cat([cos_BLK, cos_BLK], dim=-1), torch.cat([-sin_BLK, sin_BLK], dim=-1))


def rotate(x_BLNK: Tensor, turn: Rotation) -> Tensor:
    """Turn channel i together with channel i + K/2 (Llama's half-split pairs)."""
    other_BLNK = x_BLNK.roll(x_BLNK.shape[-1] // 2, dims=-1)
    return (x_BLNK * turn.cos_BLK.unsqueeze(2) + other_BLNK * turn.sin_BLK.unsqueeze(2)).to(x_BLNK.dtype)
