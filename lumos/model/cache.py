"""Keys and values of everything a frame may see, preallocated (no concatenation, no cropping).

A frame in the making is written into the slots after `length` and overwritten by its next denoising step; `commit` makes it
history. `keep` drops single slots of the newest frame, `forget` a whole frame.
"""

import torch
from torch import Tensor

from lumos.model.attention import Attend
from lumos.ranks import Division


class Cache:
    """keys, values: [layers, B, kv heads, capacity, K]; the first `length` slots hold history."""

    def __init__(
        self, layers: int, rows: int, kv_heads: int, capacity: int, head_width: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (layers, rows, kv_heads, capacity, head_width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length, self.capacity = 0, capacity

    def write(self, layer: int, key_BGLK: Tensor, value_BGLK: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys and values after `length`; returns everything up to and including them (views).

        With fewer rows than the cache has, its first rows are meant: guidance's unconditional rows, the last ones, can pause.
        """
        rows, stop = key_BGLK.shape[0], self.length + key_BGLK.shape[2]
        assert stop <= self.capacity, f"cache of {self.capacity} slots cannot hold {stop}"
        keys, values = self.keys[layer, :rows, :, :stop], self.values[layer, :rows, :, :stop]
        for into, new in ((keys, key_BGLK), (values, value_BGLK)):  # in eight bytes each, as a card copies element by element
            into[:, :, self.length :].view(torch.int64).copy_(new.view(torch.int64))
        return keys, values

    def commit(self, count: int) -> None:
        """The last `count` ids written become history."""
        self.length += count

    def keep(self, start: int, index_BM: Tensor) -> None:
        """Of the slots from `start` to the end keep those at index_BM (ascending, 0 = `start`)."""
        for layer in [*self.keys, *self.values]:  # one layer at a time, so that the copies stay small
            index = index_BM[:, None, :, None].expand(-1, layer.shape[1], -1, layer.shape[3])
            kept = layer[:, :, start : self.length].gather(2, index)
            layer[:, :, start : start + kept.shape[2]] = kept
        self.length = start + index_BM.shape[1]

    def forget(self, start: int, count: int) -> None:
        """Drop `count` slots from `start` on; what lies behind moves up."""
        for layer in [*self.keys, *self.values]:
            layer[:, :, start : self.length - count] = layer[:, :, start + count : self.length].clone()
        self.length -= count


def behind(attend: Attend, cache: Cache, ids: Division | None, layer: int) -> Attend:
    """`attend` to what a layer has cached, and to new keys and values, which go behind it. ids: how those are divided."""

    def attend_behind(query_BNLK: Tensor, key_BGLK: Tensor, value_BGLK: Tensor) -> Tensor:
        if ids and ids.world > 1:
            mine_LBXK = torch.cat([new.view(torch.int64).movedim(2, 0) for new in (key_BGLK, value_BGLK)], dim=2)
            key_BGLK, value_BGLK = ids.whole(mine_LBXK, 0).view(key_BGLK.dtype).movedim(0, 2).chunk(2, dim=1)
        return attend(query_BNLK, *cache.write(layer, key_BGLK, value_BGLK))

    return attend_behind
