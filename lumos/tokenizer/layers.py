"""The parts of a causal video tokenizer: Haar patching, convolutions over space and over time, the memory of a stream.

Pixels are BCFHW; inside, features are BTHWC (channels last), so that a convolution over time is one matrix product and a
convolution over space reads the same memory as a channels-last image. The ideas are those of Cosmos (arXiv 2501.03575).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

Memory = dict[nn.Module, Tensor] | None  # each temporal layer's last inputs; None: a whole clip, nothing to remember

TIME_KERNEL = 3
PATCH = 4  # two Haar levels: 4x4x4 pixels of 3 channels become one place of 192
PATCH_CHANNELS = 3 * PATCH**3


@dataclass
class StreamState:
    """What a stream remembers between calls; its size does not grow with length."""

    memory: Memory = field(default_factory=dict)
    started: bool = False


def haar(video_BCFHW: Tensor) -> Tensor:
    """One level of the 3-D Haar transform: time, height and width halved, channels times 8, sub-band major.

    Sub-bands in the order LLL, LLH, LHL, ... (letters: time, height, width); scaled so that LLL is the mean of 8 pixels.
    """
    bands = video_BCFHW[:, None]  # [B, bands, C, F, H, W]
    for axis in (3, 4, 5):
        first, second = bands.unflatten(axis, (-1, 2)).unbind(axis + 1)
        bands = torch.stack(((first + second) / 2, (first - second) / 2), dim=2).flatten(1, 2)
    return bands.flatten(1, 2)


def inverse_haar(bands_BCFHW: Tensor) -> Tensor:
    """The inverse of `haar`: time, height and width doubled, channels divided by 8."""
    bands = bands_BCFHW.unflatten(1, (8, -1))
    for axis in (5, 4, 3):
        low, high = bands.unflatten(1, (-1, 2)).unbind(2)
        bands = torch.stack((low + high, low - high), dim=axis + 1).flatten(axis, axis + 1)
    return bands.flatten(1, 2)


def patch(pixels_BCFHW: Tensor, first: bool) -> Tensor:
    """Pixels -> patches_BTHWC of two Haar levels; `first` when they start a video, whose first frame stands for four."""
    if first:
        pixels_BCFHW = torch.cat((pixels_BCFHW[:, :, :1].expand(-1, -1, PATCH - 1, -1, -1), pixels_BCFHW), dim=2)
    return haar(haar(pixels_BCFHW)).permute(0, 2, 3, 4, 1)


def unpatch(patches_BTHWC: Tensor, first: bool) -> Tensor:
    """The inverse of `patch`: patches -> pixels_BCFHW float32."""
    pixels_BCFHW = inverse_haar(inverse_haar(patches_BTHWC.float().permute(0, 4, 1, 2, 3)))
    return pixels_BCFHW[:, :, PATCH - 1 :] if first else pixels_BCFHW


class SpaceConv(nn.Module):
    """3x3 convolution inside every frame, zeros around it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, features_BTHWC: Tensor) -> Tensor:
        return as_video(self.conv(as_images(features_BTHWC)), features_BTHWC.shape[0])


class TimeConv(nn.Module):
    """Convolution over time, pixel by pixel, that sees the present and two earlier frames; before the first frame, that frame."""

    remembers = TIME_KERNEL - 1

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(TIME_KERNEL * inputs, outputs)

    def forward(self, features_BTHWC: Tensor, memory: Memory) -> Tensor:
        past = None if memory is None else memory.get(self)
        if past is None:
            past = features_BTHWC[:, :1].expand(-1, TIME_KERNEL - 1, -1, -1, -1)
        padded = torch.cat((past, features_BTHWC), dim=1)
        if memory is not None:
            memory[self] = padded[:, 1 - TIME_KERNEL :].clone()  # a view would keep the whole input alive
        frames = features_BTHWC.shape[1]
        return self.linear(torch.cat([padded[:, k : k + frames] for k in range(TIME_KERNEL)], dim=-1))


class Norm(nn.Module):
    """RMSNorm over the channels of every pixel: it mixes neither places nor frames, so a stream needs nothing remembered."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, features_BTHWC: Tensor) -> Tensor:
        x = features_BTHWC.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return (x * self.weight).to(features_BTHWC.dtype)


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution over space, norm, SiLU, convolution over time, plus the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_space, self.space = Norm(width), SpaceConv(width, width)
        self.norm_time, self.time = Norm(width), TimeConv(width, width)

    def forward(self, features_BTHWC: Tensor, memory: Memory) -> Tensor:
        x = self.space(silu(self.norm_space(features_BTHWC)))
        return features_BTHWC + self.time(silu(self.norm_time(x)), memory)


class Down(nn.Module):
    """Halves height and width: every 2x2 pixels become one of four times the channels, then a matrix."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4 * inputs, outputs)

    def forward(self, features_BTHWC: Tensor) -> Tensor:
        return self.linear(as_video(pixel_unshuffle(as_images(features_BTHWC), 2), features_BTHWC.shape[0]))


class Up(nn.Module):
    """Doubles height and width: a matrix, then every pixel becomes 2x2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 4 * outputs)

    def forward(self, features_BTHWC: Tensor) -> Tensor:
        return as_video(pixel_shuffle(as_images(self.linear(features_BTHWC)), 2), features_BTHWC.shape[0])


def as_images(features_BTHWC: Tensor) -> Tensor:
    """All frames as images_NCHW with the memory of channels-last images: nothing is copied."""
    return features_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)


def as_video(images_NCHW: Tensor, batch: int) -> Tensor:
    """The inverse of `as_images`."""
    return images_NCHW.permute(0, 2, 3, 1).unflatten(0, (batch, -1))
