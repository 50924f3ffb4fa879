"""A gradient that is no number, or far larger than usual, changes nothing: the step is skipped and counted.

All of it happens on the device, so that nothing waits for it; the log reads the counts, and ends a run that only skips.
"""

from typing import Annotated

import torch
from torch import Tensor

from lumos.config import Range

Spike = Annotated[float, Range(1.0001, 1e9)]
USUAL = 20  # steps before "usual" means anything
MEMORY = 0.95  # decay per step of the usual norm


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
    """`optimizer.step()` where `bad` is False; otherwise weights stay as they are (Muon's go on with their momentum)."""
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined] # fused AdamW then does nothing, without a wait
        for group in optimizer.param_groups:
            if group.get("muon"):
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.masked_fill_(bad, 0.0)
        optimizer.step()
    elif not bool(bad):
        optimizer.step()
