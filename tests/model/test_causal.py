"""Attention to earlier ids: the block rule with a block an id, for the last queries and for all; padding has no influence."""

import torch

from lumos.model.attention import attend_to_earlier, dense


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
