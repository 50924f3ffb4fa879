"""The cache: what is written, kept, forgotten and turned lies where it should, in every layer and row."""

import torch
from torch import Tensor

from lumos.model.attention import attend_to_all
from lumos.model.cache import Cache
from lumos.model.rope import rotate, rotation

LAYERS, ROWS, GROUPS, CAPACITY, K = 2, 3, 2, 12, 32


def filled(length: int) -> tuple[Cache, Tensor, Tensor]:
    """A cache with `length` random slots, and copies of its keys and values."""
    cache = Cache(LAYERS, ROWS, GROUPS, CAPACITY, K, torch.device("cpu"), torch.float32)
    keys, values = torch.randn(2, LAYERS, ROWS, GROUPS, length, K, generator=torch.Generator().manual_seed(0))
    for layer in range(LAYERS):
        cache.write(layer, keys[layer], values[layer])
    cache.commit(length)
    return cache, keys, values


def test_a_write_is_overwritten_until_it_is_committed() -> None:
    cache, keys, _ = filled(4)
    for number in (1.0, 2.0):
        seen, _ = cache.write(0, torch.full((ROWS, GROUPS, 3, K), number), torch.zeros(ROWS, GROUPS, 3, K))
        assert torch.equal(seen[:, :, :4], keys[0]) and (seen[:, :, 4:] == number).all() and cache.length == 4


def test_fewer_rows_are_the_first_ones() -> None:
    cache, keys, _ = filled(4)
    seen, _ = cache.write(1, torch.ones(2, GROUPS, 1, K), torch.ones(2, GROUPS, 1, K))
    assert seen.shape == (2, GROUPS, 5, K) and torch.equal(seen[:, :, :4], keys[1, :2])
    assert (cache.keys[1, 2, :, 4:] == 0).all()


def test_keep_picks_slots_of_each_row() -> None:
    cache, keys, values = filled(10)
    index = torch.tensor([[0, 3], [1, 2], [2, 4]])
    cache.keep(5, index)
    assert cache.length == 7
    for now, before in ((cache.keys, keys), (cache.values, values)):
        for row in range(ROWS):
            assert torch.equal(now[:, row, :, :7], before[:, row][:, :, [*range(5), *(5 + index[row]).tolist()]])


def test_forget_moves_up_what_lies_behind() -> None:
    cache, keys, values = filled(10)
    cache.forget(3, 4)
    assert cache.length == 6
    for now, before in ((cache.keys, keys), (cache.values, values)):
        assert torch.equal(now[:, :, :, :6], torch.cat([before[:, :, :, :3], before[:, :, :, 7:]], dim=3))


def test_turn_turns_keys_from_a_slot_on_and_no_values() -> None:
    cache, keys, values = filled(6)
    by = rotation(torch.full((1, 4, 3), 5), torch.zeros(K // 2, dtype=torch.int64), torch.ones(K // 2))
    cache.turn(2, by)
    assert torch.equal(cache.keys[:, :, :, :2], keys[:, :, :, :2]) and torch.equal(cache.values[:, :, :, :6], values)
    torch.testing.assert_close(cache.keys[1, :, :, 2:6], rotate(keys[1, :, :, 2:], by))


def test_rows_that_start_later_see_less_and_rows_that_start_alike_share_a_call() -> None:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(4, 4, 3, K, generator=generator)
    key, value = torch.randn(2, 4, 2, 9, K, generator=generator)
    starts = [2, 2, 0, 5]
    together = attend_to_all(starts)(query, key, value)
    for row, start in enumerate(starts):
        part = slice(row, row + 1)
        alone = attend_to_all()(query[part], key[part, :, start:], value[part, :, start:])
        torch.testing.assert_close(together[part], alone, rtol=1e-5, atol=1e-5)
