"""The block rule without a mask (paper section 3.1): a frame's queries see a prefix of the keys, and all of it.

Over rows of the form [padding, prompt and header, frames], attention is one small causal call for the prompt and one dense
call per frame, so that the card's fastest kernels serve it (cuDNN, flash). Neighbouring rows with as much padding share their
calls. The slow twin is `attention.dense`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lumos.model.attention import Attend, fastest, runs_of, sdpa


def prefix(padding_B: Sequence[int], text: int, frame: int, frames: int) -> Attend:
    """Attention for rows of `text` places (the first `padding_B[row]` of them unused) and then `frames` frames of `frame` ids.

    Outputs of unused places are zero.
    """
    ends = [text + t * frame for t in range(frames + 1)]
    runs = runs_of(padding_B)

    def attend(query_BNLK: Tensor, key_BGSK: Tensor, value_BGSK: Tensor) -> Tensor:
        spans = [(rows, padding, end) for padding, rows in runs for end in ends]
        keys, values = _Spans.apply(key_BGSK, spans), _Spans.apply(value_BGSK, spans)
        found = []
        for number, (padding, rows) in enumerate(runs):
            unused, prompt, *shown = query_BNLK[rows].split([padding, text - padding, *[frame] * frames], dim=2)
            first = number * len(ends)
            outs = [torch.zeros_like(unused), sdpa(prompt, keys[first], values[first], causal=True)]
            with fastest(query_BNLK.device):
                outs += [sdpa(q, keys[first + t], values[first + t]) for t, q in enumerate(shown, 1)]
            # put together in the order [id, head], in which the next matrix product reads them
            found.append(torch.cat([out.transpose(1, 2) for out in outs], dim=1))
        return torch.cat(found).transpose(1, 2)

    return attend


class _Spans(torch.autograd.Function):
    """x[rows, :, start:end] for every span, as views; their gradients are added up in float32."""

    @staticmethod
    def forward(ctx: Any, x_BGSK: Tensor, spans: list[tuple[slice, int, int]]) -> tuple[Tensor, ...]:
        ctx.shape, ctx.spans = x_BGSK.shape, spans
        return tuple(x_BGSK[rows, :, start:end] for rows, start, end in spans)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = torch.zeros(ctx.shape, dtype=torch.float32, device=grads[0].device)
        for (rows, start, end), grad in zip(ctx.spans, grads, strict=True):
            total[rows, :, start:end] += grad
        return total.to(grads[0].dtype), None
