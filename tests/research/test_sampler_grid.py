import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.prompts import benchmark
from lumos.generate import Generator
from research.sampler_grid import main, run_grid, settings_around, settings_of, table

OWN = SamplerConfig(steps=1, guidance=1.0)
FEW = [prompt for prompt in benchmark() if "counting" in prompt.checks][:2]


def test_settings_around_differ_in_one() -> None:
    settings = settings_around(OWN)
    assert settings[0] == OWN and len(set(settings)) == len(settings) > 10
    for each in settings[1:]:
        assert sum(value != asdict(OWN)[name] for name, value in asdict(each).items()) == 1


def test_settings_over_are_all_combinations() -> None:
    settings = settings_of(OWN, ["steps=2, 4", "temperature=0.5,1"])
    assert [(each.steps, each.temperature) for each in settings] == [(2, 0.5), (2, 1.0), (4, 0.5), (4, 1.0)]
    for wrong in ("steps", "speed=1", "steps=", "steps=1,,2"):
        with pytest.raises(ValueError, match="--over must be NAME=V1,V2"):
            settings_of(OWN, [wrong])
    with pytest.raises(ValueError, match=r"--over.*steps|steps.*--over"):
        settings_of(OWN, ["steps=many"])


def test_a_grid_goes_on_where_it_stopped(random_model: Generator, tmp_path: Path) -> None:
    settings = settings_of(OWN, ["history=0,0.5,0.9"])
    first = run_grid(random_model, tmp_path, settings, FEW, one_objects=0, minutes=0)
    assert len(first) == 1
    file = tmp_path / "grid.jsonl"
    file.write_text(file.read_text() + '{"cut off')
    points = run_grid(random_model, tmp_path, settings, FEW, one_objects=0)
    assert points[0] == first[0] and [point["sampler"]["history"] for point in points] == [0, 0.5, 0.9]
    assert [json.loads(line) for line in file.read_text().splitlines()] == points
    assert run_grid(random_model, tmp_path, settings, FEW, one_objects=0) == points
    lines = table(points).splitlines()
    assert len(lines) == 4 and lines[0].split()[0] == "history" and "counting" in lines[0]


def test_the_command_on_a_folder_of_weights(random_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--weights", str(random_folder), "--out", str(tmp_path / "grid"), "--device", "cpu"]
    main([*words, "--over", "history=0.5", "--benchmark", "none", "--one-objects", "2"])
    shown = capsys.readouterr().out
    assert "direction1" in shown and (tmp_path / "grid" / "table.txt").read_text() == shown
    for wrong in (["--over", "what=1"], ["--weights", str(tmp_path / "nothing")]):
        with pytest.raises(SystemExit, match="grid: .*(must be|no weights)"):
            main([*words, *wrong])
