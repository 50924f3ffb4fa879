"""How weights are updated: AdamW with decay on matrices only, a learning-rate schedule, a moving average of the weights.

The schedule is a pure function of the step (warm-up) and of the share of the budget that is used (decay), so that a run
limited by time decays as fully as one limited by steps (the paper: AdamW 0.9/0.95, weight decay 0.1, constant).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimConfig:
    """`clip` bounds the gradient's norm; `ema` is the moving average's memory a step.

    The learning rate rises over `warmup_steps`, stays, and over the last `decay_share` of the run falls to `final` times that.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    decay_share: float = 1.0
    final: float = 0.0
    ema: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share must lie in (0, 1], got {self.decay_share}; use schedule='constant' for no decay")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}; use 0.999, or 0 for no averaging")


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the module's trained parameters: weight decay on matrices and kernels, none on norms and biases."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type == "cuda" for parameter in trained)
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=fused)


def learning_rate(step: int, progress: float, config: OptimConfig) -> float:
    """The rate of `step` (from 0) when `progress` (0 to 1) of the budget is used before it."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    past = min(1.0, max(0.0, 1 - (1 - progress) / config.decay_share))  # 0 until the decay starts, 1 at the end
    if config.schedule == "cosine":
        past = (1 - math.cos(math.pi * past)) / 2
    falling = 1.0 if config.schedule == "constant" else 1 - (1 - config.final) * past
    return config.lr * warm * falling


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


class Ema:
    """A moving average of a module's trained parameters, in float32. Its memory is shorter at first, so it starts unbiased."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: p.detach().float().clone() for name, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the weights after `step` (from 0) was taken."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [p.detach().float() for p in module.parameters() if p.requires_grad]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's trained parameters with the average."""
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(self.average[name])

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Inside the with-block the module has the averaged weights; afterwards its own again, bit for bit."""
        own = [p.detach().clone() for p in module.parameters() if p.requires_grad]
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([p for p in module.parameters() if p.requires_grad], own)

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Take over a saved average: the same names and shapes."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])
