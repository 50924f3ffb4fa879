"""The block rule without a mask (paper section 3.1): a frame's queries see a prefix of the keys, and all of it.

Over rows of the form [padding, prompt and header, frames], attention is one small causal call for the prompt and one dense
call a frame and row, so that the card's fastest kernels serve it (cuDNN, flash). Its slow twin is `attention.dense`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lumos.model.attention import Attend, fastest


def prefix(padding_B: Sequence[int], text: int, frame: int, frames: int) -> Attend:
    """Attention for rows of `text` places (the first `padding_B[row]` of them unused) and then `frames` frames of `frame` ids.

    Outputs of unused places are zero.
    """
    ends = [text + t * frame for t in range(frames + 1)]

    def attend(query_BNLK: Tensor, key_BGSK: Tensor, value_BGSK: Tensor) -> Tensor:
        spans = [(row, start, end) for row, start in enumerate(padding_B) for end in ends]
        keys, values = _Spans.apply(key_BGSK, spans), _Spans.apply(value_BGSK, spans)
        rows = []
        for row, query_1NLK in enumerate(query_BNLK.split(1)):
            padding = padding_B[row]
            unused, prompt, *shown = query_1NLK.split([padding, text - padding, *[frame] * frames], dim=2)
            first = row * len(ends)
            outs = [torch.zeros_like(unused), _attend(prompt, keys[first], values[first], causal=True)]
            with fastest(query_1NLK.device):
                outs += [_attend(q, keys[first + t], values[first + t]) for t, q in enumerate(shown, 1)]
            # put together in the order [id, head], in which the next matrix product reads them
            rows.append(torch.cat([out.transpose(1, 2) for out in outs], dim=1))
        return torch.cat(rows).transpose(1, 2)

    return attend


class _Spans(torch.autograd.Function):
    """x[row, :, start:end] for every span, as views; their gradients are added up in float32."""

    @staticmethod
    def forward(ctx: Any, x_BGSK: Tensor, spans: list[tuple[int, int, int]]) -> tuple[Tensor, ...]:
        ctx.shape, ctx.spans = x_BGSK.shape, spans
        return tuple(x_BGSK[row : row + 1, :, start:end] for row, start, end in spans)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = torch.zeros(ctx.shape, dtype=torch.float32, device=grads[0].device)
        for (row, start, end), grad in zip(ctx.spans, grads, strict=True):
            total[row : row + 1, :, start:end] += grad
        return total.to(grads[0].dtype), None


def _attend(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=query.shape[1] != key.shape[1])
