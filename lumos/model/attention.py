"""The attention rule block[key] <= block[query], as a dense mask and as a FlexAttention block mask (paper section 3.1).

Each function returns an `Attend`: (query_BNLK, key_BGSK, value_BGSK) -> out_BNLK. The dense form is the slow twin and the CPU's
path; while sampling, everything cached is earlier, so that no mask is left: `attend_to_all`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def dense(block_BL: Tensor, key_block_BS: Tensor) -> Attend:
    """scaled_dot_product_attention with the L x S mask written out."""
    mask_B1LS = (key_block_BS[:, None, :] <= block_BL[:, :, None])[:, None]
    return lambda query, key, value: _sdpa(query, key, value, mask_B1LS)


def flex(block_BL: Tensor, key_block_BS: Tensor | None = None) -> Attend:
    """FlexAttention: the mask is evaluated block by block and never written out. CUDA only."""
    create_block_mask, flex_attention = _compiled_flex()
    keys_BS = block_BL if key_block_BS is None else key_block_BS
    (B, L), S = block_BL.shape, keys_BS.shape[1]

    def rule(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return keys_BS[b, key] <= block_BL[b, query]

    block_mask = create_block_mask(rule, B, None, L, S, device=str(block_BL.device))
    return lambda query, key, value: flex_attention(
        query, key, value, block_mask=block_mask, enable_gqa=query.shape[1] != key.shape[1]
    )


def attend_to_all(starts: Sequence[int] = ()) -> Attend:
    """Every query sees every key of its row from slot `starts[row]` on (prompt padding lies before it; none given = 0).

    No mask: rows that start alike and lie side by side make one call, so that the card's fastest kernels serve it.
    """
    runs = [(start, len(list(group))) for start, group in groupby(starts)]

    def attend(query_BNLK: Tensor, key_BGSK: Tensor, value_BGSK: Tensor) -> Tensor:
        if len(runs) < 2:
            first = runs[0][0] if runs else 0
            return _sdpa(query_BNLK, key_BGSK[:, :, first:], value_BGSK[:, :, first:], None)
        counts = [count for _, count in runs]
        parts = zip(runs, *(x.split(counts) for x in (query_BNLK, key_BGSK, value_BGSK)), strict=True)
        outs = [_sdpa(query, key[:, :, first:], value[:, :, first:], None) for (first, _), query, key, value in parts]
        # put together in the order [id, head], in which the next matrix product reads them
        return torch.cat([out.transpose(1, 2) for out in outs]).transpose(1, 2)

    return attend


def attend_to_earlier(starts: Sequence[int]) -> Attend:
    """Every query sees the keys up to its own (the last ones are the queries'), of its row from slot `starts[row]` on."""

    def attend(query_BNLK: Tensor, key_BGSK: Tensor, value_BGSK: Tensor) -> Tensor:
        L, S = query_BNLK.shape[2], key_BGSK.shape[2]
        slot = torch.arange(S, device=key_BGSK.device)
        begun_BS = slot >= torch.tensor(starts, device=slot.device)[:, None]
        return _sdpa(query_BNLK, key_BGSK, value_BGSK, (begun_BS[:, None] & (slot <= slot[S - L :, None]))[:, None])

    return attend


@contextmanager
def fastest(device: torch.device, first: SDPBackend = SDPBackend.CUDNN_ATTENTION) -> Iterator[None]:
    """Inside, attention on a CUDA card takes the first kernel of `first`, cuDNN, flash, ... that can do it."""
    if device.type != "cuda":
        yield
        return
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel([first, *(kernel for kernel in order if kernel != first)], set_priority=True):
        yield


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=query.shape[1] != key.shape[1])


@cache
def _compiled_flex() -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(create_block_mask, dynamic=False), torch.compile(flex_attention, dynamic=False)
