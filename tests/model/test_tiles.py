"""Which tiles FlexAttention works on: as PyTorch finds them by trying every pair of ids."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from lumos.model.attention import tiles


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
