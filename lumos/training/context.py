"""Context parallelism: several ranks share a sample that is too long for one, each holding every n-th id of the sequence.

Ids are dealt out like cards, so every rank has its share of every frame and as much work as the others. Each rank attends with
its own queries to the keys and values of all; the block rule holds as it is. All else in the model is done id by id.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lumos.model.attention import Attend
from lumos.training.parallel import Ranks


@dataclass(frozen=True)
class Context:
    """`rank` of the `size` ranks that share a sample. One alone has no group and shares nothing."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def padded(self, length: int) -> int:
        """A sequence's length when it is filled up so that every rank gets as many ids."""
        return length + -length % self.size

    def fill(self, values_BLX: Tensor, filler: int) -> Tensor:
        """Ids (or positions, blocks) with `filler` up to that length."""
        short = self.padded(values_BLX.shape[1]) - values_BLX.shape[1]
        if not short:
            return values_BLX
        return torch.cat([values_BLX, values_BLX.new_full((len(values_BLX), short, *values_BLX.shape[2:]), filler)], dim=1)

    def share(self, values_BLX: Tensor, filler: int) -> Tensor:
        """This rank's part of a whole sequence, [B, L, ...] -> [B, padded(L) / size, ...]."""
        return self.fill(values_BLX, filler)[:, self.rank :: self.size]

    def attend(self, own: Attend) -> Attend:
        """`own` attends with this rank's queries to whole keys and values; the result gathers those first."""
        if self.size == 1:
            return own
        return lambda query, key, value: own(query, _Gather.apply(key, self), _Gather.apply(value, self))


def make_context(ranks: Ranks, size: int) -> Context:
    """The group of `size` neighbouring ranks that this one belongs to. Every rank must call it."""
    if size == 1:
        return Context()
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, ranks.world, size)]
    return Context(ranks.rank % size, size, groups[ranks.rank // size])


class _Gather(torch.autograd.Function):
    """x_BGLK of every rank of the context, put back in the order of the sequence; its gradient is summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, x_BGLK: Tensor, context: Context) -> Tensor:
        ctx.context = context
        parts = [torch.empty_like(x_BGLK, memory_format=torch.contiguous_format) for _ in range(context.size)]
        dist.all_gather(parts, x_BGLK.contiguous(), group=context.group)
        return torch.stack(parts, dim=3).flatten(2, 3)

    @staticmethod
    def backward(ctx: Any, grad_BGLK: Tensor) -> tuple[Tensor, None]:
        context = ctx.context
        parts = grad_BGLK.float().unflatten(2, (-1, context.size)).unbind(3)
        own = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
        dist.reduce_scatter(own, [part.contiguous() for part in parts], group=context.group)
        return own.to(grad_BGLK.dtype), None
