"""Codes are drawn as the softmax says, in parts as at once, with and without guidance."""

import pytest
import torch

import lumos.diffusion.draw as draw
from lumos.diffusion.draw import draw_codes, draw_one, guide


@pytest.mark.parametrize("strength", [1.0, 3.0])
@pytest.mark.parametrize("logits", [1, 200, 10**6])
def test_logits_in_parts_give_the_same_codes(strength: float, logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 6 if strength != 1 else 3
    hidden, head = torch.randn(rows, 13, 8, generator=generator), torch.randn(30, 8, generator=generator)
    uniform = torch.rand(3, 13, generator=generator)
    both = hidden @ head.T
    wanted = draw_one(guide(*both.chunk(2), strength) if rows == 6 else both, 0.8, uniform)
    monkeypatch.setattr(draw, "MOST_LOGITS", logits)
    made: list[int] = []
    monkeypatch.setattr(draw, "multiply", lambda x, matrix: made.append(x.shape[1]) or x @ matrix.T)
    found = draw_codes(hidden, head, strength, 0.8, uniform)
    assert made[0] == min(13, max(1, logits // (rows * 30)))
    assert torch.equal(found.code_BM, wanted.code_BM)
    for one, other in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("codes", [4, 7, 512, 1021])
def test_chosen_codes_follow_the_softmax(codes: int) -> None:
    """Equally spaced uniform numbers must give every code its share to within one, whatever parts the codes are summed in."""
    count = 20_000
    logits = torch.randn(1, 1, codes, generator=torch.Generator().manual_seed(0)) * 2
    uniform = ((torch.arange(count) + 0.5) / count)[None]
    guess = draw_one(logits.expand(1, count, codes), 0.7, uniform)
    probability = (logits[0, 0] / 0.7).softmax(dim=-1)
    found = torch.bincount(guess.code_BM[0], minlength=codes) / count
    torch.testing.assert_close(found, probability, rtol=0, atol=1.5 / count)
    torch.testing.assert_close(guess.log_probability_BM[0], probability.log()[guess.code_BM[0]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_codes_without_weight_are_never_chosen(uniform: float) -> None:
    logits = torch.full((1, 3, 600), -1e4)
    logits[0, 0, 299], logits[0, 1, 0], logits[0, 2, 599] = 0.0, 0.0, 0.0
    guess = draw_one(logits, 1.0, torch.full((1, 3), uniform))
    assert guess.code_BM.tolist() == [[299, 0, 599]]


def test_guidance_one_is_the_conditional_branch_and_zero_the_other() -> None:
    one, other = torch.randn(2, 3, 4)
    torch.testing.assert_close(guide(one, other, 1.0), one)
    torch.testing.assert_close(guide(one, other, 0.0), other)
