"""Big matrices in 8 bits: FP8 for speed on Hopper cards (the head too), int8 weights for small memory. Embedding and norms stay.

`quantise` replaces the matrices of a loaded model once; `multiply` is `linear` for any of the three forms. FP8 scales rows of
the weights and of what they are multiplied with (each by its largest value); int8 scales rows of the weights only.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Precision = Literal["plain", "fp8", "int8"]
MATRICES = ("query_key_value", "attention_out", "ffn_gate_up", "ffn_down")
FP8_MOST, INT8_MOST = 448.0, 127.0


class Fp8(NamedTuple):
    """values_DE in float8_e4m3fn, scale_D1 float32: weight = values * scale."""

    values_DE: Tensor
    scale_D1: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values_DE.shape


class Int8(NamedTuple):
    """values_DE in int8, scale_D1 float32: weight = values * scale."""

    values_DE: Tensor
    scale_D1: Tensor


def quantise(model: nn.Module, precision: Precision) -> None:
    """Replace every layer's matrices, in place and one at a time; the model can then only compute, not train or be saved."""
    if precision == "plain":
        return
    make = to_fp8 if precision == "fp8" else to_int8
    # int8 weights are made large again for each product: not worth it for a head that is read in every step
    names = (*MATRICES, "head") if precision == "fp8" else MATRICES
    for module in model.modules():
        for name in names:
            weight = module._parameters.get(name)
            if weight is not None:
                delattr(module, name)
                setattr(module, name, make(weight.detach()))


def multiply(x_BLE: Tensor, weight: Tensor | Fp8 | Int8) -> Tensor:
    """x @ weight.T in x's type."""
    if isinstance(weight, Tensor):
        return linear(x_BLE, weight)
    if isinstance(weight, Int8):
        return linear(x_BLE, (weight.values_DE * weight.scale_D1).to(x_BLE.dtype))
    x = to_fp8(x_BLE.flatten(0, -2))
    if x_BLE.is_cuda:
        out = torch._scaled_mm(
            x.values_DE, weight.values_DE.T, x.scale_D1, weight.scale_D1.T, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    else:  # the slow twin: the same numbers, multiplied in float32
        out = linear(x.values_DE.float() * x.scale_D1, weight.values_DE.float() * weight.scale_D1)
    return out.to(x_BLE.dtype).view(*x_BLE.shape[:-1], -1)


def some_rows(weight: Tensor | Fp8, first: int, count: int) -> Tensor | Fp8:
    """Rows first ... first + count - 1 of a matrix: a view."""
    if isinstance(weight, Tensor):
        return weight[first : first + count]
    return Fp8(*(part[first : first + count] for part in weight))


def to_fp8(rows_DE: Tensor) -> Fp8:
    """Every row scaled so that its largest value is the largest that float8_e4m3fn has."""
    scale_D1 = (rows_DE.float().abs().amax(dim=-1, keepdim=True) / FP8_MOST).clamp(min=1e-12)
    values_DE = rows_DE.float() * scale_D1.reciprocal()  # a division for every value would take longer than reading it
    return Fp8(values_DE.clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn), scale_D1)


def to_int8(rows_DE: Tensor) -> Int8:
    """Every row scaled so that its largest value is 127, and rounded."""
    scale_D1 = (rows_DE.float().abs().amax(dim=-1, keepdim=True) / INT8_MOST).clamp(min=1e-12)
    return Int8((rows_DE.float() / scale_D1).round().to(torch.int8), scale_D1)
