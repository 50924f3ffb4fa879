"""Attention without a mask equals the dense mask of the block rule, forward and backward."""

import pytest
import torch
from torch import Tensor

import lumos.model.prefix as prefix_module
from lumos.model.attention import Attend, dense
from lumos.model.prefix import prefix
from lumos.sequence.layout import HEADER, PADDING_BLOCK, Grid, content_ids, pack, text_batch
from lumos.sequence.vocabulary import small_vocabulary

SLOTS, FRAMES, GRID = 9, 3, Grid(4, 4)
VOCABULARY = small_vocabulary(30, 20)
LENGTHS = [0, 4, 4, 9]


def block_of_rows() -> Tensor:
    """Four rows: no prompt, two short ones, and one that fills all places."""
    text = text_batch(VOCABULARY, [list(range(max(0, length - 2))) for length in LENGTHS], SLOTS)
    codes = torch.zeros(4, FRAMES, 4, 4, dtype=torch.int64)
    return pack(VOCABULARY, GRID, *text, content_ids(VOCABULARY, codes), 1, 8).block_BL


def tensors(length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 4, length, 8), (4, 2, length, 8), (4, 2, length, 8))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def results(attend: Attend, inputs: list[Tensor], seen_BL: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = attend(*leaves) * seen_BL[:, None, :, None]
    (out * torch.cos(torch.arange(out.shape[-1]))).square().sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def fast() -> Attend:
    return prefix([SLOTS - length for length in LENGTHS], SLOTS + HEADER, GRID.frame_length, FRAMES)


def test_equals_the_dense_mask() -> None:
    block_BL = block_of_rows()
    inputs, seen_BL = tensors(block_BL.shape[1]), block_BL < PADDING_BLOCK
    expected = results(dense(block_BL, block_BL), inputs, seen_BL)
    found = results(fast(), inputs, seen_BL)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # key gradients are added up in float32


def test_neighbours_of_one_length_share_their_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, attend = [], prefix_module.sdpa

    def counted(query: Tensor, *rest: Tensor, **how: bool) -> Tensor:
        rows.append(len(query))
        return attend(query, *rest, **how)

    monkeypatch.setattr(prefix_module, "sdpa", counted)
    fast()(*tensors(block_of_rows().shape[1]))
    assert rows == [count for count in (1, 2, 1) for _ in range(1 + FRAMES)]
