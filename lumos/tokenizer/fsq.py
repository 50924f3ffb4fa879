"""Finite scalar quantisation (arXiv 2309.15505): a few real channels go in, codes and the values that a decoder sees come out.

Every channel is squashed to a fixed range and rounded to one of a few levels; a code is the number that those digits
spell. There is no codebook to learn or to collapse. The formulas are those of the Cosmos tokenizer.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

MOST_CODES = 2**31


class FSQ(nn.Module):
    """Rounds D channels to `levels` (one number a channel). No parameters, float32 throughout."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        if not levels or min(levels) < 2 or math.prod(levels) > MOST_CODES:
            raise ValueError(f"FSQ levels must be numbers of at least 2 and make at most {MOST_CODES} codes, got {levels!r:.80}")
        self.levels = levels
        self.codebook_size = math.prod(levels)
        levels_D = torch.tensor(levels, device="cpu")  # arithmetic on the meta device loads all of torch's compiler
        half_D = (levels_D - 1) * (1 + 1e-3) / 2
        offset_D = torch.where(levels_D % 2 == 0, 0.5, 0.0)  # an even number of levels has none at 0
        constant = partial(nn.Buffer, persistent=False)
        self.levels_D, self.middle_D = constant(levels_D), constant(levels_D // 2)
        self.basis_D = constant(torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]))
        self.half_D, self.offset_D, self.shift_D = constant(half_D), constant(offset_D), constant(torch.atanh(offset_D / half_D))

    def forward(self, channels_D: Tensor) -> tuple[Tensor, Tensor]:
        """Any shape [..., D] -> (values [..., D] in [-1, 1] with a straight-through gradient, codes [...] int64)."""
        bounded_D = torch.tanh(channels_D.float() + self.shift_D) * self.half_D - self.offset_D
        digits_D = torch.round(bounded_D)
        codes = ((digits_D.detach().long() + self.middle_D) * self.basis_D).sum(-1)
        straight_D = bounded_D + (digits_D - bounded_D).detach()  # the gradient passes as if nothing had been rounded
        return straight_D / self.middle_D, codes

    def values(self, codes: Tensor) -> Tensor:
        """Codes of any shape [...] -> the decoder's values [..., D]. Raises ValueError for a code out of range."""
        if codes.dtype != torch.int64:
            raise ValueError(f"codes must be int64, got {codes.dtype}; convert them with .long()")
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size):
            found = f"{int(codes.min())} ... {int(codes.max())}"
            raise ValueError(f"codes must lie in 0 ... {self.codebook_size - 1} for levels {self.levels}, got {found}")
        digits_D = codes[..., None] // self.basis_D % self.levels_D - self.middle_D
        return digits_D.float() / self.middle_D
