"""All that a step of training changes, and so all that a checkpoint holds: weights, optimiser, moving average, spike guard.

A gradient that is no number, or far larger than usual, changes nothing: the step is skipped and counted. All of it happens on the
device, so that nothing waits for it; the log reads the counts, and ends a run that only skips.
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from lumos.config import Range
from lumos.training.optim import Ema, OptimConfig, build_optimizer, learning_rate, set_learning_rate
from lumos.training.parallel import clip_gradients

Spike = Annotated[float, Range(1.0001, 1e9)]
USUAL = 20  # steps before "usual" means anything
MEMORY = 0.95  # decay per step of the usual norm


class Learner:
    """A module in training."""

    def __init__(self, module: nn.Module, config: OptimConfig, spike: float, device: torch.device) -> None:
        self.module, self.config, self.rate = module, config, 0.0
        self.optimizer, self.guard = build_optimizer(module, config), SpikeGuard(spike, device)
        self.ema = Ema(module, config.ema) if config.ema else None

    def update(self, step: int, progress: float) -> Tensor:
        """Use up the gradients: clip them, step unless they are out of the usual, move the average. Returns their norm before."""
        self.rate = learning_rate(step, progress, self.config)
        set_learning_rate(self.optimizer, self.rate)
        norm = clip_gradients(self.module.parameters(), self.config.clip)
        step_unless(self.guard.check(norm), self.optimizer)
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.module, step)
        return norm

    def report(self, patience: int, step: int) -> dict[str, float]:
        """The rate of the last step, and how many were skipped. ValueError when the last `patience` all were."""
        return {"skipped": self.guard.report(patience, step), "learning_rate": self.rate}

    def tensors(self) -> dict[str, Tensor]:
        """By name, as they lie on this rank."""
        found = {f"guard/{name}": value for name, value in self.guard.state.items()}
        for name, parameter in self.module.named_parameters():
            found[f"model/{name}"] = parameter.detach()
            found |= {f"optimizer/{name}/{key}": value for key, value in self.optimizer.state.get(parameter, {}).items()}
        return found | {f"ema/{name}": value for name, value in (self.ema.average if self.ema else {}).items()}

    def best(self) -> dict[str, Tensor]:
        """The averaged weights where there are any, as they lie on this rank."""
        return {name: p.detach() for name, p in self.module.named_parameters()} | (self.ema.average if self.ema else {})


class SpikeGuard:
    """Which gradient norms are out of the usual: not finite, or more than `spike` times the recent ones."""

    def __init__(self, spike: float, device: torch.device) -> None:
        self.spike = spike
        # usual: the norm's moving average; steps: that were taken; skipped: in all; in_a_row: skipped since the last one taken
        self.state = {name: torch.zeros((), device=device) for name in ("usual", "steps", "skipped", "in_a_row")}

    def check(self, norm: Tensor) -> Tensor:
        """Whether to skip the step with this norm: bool, on the device."""
        usual, steps, skipped, in_a_row = self.state.values()
        bad = ~norm.isfinite() | ((norm > self.spike * usual) & (steps >= USUAL))
        average = torch.lerp(norm, usual, torch.clamp(steps / (steps + 1), max=MEMORY))
        self.state = {
            "usual": torch.where(bad, usual, average),
            "steps": steps + (~bad).float(),
            "skipped": skipped + bad.float(),
            "in_a_row": torch.where(bad, in_a_row + 1, 0.0),
        }
        return bad

    def report(self, patience: int, step: int) -> float:
        """Steps skipped so far (waits for the device). ValueError when the last `patience` or more all were."""
        skipped, in_a_row = torch.stack((self.state["skipped"], self.state["in_a_row"])).tolist()
        if in_a_row >= patience:
            raise ValueError(
                f"gradients must be numbers of a usual size, got {in_a_row:.0f} steps in a row that were not, up to step {step}; "
                "resume from the last checkpoint with a lower learning rate (optim.lr) or a longer warm-up"
            )
        return float(skipped)


def step_unless(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()` where `bad` is False; otherwise everything stays as it is."""
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined] # fused AdamW then does nothing, without a wait
        optimizer.step()
    elif not bool(bad):
        optimizer.step()
