from pathlib import Path

from lumos.evaluation.report import CARD, Result, summary, write_card
from lumos.generate import Generator

MARKS = {"one object": [True] * 9 + [False], "counting": [True, None]}
RESULTS = [
    Result(f"{name}-{i}", "text to image", "held-out", "x", {name: mark}, {}, {}, "")
    for name, of in MARKS.items()
    for i, mark in enumerate(of)
]
SETTINGS = {"weights": "abc", "benchmark": 2, "count": 12, "seed": 0, "device": "cpu", "sampler": {"steps": 4}}
SCORES = {"settings": SETTINGS, **summary(RESULTS)}


def test_the_card_tells_scores_and_limits_and_is_kept(random_model: Generator, tmp_path: Path) -> None:
    path = write_card(tmp_path, random_model, SCORES)
    card = path.read_text()
    assert path.name == CARD and "| one object | 90.0 % |" in card
    assert "Below 75 %: counting." in card and "steps 4" in card and "128x128" in card
    path.write_text("What I know.")
    assert write_card(tmp_path, random_model, SCORES).read_text() == "What I know."
