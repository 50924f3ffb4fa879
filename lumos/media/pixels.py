"""Pixels in [-1, 1] <-> bytes, on any device."""

import torch
from torch import Tensor


def to_float(rgb: Tensor) -> Tensor:
    """Bytes 0 to 255 -> float32 in [-1, 1]."""
    return rgb.to(torch.float32) / 127.5 - 1


def clips_to_pixels(rgb_BFHWC: Tensor) -> Tensor:
    """Clips of bytes -> pixels_BCFHW in [-1, 1]."""
    return to_float(rgb_BFHWC.permute(0, 4, 1, 2, 3))


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1], clamped -> uint8 on the CPU."""
    return ((pixels.detach().to("cpu", torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
