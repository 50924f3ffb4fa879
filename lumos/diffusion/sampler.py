"""The reverse process: a frame's codes from all-MASK, revealed over a few steps (paper section 3.3, sampling).

`sample_frame` is pure: everything about the model is in `predict`, which maps partly masked codes to logits, guidance included.
No step waits for the device: how many codes stay masked is known beforehand.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MASKED = -1  # stands for MASK in a frame's codes


@dataclass(frozen=True)
class SamplerConfig:
    """steps per frame; guidance strength g of uncond + g (cond - uncond); temperature of the code's softmax; `noise`, the
    Gumbel weight T that choosing places starts with; history: share of a finished frame that later frames do not see.

    `released` keeps the published code's deviations from the paper (each is marked where it acts).
    """

    steps: int = 12
    guidance: float = 3.0
    temperature: float = 1.0
    noise: float = 1.0
    history: float = 0.7
    sampler: Literal["paper", "released"] = "paper"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}; use 8 to 50")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance must be a number of 0 or more, got {self.guidance}; 1 is none, 3 is usual")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be above 0, got {self.temperature}; 1 is usual")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"noise must be 0 or more, got {self.noise}; 1 is usual")
        if not 0 <= self.history < 1:
            raise ValueError(f"history must be from 0 up to, not including, 1, got {self.history}; 0.7 is usual")


def codes_left(codes: int, steps: int) -> list[int]:
    """How many codes stay masked after each step: floor(N cos(pi/2 (step + 1) / steps)), falling by at least 1, 0 at the end."""
    if not 1 <= steps <= codes:
        raise ValueError(f"steps must be 1 to the {codes} codes of a frame, got {steps}")
    left, remaining = [], codes
    for step in range(steps - 1):
        remaining = max(1, min(remaining - 1, math.floor(codes * math.cos(math.pi / 2 * (step + 1) / steps))))
        left.append(remaining)
    return [*left, 0]


def place_noise(config: SamplerConfig, frame: int) -> list[float]:
    """Gumbel weight T of every step of generated frame number `frame`: falls linearly to 0 over each frame's steps."""
    if config.sampler == "released":
        # Released code: T is multiplied by (1 - (step + 1) / steps) after every step and never reset, so it reaches 0 in the
        # first generated frame and stays there.
        weight, weights = config.noise if frame == 0 else 0.0, []
        for step in range(config.steps):
            weights.append(weight)
            weight *= 1 - (step + 1) / config.steps
        return weights
    return [config.noise * (1 - (step + 1) / config.steps) for step in range(config.steps)]


def sample_frame(
    predict: Callable[[Tensor], Tensor],
    codes_BHW: Tensor,
    config: SamplerConfig,
    generator: torch.Generator,
    frame: int = 0,
) -> Tensor:
    """Codes of one latent frame, [B, H, W]. `predict`: codes_BHW with MASKED (-1) places -> logits [B, H*W, codes].

    Each step samples every masked code, then keeps the most confident ones: log-probability + T * Gumbel noise.
    """
    codes_BN = torch.full_like(codes_BHW, MASKED).flatten(1)
    schedule = zip(codes_left(codes_BN.shape[1], config.steps), place_noise(config, frame), strict=True)
    for left, noise in schedule:
        log_probability = (predict(codes_BN.view_as(codes_BHW)).float() / config.temperature).log_softmax(dim=-1)
        drawn_BN = draw(log_probability, generator)
        masked = codes_BN == MASKED
        codes_BN = torch.where(masked, drawn_BN, codes_BN)
        if left:
            confidence = log_probability.gather(-1, drawn_BN[..., None])[..., 0]
            confidence = confidence + noise * gumbel(confidence, generator)
            least = torch.where(masked, confidence, torch.inf).topk(left, largest=False).indices
            codes_BN = codes_BN.scatter(1, least, MASKED)
    return codes_BN.view_as(codes_BHW)


def draw(log_probability_BNV: Tensor, generator: torch.Generator) -> Tensor:
    """One sample a place by the Gumbel trick (an argmax: no wait for the device)."""
    return (log_probability_BNV + gumbel(log_probability_BNV, generator)).argmax(dim=-1)


def gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise of `like`'s shape."""
    exponential = torch.empty_like(like).exponential_(generator=generator)
    return -exponential.clamp(min=1e-20).log()


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on logits."""
    return unconditional + guidance * (conditional - unconditional)
