"""The reverse process: schedule, confidence, determinism, and that it samples what the model says."""

import itertools
import math
import typing
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lumos.diffusion.sampler import (
    MASKED,
    Guess,
    SamplerConfig,
    SamplerKind,
    Shortcuts,
    choose,
    codes_left,
    guide,
    halton_order,
    place_noise,
    sample_frame,
    strengths,
)


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
        {"first": 0.0},
        {"first": math.nan},
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


def known(truth_BN: Tensor, seen: list[Tensor] | None = None, entropy: float = 0.0):
    """A model that is certain of `truth_BN`; `seen` collects what it was shown and asked."""

    def look(codes_BN: Tensor, places_BM: Tensor, step: int) -> Guess:
        if seen is not None:
            seen.append(codes_BN.clone())
        code_BM = truth_BN.gather(1, places_BM)
        return Guess(code_BM, torch.zeros(code_BM.shape), torch.full(code_BM.shape, entropy))

    return look


def gumbel(steps: int, B: int = 2, N: int = 12, seed: int = 0) -> Tensor:
    uniform = torch.rand(steps, B, N, generator=torch.Generator().manual_seed(seed))
    return -(-uniform.log()).log()


TRUTH = torch.arange(24).view(2, 12) % 7


@pytest.mark.parametrize("sampler", typing.get_args(SamplerKind))
def test_every_sampler_follows_a_certain_model(sampler: SamplerKind) -> None:
    config = SamplerConfig(steps=5, sampler=sampler, shortcuts=Shortcuts(bound=0.0))
    codes = sample_frame(known(TRUTH), gumbel(5), config, columns=4)
    assert torch.equal(codes, TRUTH)


@pytest.mark.parametrize("sampler", ["paper", "released", "random", "halton"])
def test_known_codes_stay_and_the_schedule_is_kept(sampler: SamplerKind) -> None:
    seen: list[Tensor] = []
    sample_frame(known(TRUTH, seen), gumbel(5), SamplerConfig(steps=5, sampler=sampler), columns=4)
    assert (seen[0] == MASKED).all() and [int((s == MASKED).sum()) for s in seen[1:]] == [2 * n for n in codes_left(12, 5)[:-1]]
    for before, after in itertools.pairwise(seen):
        there = before != MASKED
        assert torch.equal(after[there], before[there])


def test_the_most_confident_places_are_kept_first() -> None:
    seen: list[Tensor] = []
    sure = torch.linspace(-8, -0.1, 12)[None]

    def look(codes_BN: Tensor, places_BM: Tensor, step: int) -> Guess:
        seen.append(codes_BN[0].clone())
        return Guess(torch.zeros_like(places_BM), sure.gather(1, places_BM))

    sample_frame(look, gumbel(3, B=1), SamplerConfig(steps=3, noise=0.0))
    kept = (seen[1] != MASKED).nonzero()[:, 0].tolist()
    assert kept == list(range(12 - len(kept), 12))


def test_orders_ask_only_for_what_they_reveal() -> None:
    asked: list[Tensor] = []

    def look(codes_BN: Tensor, places_BM: Tensor, step: int) -> Guess:
        assert (codes_BN.gather(1, places_BM) == MASKED).all()
        asked.append(places_BM)
        return Guess(torch.zeros_like(places_BM), torch.zeros(places_BM.shape))

    sample_frame(look, gumbel(4), SamplerConfig(steps=4, sampler="random"))
    together = torch.cat(asked, dim=1)
    assert torch.equal(together.sort(dim=1).values, torch.arange(12).expand(2, 12)) and not torch.equal(together[0], together[1])


def test_halton_order_is_every_place_once_and_spread_out() -> None:
    order = halton_order(6, 10)
    assert sorted(order) == list(range(60))
    quarters = [(place // 10 >= 3, place % 10 >= 5) for place in order[:8]]
    assert all(quarters.count(quarter) == 2 for quarter in itertools.product((False, True), repeat=2))


@pytest.mark.parametrize(("entropy", "bound", "passes"), [(0.0, 0.0, 1), (0.5, 0.0, 8), (0.5, 1.0, 4), (0.5, 100.0, 1)])
def test_entropy_takes_as_few_steps_as_the_bound_allows(entropy: float, bound: float, passes: int) -> None:
    seen: list[Tensor] = []
    config = SamplerConfig(steps=8, sampler="entropy", shortcuts=Shortcuts(bound=bound))
    codes = sample_frame(known(TRUTH, seen, entropy), gumbel(8), config)
    assert torch.equal(codes, TRUTH) and len(seen) == passes


def test_entropy_goes_on_until_the_slowest_row_is_done() -> None:
    shown: list[Tensor] = []

    def look(codes_BN: Tensor, places_BM: Tensor, step: int) -> Guess:
        shown.append((codes_BN == MASKED).sum(dim=1))
        entropy = torch.tensor([[0.0], [9.0]]).expand(places_BM.shape)
        return Guess(TRUTH.gather(1, places_BM), torch.zeros(places_BM.shape), entropy)

    codes = sample_frame(look, gumbel(6), SamplerConfig(steps=6, sampler="entropy"))
    assert torch.equal(codes, TRUTH) and len(shown) == 6
    assert shown[1].tolist()[0] == 0 and all(count[1] > 0 for count in shown)


def test_remasking_hides_known_codes_again_and_shows_them_anew() -> None:
    seen: list[Tensor] = []
    counted = 0

    def look(codes_BN: Tensor, places_BM: Tensor, step: int) -> Guess:
        nonlocal counted
        seen.append(codes_BN.clone())
        counted += 1
        return Guess(torch.full_like(places_BM, counted), torch.zeros(places_BM.shape))

    config = SamplerConfig(steps=6, sampler="remask", shortcuts=Shortcuts(remask=0.5))
    codes = sample_frame(look, gumbel(6), config)
    hidden_again = [((before != MASKED) & (after == MASKED)).any() for before, after in itertools.pairwise(seen)]
    assert any(hidden_again) and (codes != MASKED).all()
    plain = sample_frame(known(TRUTH), gumbel(6), replace(config, shortcuts=Shortcuts(remask=0.0)))
    assert torch.equal(plain, TRUTH)


def test_same_noise_same_codes() -> None:
    logits = torch.randn(2, 12, 9, generator=torch.Generator().manual_seed(5))

    def run(seed: int) -> Tensor:
        uniform = torch.rand(4, 2, 12, generator=torch.Generator().manual_seed(seed))

        def look(codes_BN: Tensor, places_BM: Tensor, step: int) -> Guess:
            asked = logits.gather(1, places_BM[..., None].expand(-1, -1, 9))
            return choose(asked, 1.0, uniform[step].gather(1, places_BM))

        return sample_frame(look, gumbel(4, seed=seed), SamplerConfig(steps=4))

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


@pytest.mark.parametrize("codes", [4, 7, 512, 1021])
def test_chosen_codes_follow_the_softmax(codes: int) -> None:
    """Equally spaced uniform numbers must give every code its share to within one, whatever parts the codes are summed in."""
    count = 20_000
    logits = torch.randn(1, 1, codes, generator=torch.Generator().manual_seed(0)) * 2
    uniform = ((torch.arange(count) + 0.5) / count)[None]
    guess = choose(logits.expand(1, count, codes), 0.7, uniform, entropy=True)
    probability = (logits[0, 0] / 0.7).softmax(dim=-1)
    found = torch.bincount(guess.code_BM[0], minlength=codes) / count
    torch.testing.assert_close(found, probability, rtol=0, atol=1.5 / count)
    torch.testing.assert_close(guess.log_probability_BM[0], probability.log()[guess.code_BM[0]], rtol=1e-4, atol=1e-4)
    entropy = -(probability * probability.log()).sum()
    assert guess.entropy_BM is not None
    torch.testing.assert_close(guess.entropy_BM[0], entropy.expand(count), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_codes_without_weight_are_never_chosen(uniform: float) -> None:
    logits = torch.full((1, 3, 600), -1e4)
    logits[0, 0, 299], logits[0, 1, 0], logits[0, 2, 599] = 0.0, 0.0, 0.0
    guess = choose(logits, 1.0, torch.full((1, 3), uniform))
    assert guess.code_BM.tolist() == [[299, 0, 599]]


def test_guidance_schedules() -> None:
    def scheduled(steps: int = 4, **changes: Any) -> list[float]:
        return strengths(SamplerConfig(steps=steps, guidance=5.0, shortcuts=Shortcuts(**changes)))

    assert scheduled() == [5.0] * 4
    assert scheduled(guidance_schedule="rising") == pytest.approx([1, 1 + 4 / 3, 1 + 8 / 3, 5])
    assert scheduled(guidance_from=0.5) == [1, 1, 5, 5]
    assert scheduled(guidance_until=0.5) == [5, 5, 1, 1]
    assert scheduled(steps=1, guidance_schedule="rising") == [5.0]


@pytest.mark.parametrize(
    "wrong",
    [{"guidance_from": -0.1}, {"guidance_until": math.nan}, {"bound": -1}, {"remask": 1.5}, {"window": 0}],
)
def test_bad_shortcuts(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Shortcuts(**wrong)  # type: ignore[arg-type]


def test_guidance_one_is_the_conditional_branch_and_zero_the_other() -> None:
    one, other = torch.randn(2, 3, 4)
    torch.testing.assert_close(guide(one, other, 1.0), one)
    torch.testing.assert_close(guide(one, other, 0.0), other)
