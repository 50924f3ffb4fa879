"""Guessing in parts equals guessing at once; precision and card must fit."""

import pytest
import torch

import lumos.diffusion.engine as engine
from lumos.diffusion.engine import Compute, guess, prepare
from lumos.diffusion.sampler import choose, guide
from lumos.model.transformer import ModelConfig, Transformer


@pytest.mark.parametrize("strength", [1.0, 3.0])
@pytest.mark.parametrize("logits", [1, 200, 10**6])
def test_logits_in_parts_give_the_same_codes(strength: float, logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 4 if strength != 1 else 2
    hidden, head = torch.randn(rows, 13, 8, generator=generator), torch.randn(30, 8, generator=generator)
    uniform = torch.rand(2, 13, generator=generator)
    both = hidden @ head.T
    wanted = choose(guide(*both.chunk(2), strength) if rows == 4 else both, 0.8, uniform, entropy=True)
    monkeypatch.setattr(engine, "LOGITS", logits)
    found = guess(hidden, head, strength, 0.8, uniform, entropy=True)
    assert torch.equal(found.code_BM, wanted.code_BM)
    for one, other in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert guess(hidden, head, strength, 0.8, uniform).entropy_BM is None


def test_fp8_needs_a_card_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(ModelConfig(100, 1, 32, 1, 1, 32, 32))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(ValueError, match="fp8 needs an Ada, Hopper or newer card, got A100; use int8"):
        prepare(model, Compute(precision="fp8"), torch.device("cuda"))
    assert prepare(model, Compute(precision="int8", compile=True), torch.device("cpu")) is False
