from pathlib import Path

import pytest

from lumos.evaluation.card import CARD, UNTOLD, write_card
from lumos.evaluation.scores import Result, summary
from lumos.generate import Generator

MARKS = {"one object": [True] * 9 + [False], "counting": [True, None]}
RESULTS = [
    Result(f"{name}-{i}", "text to image", "held-out", "x", {name: mark}, {}, {}, "")
    for name, of in MARKS.items()
    for i, mark in enumerate(of)
]
SETTINGS = {"weights": "abc", "benchmark": 2, "count": 12, "seed": 0, "device": "cpu", "sampler": {"steps": 4}}
SCORES = {"settings": SETTINGS, **summary(RESULTS)}


def test_the_card_tells_scores_and_limits(random_model: Generator, tmp_path: Path) -> None:
    path = write_card(tmp_path, tmp_path, random_model, SCORES)
    card = path.read_text()
    assert path.name == CARD and "| one object | 90.0 % |" in card
    assert "Below 75 %: counting." in card and "steps 4" in card and "128x128" in card


def test_what_people_say_of_the_data_is_kept(random_model: Generator, tmp_path: Path) -> None:
    path = write_card(tmp_path, tmp_path / "out", random_model, SCORES)
    assert UNTOLD in path.read_text()
    path.write_text(path.read_text().replace(UNTOLD, "Seven films of cats.\n\n- and a dog"), "utf-8")
    card = write_card(tmp_path, tmp_path / "out", random_model, SCORES).read_text()
    assert "## Data\n\nSeven films of cats.\n\n- and a dog\n\n## Scores" in card and UNTOLD not in card


@pytest.mark.parametrize("change", [("steps 4", "steps 5"), ("# Model card", "# Our model"), ("", None)])
def test_a_card_that_a_person_wrote_or_changed_is_left_alone(
    random_model: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str | None]
) -> None:
    (tmp_path / "out").mkdir()
    old = write_card(tmp_path, tmp_path / "out", random_model, SCORES)
    mine = "What I know." if change[1] is None else old.read_text().replace(change[0], change[1])
    old.write_text(mine)
    new = write_card(tmp_path, tmp_path / "out", random_model, SCORES)
    assert old.read_text() == mine and new == tmp_path / "out" / CARD and "one object" in new.read_text()
    assert f"{old} was written or changed by hand and is kept; the new card is {new}" in capsys.readouterr().err
