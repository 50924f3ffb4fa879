"""FSQ: codes and levels are the same thing twice, and the gradient passes the rounding."""

import pytest
import torch

from lumos.tokenizer.fsq import FSQ

LEVELS = [(7, 5, 5, 5, 5), (8, 8, 8, 5, 5, 5), (4, 3, 2)]


@pytest.mark.parametrize("levels", LEVELS)
def test_quantising_gives_the_values_of_its_codes(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels)
    values, codes = fsq(3 * torch.randn(4000, len(levels), generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(values, fsq.values(codes), rtol=0, atol=1e-6)
    assert codes.unique().numel() > 0.3 * min(fsq.codebook_size, 4000)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_level_can_be_reached(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels)
    channels = torch.linspace(-20, 20, 20001)[:, None].expand(-1, len(levels))
    values, _ = fsq(channels)
    for i, count in enumerate(levels):
        assert values[:, i].mul(count // 2).round().unique().numel() == count


def test_the_gradient_is_that_of_the_squashing_alone() -> None:
    fsq = FSQ((7, 5))
    channels = torch.tensor([[0.3, -0.7]], requires_grad=True)
    fsq(channels)[0].sum().backward()
    expected = (1 - torch.tanh(channels.detach()) ** 2) * torch.tensor([3.0, 2.0]) * 1.001 / torch.tensor([3, 2])
    torch.testing.assert_close(channels.grad, expected)


def test_bad_codes_and_levels_are_refused() -> None:
    fsq = FSQ((7, 5))
    for bad in (-1, 35):
        with pytest.raises(ValueError, match=r"codes must lie in 0 \.\.\. 34"):
            fsq.values(torch.tensor([3, bad]))
    with pytest.raises(ValueError, match="int64"):
        fsq.values(torch.tensor([1.0]))
    assert FSQ((2**16, 2**15)).codebook_size == 2**31
    for levels in ((), (5, 1), (2**16, 2**15 + 1)):
        with pytest.raises(ValueError, match="levels"):
            FSQ(levels)
