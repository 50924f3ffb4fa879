"""`lumos estimate` and what it refuses."""

import json

import pytest

from lumos.cli.main import main


def test_a_table_says_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "3b-384p", "--gpus", "8", "--memory", "60GB"]) == 0
    out = capsys.readouterr().out
    assert "3b-384p on 8 x H200 of 60 GiB" in out and "a step of 1 videos a GPU" in out and "a step of 6 images a GPU" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("off", "selective", "full"))]
    assert len(rows) == 6 and {row[1] for row in rows} == {"yes", "no"}


def test_the_json_holds_the_parts_and_advice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "1b-256p-images", "--memory", "20", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["steps"].keys() == {"images"} and "advice" in document["steps"]["images"]
    for row in document["steps"]["images"]["modes"]:
        parts = ("parameters", "gradients", "optimiser", "activations", "logits", "gathered")
        assert row["gib"] == pytest.approx(sum(row[part] for part in parts), abs=0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["9b"], "unknown preset '9b'"),
        (["1b-384p", "--memory", "lots"], "--memory must be a size in GB, got 'lots'"),
        (["1b-384p", "--memory", "0GB"], "--memory must be a size in GB"),
        (["1b-384p", "--gpus", "0"], "--gpus must be 1 to 100000, got 0"),
        (["1b-384p", "--card", "H2000"], "unknown card 'H2000' (did you mean H200?)"),
        (["1b-384p", "--gpus", "3", "--set", "parallel.replicas=2"], "multiple of parallel.replicas = 2, got 3"),
    ],
)
def test_bad_input_is_said_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
