"""The loss and the measures: zero for equal clips, right for known errors."""

import math

import pytest
import torch

from lumos.tokenizer.losses import LossConfig, codes_used, psnr, reconstruction_loss


def test_psnr_of_a_known_error() -> None:
    clip = torch.zeros(2, 3, 5, 16, 16)
    off = clip.clone()
    off[1] += 0.2  # 0.1 on the [0, 1] range: 20 dB
    torch.testing.assert_close(psnr(off, clip), torch.tensor([100.0, 20.0]))
    torch.testing.assert_close(psnr(clip + 5, clip + 1), torch.tensor([100.0, 100.0]), msg="the reconstruction is clamped")


@pytest.mark.parametrize("frames", [1, 5])
def test_the_loss_is_zero_for_equal_clips_and_grows_with_the_error(frames: int) -> None:
    clip = torch.rand(2, 3, frames, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))
    losses = [float(reconstruction_loss(clip + size * noise, clip, LossConfig())) for size in (0.0, 0.01, 0.1, 1.0)]
    assert losses[0] == 0 and losses == sorted(losses) and losses[1] > 0
    turned = reconstruction_loss((clip + noise.cumsum(3)).mT, clip.mT, LossConfig())  # rows and columns count alike
    torch.testing.assert_close(turned, reconstruction_loss(clip + noise.cumsum(3), clip, LossConfig()))


def test_the_first_frame_weighs_as_much_as_a_latent_frame() -> None:
    clip = torch.zeros(1, 3, 5, 16, 16)
    config = LossConfig(edges=0.0, motion=0.0, coarse=0.0)
    first, later = clip.clone(), clip.clone()
    first[:, :, 0], later[:, :, 1:] = 0.5, 0.5
    torch.testing.assert_close(reconstruction_loss(first, clip, config), reconstruction_loss(later, clip, config))


def test_flicker_blurred_edges_and_tints_cost_extra() -> None:
    clip = torch.zeros(1, 3, 5, 16, 16)
    constant, flicker, stripes = clip + 0.1, clip.clone(), clip + 0.1
    flicker[:, :, ::2], flicker[:, :, 1::2] = 0.1, -0.1
    stripes[..., ::2] = -0.1
    config = LossConfig(coarse=0.0)
    base = float(reconstruction_loss(constant, clip, config))
    assert float(reconstruction_loss(flicker, clip, config)) > 1.3 * base
    assert float(reconstruction_loss(stripes, clip, config)) > 1.3 * base
    assert float(reconstruction_loss(constant, clip, LossConfig())) == pytest.approx(1.5 * base)


def test_codes_used() -> None:
    used, perplexity = codes_used(torch.tensor([[0, 1], [2, 3]]), 8)
    assert used == 0.5 and math.isclose(perplexity, 0.5)
    used, perplexity = codes_used(torch.zeros(10, dtype=torch.int64), 8)
    assert used == 0.125 and math.isclose(perplexity, 0.125)
