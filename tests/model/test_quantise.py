"""Matrices in 8 bits: as close as their formats promise, and nothing but the matrices is touched."""

import pytest
import torch

from lumos.model.attention import attend_to_all
from lumos.model.quantise import MATRICES, Precision, multiply, quantise, to_fp8, to_int8
from lumos.model.transformer import ModelConfig, Transformer

CONFIG = ModelConfig(100, layers=3, width=64, heads=4, kv_heads=2, head_width=32, ffn=96)


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Rows of very different size, as activations have."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 3, rows)[:, None]


def test_every_value_is_within_half_a_step_of_its_format() -> None:
    weight = matrix(40, 64, 0)
    largest = weight.abs().amax(dim=1, keepdim=True)
    eight = to_int8(weight)
    assert ((eight.values_DE * eight.scale_D1 - weight).abs() <= largest / 127 / 2 * 1.001).all()
    floating = to_fp8(weight)
    error = (floating.values_DE.float() * floating.scale_D1 - weight).abs()
    assert (error <= torch.maximum(weight.abs() / 16, largest / 448 * 2**-10) * 1.001).all()  # 3 bits of fraction
    assert eight.values_DE.abs().max() == 127 and to_fp8(weight).values_DE.float().abs().max() == 448
    assert to_fp8(torch.zeros(2, 8)).values_DE.float().eq(0).all() and to_int8(torch.zeros(2, 8)).values_DE.eq(0).all()


@pytest.mark.parametrize(("make", "most"), [(to_fp8, 0.06), (to_int8, 0.012)])
def test_products_are_close(make, most: float) -> None:  # type: ignore[no-untyped-def]
    x, weight = matrix(30, 64, 1).view(5, 6, 64), matrix(40, 64, 2)
    exact = multiply(x, weight)
    found = multiply(x, make(weight))
    assert found.shape == (5, 6, 40) and found.dtype == x.dtype
    assert 0 < float((found - exact).norm() / exact.norm()) < most


@pytest.mark.parametrize(("precision", "most"), [("fp8", 0.2), ("int8", 0.03)])
def test_a_quantised_model_is_close_and_holds_its_matrices_once(precision: Precision, most: float) -> None:
    model = Transformer(CONFIG)
    model.initialise(torch.Generator().manual_seed(0))
    ids, position = torch.arange(20)[None], torch.arange(20)[None, :, None].expand(1, 20, 3)
    with torch.no_grad():
        exact = model(ids, position, attend_to_all([0]))
        whole = sum(parameter.numel() for parameter in model.parameters())
        logits = model.logits(exact, 10, 50)
        big = sum(model.layers[0].get_parameter(name).numel() for name in MATRICES) * CONFIG.layers
        big += model.head.numel() if precision == "fp8" else 0
        quantise(model, "plain")
        assert sum(parameter.numel() for parameter in model.parameters()) == whole
        quantise(model, precision)
        assert sum(parameter.numel() for parameter in model.parameters()) == whole - big
        found = model(ids, position, attend_to_all([0]))
        head_alone = model.logits(exact, 10, 50)
    assert 0 < float((found - exact).norm() / exact.norm()) < most
    assert head_alone.shape == logits.shape and float((head_alone - logits).norm() / logits.norm()) < 0.06
