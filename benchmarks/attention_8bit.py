"""Attention in 8 bits as a Triton kernel (forward only), to try: query_BNLK, key_BGSK, value_BGSK -> out_BNLK in bf16.

Queries have a scale per row, keys one per block, values one per channel; keys are taken less their mean, which softmax does not
see. Probabilities are at most 256, as is the largest term of their sum, so that FP8 keeps the small ones. Every row sees the keys
from its own start on. `quantise_query` and `quantise_cache` make what `attend` reads, in any of three forms (`FORMS`).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor

FP8 = torch.float8_e4m3fn
FORMS = {"fp8": (FP8, FP8), "fp8, values bf16": (FP8, torch.bfloat16), "int8, values bf16": (torch.int8, torch.bfloat16)}
MOST = {FP8: 448.0, torch.int8: 127.0}


class Tiling(NamedTuple):
    """Queries and keys of a block, warps, blocks that are loaded ahead, and whether through TMA descriptors."""

    queries: int
    keys: int
    warps: int
    stages: int
    tma: bool


class Query(NamedTuple):
    values_BNLK: Tensor  # L is filled up to whole blocks
    scale_BNL: Tensor  # softmax's own factors included


class KeysAndValues(NamedTuple):
    key_BGSK: Tensor  # S is filled up to whole blocks
    key_scale_BGJ: Tensor  # J blocks
    value_BGKS: Tensor  # transposed: 8-bit matrix units read it along the keys
    value_scale_BGK: Tensor


def quantise_query(query_BNLK: Tensor, kind: torch.dtype, block: int) -> Query:
    query = pad(query_BNLK.float(), (0, 0, 0, -query_BNLK.shape[2] % block))
    scale = query.abs().amax(-1, keepdim=True).clamp(min=1e-6) / MOST[kind]
    softmax = query.shape[-1] ** -0.5 * 1.4426950408889634  # the kernel's exponents are of two
    return Query(_rounded(query / scale, kind), (scale * softmax)[..., 0].contiguous())


def quantise_cache(key_BGSK: Tensor, value_BGSK: Tensor, kinds: tuple[torch.dtype, torch.dtype], block: int) -> KeysAndValues:
    key, value = key_BGSK.float(), value_BGSK.float()
    fill = (0, 0, 0, -key.shape[2] % block)
    key = pad(key - key.mean(2, keepdim=True), fill).unflatten(2, (-1, block))
    key_scale = key.abs().amax((3, 4), keepdim=True).clamp(min=1e-6) / MOST[kinds[0]]
    value_scale = torch.ones_like(value[:, :, :1])
    if kinds[1] == FP8:
        value_scale = value.abs().amax(2, keepdim=True).clamp(min=1e-6) / MOST[FP8]
    value_BGKS = _rounded(pad(value / value_scale, fill).transpose(2, 3), kinds[1])
    return KeysAndValues(
        _rounded(key / key_scale, kinds[0]).flatten(2, 3), key_scale[..., 0, 0], value_BGKS, value_scale[:, :, 0]
    )


def _rounded(values: Tensor, kind: torch.dtype) -> Tensor:
    return (values.round() if kind == torch.int8 else values).to(kind).contiguous()


def attend(query: Query, cache: KeysAndValues, starts_B: Tensor, L: int, stop: int, tiling: Tiling) -> Tensor:
    """Of each row the keys of slots starts_B[row] ... stop - 1, which must lie in two blocks or more."""
    B, N, filled, K = query.values_BNLK.shape
    G, S = cache.key_BGSK.shape[1:3]
    assert filled % tiling.queries == 0 and S % tiling.keys == 0 and stop > 2 * tiling.keys
    out_BLNK = torch.empty(B, L, N, K, device=starts_B.device, dtype=torch.bfloat16)
    parts = (query.values_BNLK.view(-1, K), cache.key_BGSK.view(-1, K), cache.value_BGKS.view(-1, S))
    if tiling.tma:
        blocks = ([tiling.queries, K], [tiling.keys, K], [K, tiling.keys])
        parts = tuple(TensorDescriptor.from_tensor(part, block) for part, block in zip(parts, blocks, strict=True))
    _attend[(filled // tiling.queries, N, B)](
        *parts,
        *(query.scale_BNL, cache.key_scale_BGJ, cache.value_scale_BGK, out_BLNK, starts_B),
        *(L, S, stop, N, N // G, K, tiling.queries, tiling.keys, tiling.tma),
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    return out_BLNK.transpose(1, 2)


@triton.jit
def _attend(
    Q, K, V, q_scale, k_scale, v_scale, out, starts, L, S, stop,
    HEADS: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One block of M queries of a head, which shares its keys with SHARED - 1 others."""
    row, head = tl.program_id(2), tl.program_id(1)
    place = (row * HEADS + head) * tl.num_programs(0) * M + tl.program_id(0) * M
    group = (row * HEADS + head) // SHARED
    q = _tile(Q, place, 0, D, M, D, TMA)
    scale = tl.load(q_scale + place + tl.arange(0, M))
    start = tl.load(starts + row)
    first, last = start // N, (stop - 1) // N
    most, total = tl.full([M], -float("inf"), tl.float32), tl.zeros([M], tl.float32)
    sums = tl.zeros([M, D], tl.float32)
    for block in tl.range(first, last + 1, last - first, num_stages=1):  # both ends, where some keys are not to be seen
        slot = block * N + tl.arange(0, N)
        seen = (slot >= start) & (slot < stop)
        sums, most, total = _add(sums, most, total, q, scale, K, V, k_scale, group, S, block, seen, True, D, N, TMA)
    seen = tl.arange(0, N) >= 0
    for block in tl.range(first + 1, last):
        sums, most, total = _add(sums, most, total, q, scale, K, V, k_scale, group, S, block, seen, False, D, N, TMA)
    channel = tl.arange(0, D)
    sums = sums / total[:, None] * tl.load(v_scale + group * D + channel)[None]
    query = tl.program_id(0) * M + tl.arange(0, M)
    to = out + ((row * L + query) * HEADS + head)[:, None] * D + channel[None]
    tl.store(to, sums.to(tl.bfloat16), mask=(query < L)[:, None])


@triton.jit
def _add(
    sums, most, total, q, scale, K, V, k_scale, group, S, block, seen, MASKED: tl.constexpr,
    D: tl.constexpr, N: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The running softmax with one more block of keys: sums[M, D] of values, the largest score, and the sum of probabilities."""
    k = _tile(K, group * S + block * N, 0, D, N, D, TMA)
    score = tl.dot(q, k.T).to(tl.float32)
    if MASKED:
        score = tl.where(seen[None], score, -float("inf"))
    factor = scale * tl.load(k_scale + group * (S // N) + block)
    new = tl.maximum(most, tl.max(score, 1) * factor)
    probability = tl.exp2(score * factor[:, None] - (new - 8.0)[:, None])
    less = tl.exp2(most - new)
    total = total * less + tl.sum(probability, 1)
    v = _tile(V, group * D, block * N, S, D, N, TMA)
    # added apart: 8-bit matrix units add with 14 bits, which a block can bear and a whole cache cannot
    sums = sums * less[:, None] + tl.dot(probability.to(v.dtype), v.T)
    return sums, new, total


@triton.jit
def _tile(X, row, column, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TMA: tl.constexpr):
    """X[row : row + ROWS, column : column + COLUMNS] of a matrix with rows of `width`."""
    if TMA:
        return X.load([row, column])
    else:
        rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
        return tl.load(X + rows.to(tl.int64)[:, None] * width + columns[None])
