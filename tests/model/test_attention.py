"""Attention's forms against the rule written out: to earlier ids, without padding, and in tiles as PyTorch finds them."""

import pytest
import torch
from torch import Tensor
from torch.backends.cuda import cudnn_sdp_enabled, flash_sdp_enabled
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import create_block_mask

from lumos.model.attention import attend_to_all, attend_to_earlier, dense, fastest, tiles


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


def listed(count: Tensor | None, number: Tensor | None) -> list[set[int]]:
    assert count is not None and number is not None
    rows = number.flatten(0, -2).tolist()
    return [set(row[:some]) for some, row in zip(count.flatten().tolist(), rows, strict=True)]


@pytest.mark.parametrize("length", [70, 256, 300, 517])
def test_tiles_are_those_that_hold_what_a_query_may_see(length: int) -> None:
    text = torch.arange(64).repeat(3, 1)
    for row, padding in enumerate((0, 10, 60)):
        text[row, :padding] = 10**6
    frames = 64 + torch.arange(length - 64) // 90
    block = torch.cat([text, frames.expand(3, -1)], dim=1)

    def rule(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return block[b, key] <= block[b, query]

    expected = create_block_mask(rule, 3, None, length, length, device="cpu")
    found = tiles(block, block)
    assert found.seq_lengths == expected.seq_lengths == (length, length)
    for kind in ("kv", "full_kv", "q", "full_q"):
        names = f"{kind}_num_blocks", f"{kind}_indices"
        assert listed(*(getattr(found, name) for name in names)) == listed(*(getattr(expected, name) for name in names)), kind


def test_a_kernel_before_the_first_is_out() -> None:
    """PyTorch puts cuDNN first when a process attends for the first time, whatever order was asked for."""
    with fastest(torch.device("cuda"), SDPBackend.FLASH_ATTENTION):
        assert (cudnn_sdp_enabled(), flash_sdp_enabled()) == (False, True)
    with fastest(torch.device("cuda")):
        assert (cudnn_sdp_enabled(), flash_sdp_enabled()) == (True, True)
    with fastest(torch.device("cpu"), SDPBackend.FLASH_ATTENTION):
        assert cudnn_sdp_enabled()
