"""The reverse process: schedule, confidence, determinism, and that it samples what the model says."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from lumos.diffusion.sampler import MASKED, SamplerConfig, codes_left, guide, place_noise, sample_frame


@pytest.mark.parametrize(("codes", "steps"), [(256, 12), (256, 1), (256, 256), (10, 7), (3528, 50)])
def test_the_schedule_falls_to_nothing(codes: int, steps: int) -> None:
    left = codes_left(codes, steps)
    assert len(left) == steps and left[-1] == 0
    assert all(a > b for a, b in zip([codes, *left], left, strict=False))


def test_the_schedule_follows_the_cosine() -> None:
    assert codes_left(256, 12)[:3] == [math.floor(256 * math.cos(math.pi / 2 * k / 12)) for k in (1, 2, 3)]
    assert codes_left(3, 3) == [2, 1, 0]


@pytest.mark.parametrize("steps", [0, 11])
def test_more_steps_than_codes_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="steps"):
        codes_left(10, steps)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"guidance": math.nan},
        {"guidance": -1},
        {"temperature": 0},
        {"history": 1.0},
        {"history": -0.1},
        {"noise": math.inf},
    ],
)
def test_bad_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplerConfig(**wrong)  # type: ignore[arg-type]


def test_released_noise_is_never_reset_and_the_papers_is() -> None:
    paper, released = SamplerConfig(steps=4), SamplerConfig(steps=4, sampler="released")
    assert place_noise(paper, 0) == place_noise(paper, 3) == [0.75, 0.5, 0.25, 0.0]
    assert place_noise(released, 0) == [1.0, 0.75, 0.375, 0.09375]
    assert place_noise(released, 1) == [0.0] * 4


def shape(B: int = 2) -> Tensor:
    return torch.zeros(B, 3, 4, dtype=torch.int64)


def test_a_certain_model_is_followed_and_known_codes_stay() -> None:
    truth = torch.arange(24).view(2, 12) % 7
    seen: list[Tensor] = []

    def predict(codes: Tensor) -> Tensor:
        seen.append(codes.flatten(1).clone())
        return torch.nn.functional.one_hot(truth, 7).float() * 100

    codes = sample_frame(predict, shape(), SamplerConfig(steps=5), torch.Generator().manual_seed(0))
    assert torch.equal(codes.flatten(1), truth)
    assert (seen[0] == MASKED).all() and [int((s == MASKED).sum()) for s in seen[1:]] == [2 * n for n in codes_left(12, 5)[:-1]]
    for before, after in itertools.pairwise(seen):
        known = before != MASKED
        assert torch.equal(after[known], before[known])


def test_the_most_confident_places_are_kept_first() -> None:
    sharpness = torch.linspace(0.1, 8, 12)
    logits = torch.nn.functional.one_hot(torch.zeros(1, 12, dtype=torch.int64), 5).float() * sharpness[None, :, None]
    seen: list[Tensor] = []

    def predict(codes: Tensor) -> Tensor:
        seen.append(codes.flatten())
        return logits

    sample_frame(predict, shape(1), SamplerConfig(steps=3, noise=0.0), torch.Generator().manual_seed(0))
    kept = (seen[1] != MASKED).nonzero()[:, 0].tolist()
    assert kept == list(range(12 - len(kept), 12))


def test_one_step_samples_from_the_softmax() -> None:
    probability = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probability.log().expand(500, 12, 4)
    codes = sample_frame(lambda _: logits, shape(500), SamplerConfig(steps=1), torch.Generator().manual_seed(0))
    found = torch.bincount(codes.flatten(), minlength=4) / codes.numel()
    torch.testing.assert_close(found, probability, rtol=0, atol=0.02)


def test_same_seed_same_codes() -> None:
    logits = torch.randn(2, 12, 9, generator=torch.Generator().manual_seed(5))
    runs = [sample_frame(lambda _: logits, shape(), SamplerConfig(steps=4), torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_guidance_one_is_the_conditional_branch_and_zero_the_other() -> None:
    one, other = torch.randn(2, 3, 4)
    torch.testing.assert_close(guide(one, other, 1.0), one)
    torch.testing.assert_close(guide(one, other, 0.0), other)
