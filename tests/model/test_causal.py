"""Attention to earlier ids: the block rule with a block an id, for the last queries and for all; padding has no influence."""

import torch

from lumos.model.attention import attend_to_all, attend_to_earlier, dense


def test_a_prompt_is_attended_to_as_if_there_were_no_padding() -> None:
    """To the last bit, in the format of sampling; whatever lies in the padding, its outputs are zeros."""
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(4, heads, 30, 16, generator=draw).bfloat16() for heads in (4, 2, 2))
    starts = [0, 7, 7, 27]
    for row, start in enumerate(starts):
        for x in (query, key, value):
            x[row, :, :start] = torch.nan
    found = attend_to_earlier(starts)(query, key, value)
    assert found.shape == query.shape
    for row, start in enumerate(starts):
        alone = [x[row : row + 1, :, start:] for x in (query, key, value)]
        assert torch.equal(found[row : row + 1, :, start:], attend_to_earlier([0])(*alone))
        assert not found[row, :, :start].any()
        place = torch.arange(30 - start)[None]
        torch.testing.assert_close(found[row : row + 1, :, start:], dense(place, place)(*alone), rtol=0.02, atol=0.02)


def test_attending_to_earlier_ids_is_the_block_rule_with_a_block_an_id() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 2, 7, 16, generator=draw) for _ in range(3))
    starts = [0, 2]
    place_BL = torch.arange(7).repeat(2, 1)
    block_BL = torch.where(place_BL < torch.tensor(starts)[:, None], 2**30, place_BL)
    whole = dense(block_BL, block_BL)(query, key, value)
    last = attend_to_earlier(starts)(query[:, :, 4:], key, value)
    torch.testing.assert_close(last, whole[:, :, 4:])
    assert not torch.allclose(last, attend_to_all(starts)(query[:, :, 4:], key, value), atol=1e-3)
