"""How far a reconstruction is from its clip, without any pretrained network: pixels_BCFHW twice -> one number to minimise.

One robust distance (quadratic for small errors, so PSNR counts; linear for large ones, so edges stay sharp) applied to the
error itself, to its differences over space (clean edges, no 4- or 8-pixel borders) and over time (no flicker), and to its
mean over 8x8 pixels (no tint over large areas, which the eye sees first).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms against the plain error's 1."""

    edges: float = 0.5  # weight of differences between neighbouring pixels
    motion: float = 0.25  # weight of differences between frames
    coarse: float = 0.5  # weight of means over 8x8 pixels
    knee: float = 0.03  # error, of pixels in [-1, 1], where squares become lines
    first_frame: float = 4.0  # frames that the first one counts for: then every latent frame counts the same


def reconstruction_loss(reconstruction_BCFHW: Tensor, pixels_BCFHW: Tensor, config: LossConfig) -> Tensor:
    """The training loss, a scalar."""
    error_BCFHW = reconstruction_BCFHW.float() - pixels_BCFHW.float()
    loss = _mean(error_BCFHW, config) + config.coarse * _mean(avg_pool3d(error_BCFHW, (1, 8, 8)), config)
    loss = loss + config.edges * (_mean(error_BCFHW.diff(dim=3), config) + _mean(error_BCFHW.diff(dim=4), config)) / 2
    if error_BCFHW.shape[2] > 1:
        loss = loss + config.motion * _robust(error_BCFHW.diff(dim=2), config.knee).mean()
    return loss


def psnr(reconstruction_BCFHW: Tensor, pixels_BCFHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every clip, in dB on the [0, 1] range, shape [B]; the reconstruction is clamped first."""
    error_BCFHW = (reconstruction_BCFHW.float().clamp(-1, 1) - pixels_BCFHW.float()) / 2
    return -10 * torch.log10(error_BCFHW.square().flatten(1).mean(1).clamp_min(1e-10))


def codes_used(codes_BTHW: Tensor, codebook_size: int) -> tuple[float, float]:
    """(share of the codebook that occurs, perplexity / codebook size): 1 and 1 when all codes are used equally."""
    counts = codes_BTHW.unique(return_counts=True)[1].double()
    shares = counts / counts.sum()
    perplexity = torch.exp(-(shares * shares.log()).sum())
    return len(counts) / codebook_size, float(perplexity / codebook_size)


def _mean(error_BCFHW: Tensor, config: LossConfig) -> Tensor:
    distance_BCFHW = _robust(error_BCFHW, config.knee)
    first, rest = distance_BCFHW[:, :, :1], distance_BCFHW[:, :, 1:]
    weight = config.first_frame
    total = weight * first.sum() + rest.sum()
    return total / (weight * first.numel() + rest.numel())


def _robust(error: Tensor, knee: float) -> Tensor:
    return torch.sqrt(error.square() + knee**2) - knee
