"""The attention rule block[key] <= block[query], as a dense mask and as a FlexAttention block mask (paper section 3.1).

Each function returns an `Attend`: (query_BNLK, key_BGSK, value_BGSK) -> out_BNLK. The dense form is the slow twin and the CPU's
path; while sampling, everything cached is earlier, so the only mask left is prompt padding.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_by_block(block_BL: Tensor, key_block_BS: Tensor | None = None) -> Attend:
    """Attention by the block rule over whole sequences: FlexAttention on CUDA, a dense mask elsewhere."""
    if block_BL.is_cuda and key_block_BS is None:
        return flex(block_BL)
    return dense(block_BL, block_BL if key_block_BS is None else key_block_BS)


def dense(block_BL: Tensor, key_block_BS: Tensor) -> Attend:
    """scaled_dot_product_attention with the L x S mask written out."""
    mask_B1LS = (key_block_BS[:, None, :] <= block_BL[:, :, None])[:, None]
    return lambda query, key, value: _sdpa(query, key, value, mask_B1LS)


def flex(block_BL: Tensor) -> Attend:
    """FlexAttention: the mask is evaluated block by block and never written out. CUDA only."""
    create_block_mask, flex_attention = _compiled_flex()
    B, L = block_BL.shape

    def rule(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return block_BL[b, key] <= block_BL[b, query]

    block_mask = create_block_mask(rule, B, None, L, L, device=str(block_BL.device))
    return lambda query, key, value: flex_attention(
        query, key, value, block_mask=block_mask, enable_gqa=query.shape[1] != key.shape[1]
    )


def attend_to_all(visible_BS: Tensor | None = None) -> Attend:
    """Every query sees every key, but for prompt padding (visible False) when there is any."""
    mask = None if visible_BS is None else visible_BS[:, None, None, :]
    return lambda query, key, value: _sdpa(query, key, value, mask)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=query.shape[1] != key.shape[1])


@cache
def _compiled_flex() -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(create_block_mask, dynamic=False), torch.compile(flex_attention, dynamic=False)
