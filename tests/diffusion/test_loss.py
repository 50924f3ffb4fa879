"""The chunked loss equals the plain one, in value and gradient."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import lumos.diffusion.loss as loss
from lumos.diffusion.loss import weighted_code_loss


@pytest.mark.parametrize(("logits", "chunk"), [(1, 1), (80, 7), (220, 20), (10**6, 20)])
def test_value_and_gradients_equal_plain_cross_entropy(logits: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, slope = list[int](), loss._losses_and_slope
    monkeypatch.setattr(loss, "LOGITS", logits)
    monkeypatch.setattr(loss, "_losses_and_slope", lambda *rest: made.append(len(rest[0])) or slope(*rest))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 11, (20,), generator=generator)
    weight = torch.rand(20, generator=generator, dtype=torch.float64)
    weight[3] = 0
    plain_M = cross_entropy(hidden @ head.T, target, reduction="none")
    plain = (plain_M * weight).sum()
    expected = torch.autograd.grad(plain, (hidden, head))
    ours, ours_M = weighted_code_loss(hidden, head, target, weight)
    assert made[0] == chunk
    found = torch.autograd.grad(3 * ours, (hidden, head))
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours_M, plain_M.detach().float(), rtol=1e-5, atol=1e-5, check_dtype=False)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one / 3, other, rtol=1e-5, atol=1e-6)
    assert not ours_M.requires_grad


def test_bfloat16_value_is_close_to_float32() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, head = torch.randn(64, 32, generator=generator), torch.randn(100, 32, generator=generator)
    target, weight = torch.randint(0, 100, (64,), generator=generator), torch.full((64,), 1 / 64)
    exact, _ = weighted_code_loss(hidden, head, target, weight)
    rough, _ = weighted_code_loss(hidden.bfloat16(), head.bfloat16(), target, weight)
    torch.testing.assert_close(rough, exact, rtol=2e-2, atol=2e-2)
