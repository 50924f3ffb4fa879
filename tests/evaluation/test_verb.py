import json
from pathlib import Path

import pytest

from lumos.cli.main import main
from lumos.evaluation.prompts import benchmark, to_lines

FEW = [prompt for prompt in benchmark() if "counting" in prompt.checks][:2]


def test_shapes_by_command(random_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "few.jsonl").write_text(to_lines(FEW))
    words = ["evaluate", "shapes", "--weights", str(random_folder), "--device", "cpu", "--out", str(tmp_path / "out")]
    words += ["--prompts", str(tmp_path / "few.jsonl"), "--set", "steps=2"]
    assert main([*words, "--workers", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["settings"]["sampler"]["steps"] == 2 and document["classes"]["counting"]["unclear"] >= 0
    assert Path(document["report"]).exists() and "card" not in document  # a card is for the whole benchmark
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "overall: " in shown and "counting: " in shown
    assert main([*words, "--seed", "1"]) == 2
    assert "other settings (seed: 0, now 1)" in capsys.readouterr().err


def test_a_tokenizer_by_command(random_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["evaluate", "tokenizer", "--quick", "--weights", str(random_folder), "--device", "cpu", "--out", str(tmp_path)])
        == 0
    )
    found = json.loads((tmp_path / "tokenizer.json").read_text())
    assert found["psnr_lowest"] <= found["psnr"] < 20  # it knows nothing
    assert (tmp_path / "tokenizer.png").exists() and "codes_used: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["beauty"], "unknown benchmark 'beauty'; known: shapes"),
        (["tokenizer", "--only", "counting"], "--only has no meaning for tokenizer"),
        (["shapes", "--set", "speed=1"], "unknown setting 'speed'"),
        (["shapes", "--only", "beauty"], "--only must be a class or task"),
        (["shapes", "--workers", "-1"], "workers must be 0 or more"),
        (["tokenizer", "--device", "abacus"], "device must be cpu"),
        (["tokenizer", "--out", "."], "tokenizer.json exists"),
    ],
)
def test_mistakes_are_one_line(
    random_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tokenizer.json").write_text("[]")
    assert main(["evaluate", "--weights", str(random_folder), "--out", "out", *words]) == 2
    assert Path("tokenizer.json").read_text() == "[]"
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
