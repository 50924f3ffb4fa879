import torch

from lumos.model.attention import attend_to_all, attend_to_earlier, dense


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
