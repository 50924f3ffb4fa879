from pathlib import Path

import pytest
import torch
from torch import Tensor

from lumos.evaluation.card import CARD, UNTOLD, write_card
from lumos.evaluation.distances import Features
from lumos.evaluation.fidelity import measure_distances, measure_tokenizer
from lumos.evaluation.prompts import benchmark
from lumos.evaluation.scores import Result, summary
from lumos.generate import Generator

PROMPTS = [prompt for prompt in benchmark() if "motion direction" in prompt.checks][:3]


def mean_colours(pixels_BCFHW: Tensor) -> Features:
    frames = pixels_BCFHW.mean((3, 4)).transpose(1, 2)
    return Features(frames.flatten(0, 1), frames.flatten(1))


def test_distances_between_a_model_and_the_world(random_model: Generator) -> None:
    said: list[tuple[int, int]] = []
    found = measure_distances(random_model, PROMPTS, mean_colours, "mean colours", batch=2, say=lambda *done: said.append(done))
    assert found["clips"] == 3 and said == [(2, 3), (3, 3)]
    assert found["FVD-like (mean colours)"] > 0.1 and len(found) == 5
    with pytest.raises(ValueError, match="at least 2 text to video prompts, got 1"):
        measure_distances(random_model, PROMPTS[:1], mean_colours, "mean colours")


def test_a_tokenizer_that_knows_nothing_has_a_low_psnr(random_model: Generator) -> None:
    found = measure_tokenizer(random_model.tokenizer, torch.device("cpu"), clips=2, frames=5, size=64)
    assert found["clips"] == 2 and found["worst_psnr"] <= found["psnr"] < 20 and found["ssim"] < 0.9


def test_the_card_tells_scores_and_limits(random_model: Generator, tmp_path: Path) -> None:
    marks = {"one object": [True] * 9 + [False], "counting": [True, None]}
    results = [
        Result(f"{name}-{i}", "text to image", "held-out", "x", {name: mark}, {}, {}, "")
        for name, of in marks.items()
        for i, mark in enumerate(of)
    ]
    settings = {"weights": "abc", "benchmark": 1, "count": 12, "seed": 0, "device": "cpu", "sampler": {"steps": 4}}
    path = write_card(tmp_path, random_model, {"settings": settings, **summary(results)})
    card = path.read_text()
    assert path.name == CARD and "| one object | 90.0 |" in card and "| 95 |" in card
    assert "Below 75 %: counting." in card and "steps 4" in card and "128x128" in card


def test_what_people_say_of_the_data_is_kept(random_model: Generator, tmp_path: Path) -> None:
    settings = {"benchmark": 1, "count": 20, "seed": 0, "device": "cpu", "weights": "abc", "sampler": {"steps": 4}}
    result = Result("a", "text to image", "seen", "x", {"counting": True}, {}, {}, "")
    scores = {"settings": settings, **summary([result])}
    path = write_card(tmp_path, random_model, scores)
    assert UNTOLD in path.read_text()
    path.write_text(path.read_text().replace(UNTOLD, "Seven films of cats.\n\n- and a dog"), "utf-8")
    card = write_card(tmp_path, random_model, scores).read_text()
    assert "## Data\n\nSeven films of cats.\n\n- and a dog\n\n## Scores" in card and UNTOLD not in card
