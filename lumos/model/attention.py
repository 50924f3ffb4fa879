"""The attention rule block[key] <= block[query], as a dense mask and as a FlexAttention block mask (paper section 3.1).

Each function returns an `Attend`: (query_BNLK, key_BGSK, value_BGSK) -> out_BNLK. The dense form is the slow twin and the CPU's
path; while sampling, everything cached is earlier, so that no mask is left: `attend_to_all`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# Heads times queries of a call that fills a Hopper card (132 multiprocessors, 128 queries each) once and begins a second round.
SIDE_BY_SIDE = range(17_000, 30_000)
FAR = 2**40  # past every block, PADDING_BLOCK too
# FlexAttention's tiles on Hopper cards, measured for heads of 64 and 128: smaller than its own, and up to 1.6 times as fast
HOPPER = {f"bwd_BLOCK_{name}": 64 for name in ("M1", "N1", "M2", "N2")} | {"bwd_num_warps": 4, "bwd_num_stages": 2}
HOPPER |= {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64}
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
AttendOf = Callable[[int], Attend]  # by number of the layer
_second_stream = cache(torch.cuda.Stream)  # of a device


def dense(block_BL: Tensor, key_block_BS: Tensor) -> Attend:
    """scaled_dot_product_attention with the L x S mask written out."""
    mask_B1LS = (key_block_BS[:, None, :] <= block_BL[:, :, None])[:, None]
    return lambda query, key, value: sdpa(query, key, value, mask_B1LS)


def flex(block_BL: Tensor, key_block_BS: Tensor | None = None) -> Attend:
    """FlexAttention: the mask is evaluated block by block and never written out. CUDA only."""
    block_mask = tiles(block_BL, block_BL if key_block_BS is None else key_block_BS)
    options = HOPPER if torch.cuda.get_device_capability(block_BL.device) == (9, 0) else None
    return partial(_compiled_flex(), block_mask=block_mask, enable_gqa=True, kernel_options=options)


def tiles(block_BL: Tensor, key_block_BS: Tensor, side: int = 128) -> "BlockMask":
    """Which tiles of side x side (query, key) see nothing, something or everything: by the least and largest block of each.

    As `create_block_mask` would find by evaluating every pair, which takes minutes to compile for 17 tiles and more.
    """
    from torch.nn.attention.flex_attention import BlockMask

    (_, L), S = block_BL.shape, key_block_BS.shape[1]

    def of_tiles(value_BN: Tensor, outside: int) -> Tensor:
        return pad(value_BN, (0, -value_BN.shape[1] % side), value=outside).unflatten(1, (-1, side))

    # a tile that is not full of queries and keys never counts as one that sees everything
    least_BQ, most_BQ = of_tiles(block_BL, -FAR).amin(2), of_tiles(block_BL, -FAR).amax(2)
    first_BK, last_BK = of_tiles(key_block_BS, FAR).amin(2), of_tiles(key_block_BS, FAR).amax(2)
    some_BQK = first_BK[:, None] <= most_BQ[:, :, None]
    all_BQK = last_BK[:, None] <= least_BQ[:, :, None]

    def listed(chosen_BQK: Tensor) -> tuple[Tensor, Tensor]:
        """How many key tiles of each query tile, and their numbers first among all."""
        order = chosen_BQK.int().argsort(dim=-1, descending=True, stable=True)
        return chosen_BQK.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]

    def rule(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key_block_BS[b, key] <= block_BL[b, query]

    return BlockMask.from_kv_blocks(*listed(some_BQK & ~all_BQK), *listed(all_BQK), side, rule, seq_lengths=(L, S))


def attend_to_all(starts: Sequence[int]) -> Attend:
    """Every query sees every key of its row from slot `starts[row]` on (prompt padding lies before it).

    No mask, so that the card's fastest kernels serve it.
    """
    spans = [(rows, slice(first, None)) for first, rows in runs_of(starts)]
    return by_rows([(rows, lambda q, k, v, seen=seen: sdpa(q, k[:, :, seen], v[:, :, seen])) for rows, seen in spans])  # type: ignore[misc]


def attend_to_earlier(starts: Sequence[int]) -> Attend:
    """Every query sees the keys up to its own (the last ones are the queries'), of its row from slot `starts[row]` on.

    Queries before that slot (padding, when a prompt is read) get zeros.
    """

    def earlier(first: int, query_BNLK: Tensor, key_BGSK: Tensor, value_BGSK: Tensor) -> Tensor:
        before = key_BGSK.shape[2] - query_BNLK.shape[2]
        unused = max(0, first - before)
        query, key, value = query_BNLK[:, :, unused:], key_BGSK[:, :, first:], value_BGSK[:, :, first:]
        if before <= first:
            return pad(sdpa(query, key, value, causal=True), (0, 0, unused, 0))
        mask_LS = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril(before - first)
        return sdpa(query, key, value, mask_LS)

    return by_rows([(rows, partial(earlier, first)) for first, rows in runs_of(starts)])


def by_rows(calls: Sequence[tuple[slice, Attend]]) -> Attend:
    """Every row to its own call. No call holds padding, of which another length would round a row in another way. Calls that
    leave much of a card idle at their end run side by side, on two streams."""
    if len(calls) == 1:
        return calls[0][1]

    def attend(query_BNLK: Tensor, key_BGSK: Tensor, value_BGSK: Tensor) -> Tensor:
        out_BNLK = torch.empty_like(query_BNLK)  # in memory, too: [id, head], as the next matrix product reads it
        device, here, other = query_BNLK.device, None, None
        if query_BNLK.is_cuda and query_BNLK.shape[1] * query_BNLK.shape[2] in SIDE_BY_SIDE:
            here, other = torch.cuda.current_stream(device), _second_stream(device)
            other.wait_stream(here)
        for number, (rows, one) in enumerate(calls):
            with torch.cuda.stream(other if number % 2 else here):  # of None: does nothing
                out_BNLK[rows] = one(query_BNLK[rows], key_BGSK[rows], value_BGSK[rows])
        if here and other:
            here.wait_stream(other)
        return out_BNLK

    return attend


@contextmanager
def fastest(device: torch.device, first: SDPBackend = SDPBackend.CUDNN_ATTENTION) -> Iterator[None]:
    """Inside, attention on a CUDA card takes the first kernel that can do it, of cuDNN, flash, ... from `first` on."""
    if device.type != "cuda":
        yield
        return
    # Those before `first` are out: PyTorch puts cuDNN first, whatever was asked for, when a process attends for the first time.
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order[order.index(first) :], set_priority=True):
        yield


def runs_of(starts: Sequence[int]) -> list[tuple[int, slice]]:
    """Neighbouring rows that start alike: (start, rows)."""
    groups = [list(rows) for _, rows in groupby(range(len(starts)), key=starts.__getitem__)]
    return [(starts[rows[0]], slice(rows[0], rows[-1] + 1)) for rows in groups]


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
