"""The forward process: ratio law, tubes and the masks they are compared with."""

import itertools
import math

import pytest
import torch

from lumos.diffusion.masking import MaskKind, draw_mask, draw_ratio, history_mask, released_history_mask


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_ratio_is_the_clamped_cosine_of_a_uniform_number() -> None:
    ratio = draw_ratio((100_000,), generator())
    assert float(ratio.min()) == pytest.approx(0.7) and float(ratio.max()) <= 1
    # P(r = 0.7) = P(cos(pi u / 2) < 0.7) = 1 - 2 acos(0.7) / pi; P(r > 0.9) = 2 acos(0.9) / pi
    assert float((ratio == ratio.min()).float().mean()) == pytest.approx(1 - 2 * math.acos(0.7) / math.pi, abs=0.01)
    assert float((ratio > 0.9).float().mean()) == pytest.approx(2 * math.acos(0.9) / math.pi, abs=0.01)


def test_the_least_ratio_can_be_chosen() -> None:
    mask = draw_mask("nested", 500, 4, 5, 6, generator(), 0.2).flatten(2).float().mean(-1)
    assert float(mask.min()) == pytest.approx(0.2) and 0.1 < float((mask < 0.5).float().mean()) < 0.6


@pytest.mark.parametrize(
    ("kind", "places", "counts"),
    [("tube", True, True), ("random", False, True), ("diffusion-forcing", False, False), ("nested", False, False)],
)
def test_frames_share_places_or_counts_or_nothing(kind: MaskKind, places: bool, counts: bool) -> None:
    mask = draw_mask(kind, 32, 4, 5, 6, generator())
    hidden = mask.flatten(2).sum(-1)
    assert mask.shape == (32, 4, 5, 6) and len({tuple(row.tolist()) for row in mask[:, 0].flatten(1)}) > 24
    assert (bool((mask == mask[:, :1]).all()), bool((hidden == hidden[:, :1]).all())) == (places, counts)


def test_nested_masks_hide_the_same_places_first() -> None:
    mask = draw_mask("nested", 32, 4, 5, 6, generator()).flatten(2)
    counts = mask.sum(-1)
    for one, other in itertools.combinations(range(4), 2):
        either = (mask[:, one] | mask[:, other]).sum(-1)
        assert torch.equal(either, torch.maximum(counts[:, one], counts[:, other]))


@pytest.mark.parametrize("kind", ["tube", "random", "diffusion-forcing", "nested"])
def test_masks_are_reproducible_and_never_empty(kind: str) -> None:
    masks = [draw_mask(kind, 16, 3, 1, 2, generator(3), 0.0) for _ in range(2)]  # type: ignore[arg-type]
    assert torch.equal(*masks) and masks[0].flatten(2).any(-1).all()


def test_every_place_is_hidden_equally_often() -> None:
    mask = draw_mask("tube", 4000, 1, 3, 5, generator()).float().mean(dim=(0, 1))
    assert float(mask.std()) < 0.02


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.7, 14), (0.99, 20)])
def test_history_hides_the_asked_share(ratio: float, count: int) -> None:
    mask = history_mask(6, 4, 5, ratio, generator())
    assert (mask.flatten(1).sum(-1) == count).all()
    assert released_history_mask(2, 4, 5, ratio).flatten(1).sum(-1).tolist() == [count, count]


def test_released_history_places_are_evenly_spread() -> None:
    places = released_history_mask(1, 8, 13, 0.7).flatten().nonzero()[:, 0].tolist()
    assert places == [round(i * 104 / 73) for i in range(73)]
