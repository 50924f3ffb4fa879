"""How weights are updated: AdamW (or Muon for the layers' matrices), a learning-rate schedule, a moving average of the weights.

The schedule is a pure function of the step (warm-up) and of the share of the budget that is used (decay), so that a run
limited by time decays as fully as one limited by steps (the paper: AdamW 0.9/0.95, weight decay 0.1, constant).
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad

from lumos.config import Range, Scale, Share, SomeShare
from lumos.ranks import divide
from lumos.training.parallel import local

MOMENTUM = 0.95  # of Muon
EDGES = ("encoder.conv_in.", "encoder.out.", "decoder.conv_in.", "decoder.conv_out.")  # a tokenizer's first and last layers
Beta = Annotated[float, Range(0, 1 - 1e-9)]


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule."""

    lr: Annotated[float, Range(0, 1e3)] = 1e-3  # highest learning rate
    betas: tuple[Beta, Beta] = (0.9, 0.95)  # of AdamW
    weight_decay: Annotated[float, Range(0, 1e3)] = 0.1  # of matrices and kernels
    clip: Scale = 1.0  # largest norm of the gradient
    warmup_steps: Annotated[int, Range(0, 10**9)] = 100  # over which the learning rate rises
    schedule: Literal["constant", "cosine", "linear"] = "cosine"  # of its decay
    decay_share: SomeShare = 1.0  # share of the run, at its end, over which it falls
    final: Share = 0.0  # of the learning rate that is left at the end
    ema: Beta = 0.999  # decay of the weights' moving average per step; 0 = none
    # factor on lr for the layers' matrices, updated by Muon; 0 = AdamW for everything
    muon: Annotated[float, Range(0, 1e3)] = 0.0


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW over the module's trained parameters, or Muon for the matrices inside: weight decay on matrices and kernels, none on
    norms and biases."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in named if config.muon and is_inner_matrix(name, parameter)]
    inside = {id(p) for p in matrices}
    groups = [
        {"params": [p for _, p in named if p.ndim > 1 and id(p) not in inside], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
        {"params": matrices, "weight_decay": config.weight_decay, "muon": True, "factor": config.muon},
    ]
    fused = all(parameter.device.type == "cuda" for _, parameter in named)
    kind = Muon if matrices else torch.optim.AdamW
    return kind([group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=fused)


def is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon is for it: matrices and kernels between a network's first layer and its last, those of one row left out."""
    inner = name.startswith(("layers.", "second.ffn", "encoder.", "decoder.")) and not name.startswith(EDGES)
    return inner and parameter.ndim > 1 and min(parameter.shape[0], parameter.shape[1:].numel()) > 1


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for the groups marked `muon`, AdamW for the rest: the step is the momentum's nearest orthogonal
    matrix, scaled to the size of AdamW's steps (Liu et al. 2025), so that both take about the same learning rates. Several ranks
    share the matrices out."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        everything = self.param_groups
        self.param_groups = [group for group in everything if not group.get("muon")]
        super().step()
        self.param_groups = everything
        for group in everything:
            if group.get("muon"):
                self._orthogonal_step(group)

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        momenta = [local(self.state[p].setdefault("momentum", torch.zeros_like(p))) for p in parameters]
        skip = getattr(self, "found_inf", None)  # set where the device alone knows whether to take this step
        gradients, rate = [local(p.grad) for p in parameters], group["lr"]
        if skip is not None:  # momenta that meet themselves stay as they are
            for gradient, momentum in zip(gradients, momenta, strict=True):
                gradient.copy_(torch.where(skip.bool(), momentum, gradient))
            rate = rate * (1 - skip)
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        steps = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov
        # Matrices of one shape (one per layer) are made orthogonal in one batch: few and large calls. A convolution's kernel is a
        # matrix, too: its output channels by all that each of them sums up.
        for shape in dict.fromkeys(p.shape for p in parameters):
            which = [i for i, p in enumerate(parameters) if p.shape == shape]
            chosen = [local(parameters[i]) for i in which]
            steps_BRC = torch.stack([steps[i].flatten(1) for i in which])
            ways = _orthogonal_by_all(steps_BRC, parameters[which[0]]) * (0.2 * max(shape[0], shape[1:].numel()) ** 0.5)
            torch._foreach_mul_(chosen, 1 - rate * group["weight_decay"])
            torch._foreach_sub_(chosen, list(ways.to(chosen[0].dtype).mul_(rate).view(-1, *chosen[0].shape)))


def _orthogonal_by_all(steps_BRC: Tensor, parameter: Tensor) -> Tensor:
    """`orthogonal`, every rank for some of the B matrices of this shape. A sharded parameter's rank has some rows of each."""
    if not isinstance(parameter, DTensor):
        matrices = divide(len(steps_BRC))
        return matrices.whole(orthogonal(matrices.mine(steps_BRC, 0)), 0)
    group = parameter.device_mesh.get_group("shard")
    ranks, (B, rows, C) = dist.get_world_size(group), steps_BRC.shape
    # the same number of matrices and of rows for each rank; rows of zeros change nothing
    most, some = -(-parameter.shape[0] // ranks), -(-B // ranks)
    parts_BRC = pad(steps_BRC.to(_kind(steps_BRC)), (0, 0, 0, most - rows, 0, some * ranks - B))
    came = torch.empty_like(parts_BRC)
    dist.all_to_all_single(came, parts_BRC, group=group)
    ways_BRC = orthogonal(came.view(ranks, some, most, C).transpose(0, 1).flatten(1, 2))
    dist.all_to_all_single(came, ways_BRC.unflatten(1, (ranks, most)).transpose(0, 1).contiguous().view_as(came), group=group)
    return came[:B, :rows].contiguous()


def orthogonal(matrix_BRC: Tensor) -> Tensor:
    """About the nearest matrices with all singular values 1 (they end within 0.7 to 1.2), by five Newton-Schulz steps."""
    x = matrix_BRC.to(_kind(matrix_BRC))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def _kind(matrix: Tensor) -> torch.dtype:
    return torch.bfloat16 if matrix.is_cuda else torch.float32


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
        group["lr"] = rate * group.get("factor", 1.0)


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
