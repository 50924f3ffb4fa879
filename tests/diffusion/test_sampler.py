"""The reverse process: schedule, confidence, orders, determinism, and what earlier versions wrote."""

import itertools
import math
import typing
from collections.abc import Callable
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from lumos.config import read_config
from lumos.diffusion.draw import Guess
from lumos.diffusion.frame_model import VideoSpec
from lumos.diffusion.sampler import (
    MASKED,
    SamplerConfig,
    SamplerKind,
    codes_left,
    from_earlier_version,
    guidance_strengths,
    halton_order,
    place_noise,
    sample_video,
)
from lumos.sequence.layout import Grid


@pytest.mark.parametrize(("codes", "steps"), [(256, 12), (256, 1), (256, 256), (10, 7), (3528, 50)])
def test_the_schedule_falls_to_nothing_by_the_cosine(codes: int, steps: int) -> None:
    left = codes_left(codes, steps)
    assert len(left) == steps and left[-1] == 0
    assert all(a > b for a, b in zip([codes, *left], left, strict=False))
    assert codes_left(256, 12)[:3] == [math.floor(256 * math.cos(math.pi / 2 * k / 12)) for k in (1, 2, 3)]
    assert codes_left(3, 3) == [2, 1, 0]


@pytest.mark.parametrize("steps", [0, 11])
def test_more_steps_than_codes_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="steps"):
        codes_left(10, steps)


def test_bad_settings() -> None:
    for name, values in {
        "steps": (0,),
        "guidance": (math.nan, -1, 1e308),
        "temperature": (0, 1e-320),
        "history": (1.0, -0.1),
        "noise": (math.inf,),
        "first": (0.0, math.nan),
        "guidance_until": (math.nan,),
        "window": (0,),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                read_config(SamplerConfig, {**asdict(SamplerConfig()), name: value}, "settings")


def test_released_noise_is_never_reset_and_the_papers_is() -> None:
    paper, released = SamplerConfig(steps=4), SamplerConfig(steps=4, sampler="released")
    assert place_noise(paper, 0) == place_noise(paper, 3) == [0.75, 0.5, 0.25, 0.0]
    assert place_noise(released, 0) == [1.0, 0.75, 0.375, 0.09375]
    assert place_noise(released, 1) == [0.0] * 4


Look = Callable[[Tensor, Tensor, Tensor], Guess]


def gumbel(steps: int, B: int = 2, N: int = 12, seed: int = 0) -> Tensor:
    uniform = torch.rand(steps, B, N, generator=torch.Generator().manual_seed(seed))
    return -(-uniform.log()).log()


def sample(look: Look, config: SamplerConfig, B: int = 2, seed: int = 0) -> Tensor:
    """One frame of 3 x 4 codes by a model that answers `look(codes_BN, places_BM, uniform_BM)`."""
    noise = gumbel(config.steps, B, seed=seed)
    model = SimpleNamespace(
        spec=VideoSpec(Grid(3, 4), 1, 1, 8, window=1, latest=0),
        grid=Grid(3, 4),
        device=torch.device("cpu"),
        kernel=SDPBackend.MATH,
        start_frame=lambda number, steps, beside: ((-(-noise).exp()).exp(), noise),
        predict=lambda codes, places, strength, temperature, uniform: look(codes, places, uniform.gather(1, places)),
    )
    (codes_BN,) = sample_video(model, config, torch.zeros(B, 0, 12, dtype=torch.int64))  # type: ignore[arg-type]
    return codes_BN


@pytest.mark.parametrize("sampler", typing.get_args(SamplerKind))
def test_every_sampler_follows_a_certain_model_and_keeps_the_schedule(sampler: SamplerKind) -> None:
    seen, truth_BN = list[Tensor](), torch.arange(24).view(2, 12) % 7

    def look(codes_BN: Tensor, places_BM: Tensor, uniform_BM: Tensor) -> Guess:
        assert (codes_BN.gather(1, places_BM) == MASKED).all(), "only masked places are asked for"
        seen.append(codes_BN.clone())
        return Guess(truth_BN.gather(1, places_BM), torch.zeros(places_BM.shape))

    assert torch.equal(sample(look, SamplerConfig(steps=5, sampler=sampler)), truth_BN)
    assert [int((s == MASKED).sum()) for s in seen] == [2 * n for n in [12, *codes_left(12, 5)[:-1]]]
    for before, after in itertools.pairwise(seen):
        there = before != MASKED
        assert torch.equal(after[there], before[there])


@pytest.mark.parametrize("noise", [0.0, 1.0, 5.0])
def test_a_step_keeps_the_highest_log_probability_plus_weighted_gumbel_noise(noise: float) -> None:
    """Algorithm 2's choice, step by step, against its formula; noise of another weight chooses otherwise."""
    shown: list[Tensor] = []
    sure = torch.linspace(-3, -0.1, 12)[None]

    def look(codes_BN: Tensor, places_BM: Tensor, uniform_BM: Tensor) -> Guess:
        shown.append(codes_BN[0].clone())
        return Guess(torch.zeros_like(places_BM), sure.gather(1, places_BM))

    sample(look, SamplerConfig(steps=3, noise=noise), B=1)
    noise_S1N, masked, left = gumbel(3, B=1), torch.ones(12, dtype=torch.bool), codes_left(12, 3)
    chosen = set()
    for step in range(2):
        for weight in (noise, 0.0):
            score = (sure[0] + weight * (1 - (step + 1) / 3) * noise_S1N[step, 0]).masked_fill(~masked, torch.inf)
            chosen.add((step, tuple(sorted(score.topk(left[step], largest=False).indices.tolist()))))
            if weight == noise:
                now = torch.zeros(12, dtype=torch.bool).scatter(0, score.topk(left[step], largest=False).indices, True)
        masked = now
        assert torch.equal(shown[step + 1] == MASKED, masked)
    assert (len(chosen) > 2) == (noise > 0)


def test_fixed_orders_ask_only_for_what_they_reveal() -> None:
    asked: list[Tensor] = []

    def look(codes_BN: Tensor, places_BM: Tensor, uniform_BM: Tensor) -> Guess:
        asked.append(places_BM)
        return Guess(torch.zeros_like(places_BM), torch.zeros(places_BM.shape))

    sample(look, SamplerConfig(steps=4, sampler="random"))
    together = torch.cat(asked, dim=1)
    assert torch.equal(together.sort(dim=1).values, torch.arange(12).expand(2, 12)) and not torch.equal(together[0], together[1])
    asked.clear()
    sample(look, SamplerConfig(steps=4, sampler="halton"))
    assert tuple(torch.cat(asked, dim=1)[0].tolist()) == halton_order(3, 4)


def test_halton_order_is_every_place_once_and_spread_out() -> None:
    order = halton_order(6, 10)
    assert sorted(order) == list(range(60))
    quarters = [(place // 10 >= 3, place % 10 >= 5) for place in order[:8]]
    assert all(quarters.count(quarter) == 2 for quarter in itertools.product((False, True), repeat=2))


def test_guidance_may_end_early() -> None:
    config = SamplerConfig(steps=4, guidance=5.0)
    assert guidance_strengths(config) == [5.0] * 4
    assert guidance_strengths(replace(config, guidance_until=0.5)) == [5, 5, 1, 1]


def test_settings_of_the_first_version_are_read() -> None:
    usual: dict[str, Any] = {
        "guidance_schedule": "constant",
        "guidance_from": 0.0,
        "bound": 1.0,
        "remask": 0.1,
        "pack": False,
        "keep_first": False,
    }
    kept = {"guidance_until": 0.5, "only_visible": True, "window": 3}
    config = {"model": {}, "sampler": {"steps": 8, "shortcuts": {**usual, **kept}}}
    assert from_earlier_version(config) == {"model": {}, "sampler": {"steps": 8, **kept}}
    for sampler in (kept, {**kept, "remask": 0.1}):  # the latter as `lumos train` wrote it until that sampler went
        assert from_earlier_version({"sampler": sampler}) == {"sampler": kept}
    config["sampler"]["shortcuts"]["pack"] = True
    assert from_earlier_version(config)["sampler"]["pack"] is True  # refused by name where it is read
