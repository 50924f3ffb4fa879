"""The cache: what is kept and forgotten lies where it should, in every layer and row."""

import torch
from torch import Tensor

from lumos.model.cache import Cache

LAYERS, ROWS, GROUPS, CAPACITY, K = 2, 3, 2, 12, 32


def filled(length: int) -> tuple[Cache, Tensor, Tensor]:
    """A cache with `length` random slots, and copies of its keys and values."""
    cache = Cache(LAYERS, ROWS, GROUPS, CAPACITY, K, torch.device("cpu"), torch.float32)
    keys, values = torch.randn(2, LAYERS, ROWS, GROUPS, length, K, generator=torch.Generator().manual_seed(0))
    for layer in range(LAYERS):
        cache.write(layer, keys[layer], values[layer])
    cache.commit(length)
    return cache, keys, values


def test_what_is_kept_and_what_lies_behind_the_forgotten_moves_up() -> None:
    (kept, keys, values), (shorter, *_) = filled(10), filled(10)
    index = torch.tensor([[0, 3], [1, 2], [2, 4]])
    kept.keep(5, index)
    shorter.forget(3, 4)
    assert (kept.length, shorter.length) == (7, 6)
    for name, before in (("keys", keys), ("values", values)):
        for row in range(ROWS):
            picked = before[:, row][:, :, [*range(5), *(5 + index[row]).tolist()]]
            assert torch.equal(getattr(kept, name)[:, row, :, :7], picked)
        assert torch.equal(getattr(shorter, name)[:, :, :, :6], before[:, :, :, [0, 1, 2, 7, 8, 9]])
