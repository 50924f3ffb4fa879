"""Data parallelism: every process (rank) computes its share of a batch, and gradients are averaged before each update.

Started by torchrun there are as many ranks as it says, on CUDA through NCCL, otherwise through gloo; without torchrun there
is one and nothing communicates. The average is one explicit all-reduce after backward, so torch.compile sees a plain module.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process's place: `rank` of `world`, computing on `device`."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0


def start() -> Ranks:
    """Join the other processes when torchrun started this one (it sets RANK, WORLD_SIZE and LOCAL_RANK)."""
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        return Ranks(0, 1, torch.device("cuda" if cuda else "cpu"))
    local = int(os.environ["LOCAL_RANK"])
    if cuda and local >= torch.cuda.device_count():
        raise ValueError(
            f"every process needs a GPU of its own, got rank {local} on {torch.cuda.device_count()}; lower --nproc-per-node"
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def finish(ranks: Ranks) -> None:
    """Leave the group; the counterpart of `start`."""
    if ranks.world > 1:
        dist.destroy_process_group()


def average_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Replace every gradient by its mean over the ranks, as one transfer. Call between backward and clipping."""
    if ranks.world == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:  # unused in this rank's batch, perhaps not in another's
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= ranks.world
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)])


def average(value: Tensor, ranks: Ranks) -> Tensor:
    """The mean of a tensor over the ranks."""
    if ranks.world > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
        value /= ranks.world
    return value


def agree(values: tuple[float, ...], ranks: Ranks) -> tuple[float, ...]:
    """The largest of each number over the ranks, so that all of them decide alike. Waits for the device."""
    if ranks.world == 1:
        return values
    largest = torch.tensor(values, dtype=torch.float64, device=ranks.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return tuple(largest.tolist())
