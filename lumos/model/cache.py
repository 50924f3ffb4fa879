"""Keys and values of everything a frame may see, preallocated (no concatenation, no cropping).

A frame in the making is written into the slots after `length` and overwritten by its next denoising step; `commit` makes it
history. `forget` drops the oldest frames and moves the rest up; `turn` shifts positions of what is cached.
"""

import torch
from torch import Tensor

from lumos.model.rope import Rotation, rotate


class Cache:
    """keys, values: [layers, B, kv heads, capacity, K]. `visible_BS` is False where a row's prompt padding lies."""

    def __init__(
        self, layers: int, rows: int, kv_heads: int, capacity: int, head_width: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (layers, rows, kv_heads, capacity, head_width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.visible_BS = torch.ones(rows, capacity, device=device, dtype=torch.bool)
        self.padded = False
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def hide(self, padding_BS: Tensor) -> None:
        """Mark prompt padding (True = never to be seen), starting at slot 0."""
        self.visible_BS[:, : padding_BS.shape[1]] = ~padding_BS
        self.padded = bool(padding_BS.any())

    def write(self, layer: int, key_BGLK: Tensor, value_BGLK: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys and values after `length`; returns everything up to and including them (views)."""
        stop = self.length + key_BGLK.shape[2]
        assert stop <= self.capacity, f"cache of {self.capacity} slots cannot hold {stop}"
        self.keys[layer, :, :, self.length : stop] = key_BGLK
        self.values[layer, :, :, self.length : stop] = value_BGLK
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]

    def commit(self, count: int) -> None:
        """The last `count` ids written become history."""
        self.length += count

    def forget(self, start: int, count: int) -> None:
        """Drop `count` slots from `start` on; what lies behind moves up."""
        for kept in (self.keys, self.values):
            kept[:, :, :, start : self.length - count] = kept[:, :, :, start + count : self.length].clone()
        self.length -= count

    def turn(self, start: int, by: Rotation) -> None:
        """Rotate the keys from `start` to `length` further: a shift of their positions (rotary angles add up)."""
        for keys_BGSK in self.keys:
            keys_BGSK[:, :, start : self.length] = rotate(keys_BGSK[:, :, start : self.length], by)
