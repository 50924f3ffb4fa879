"""All that a step of training changes, and so all that a checkpoint holds: weights, optimiser, moving average, spike guard."""

import torch
from torch import Tensor, nn

from lumos.training.optim import Ema, OptimConfig, build_optimizer, learning_rate, set_learning_rate
from lumos.training.parallel import clip_gradients
from lumos.training.spike_guard import SpikeGuard, step_unless


class Learner:
    """A module in training."""

    def __init__(self, module: nn.Module, config: OptimConfig, spike: float, device: torch.device) -> None:
        self.module, self.config = module, config
        self.optimizer, self.guard = build_optimizer(module, config), SpikeGuard(spike, device)
        self.ema = Ema(module, config.ema) if config.ema else None

    def update(self, step: int, progress: float) -> Tensor:
        """Use up the gradients: clip them, step unless they are out of the usual, move the average. Returns their norm before."""
        set_learning_rate(self.optimizer, learning_rate(step, progress, self.config))
        norm = clip_gradients(self.module.parameters(), self.config.clip)
        step_unless(self.guard.check(norm), self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.module, step)
        return norm

    def report(self, patience: int, step: int) -> dict[str, float]:
        """The rate of the last step, and how many were skipped. ValueError when the last `patience` all were."""
        rate = self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0].get("factor", 1.0)
        return {"skipped": self.guard.report(patience, step), "learning_rate": rate}

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
