import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.prompts import Prompt, benchmark, one_object
from lumos.evaluation.run import batches
from lumos.evaluation.shapes import chosen_prompts, evaluate_shapes
from lumos.generate import Generator
from lumos.model.transformer import Transformer
from lumos.sequence.prompt_template import PromptReader
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import Scene
from research.one_object import measure_one_object

EVERY = [*benchmark(), *one_object(8)]
FEW = [
    next(prompt for prompt in EVERY if name in prompt.checks) for name in ("counting", "speed", "occlusion", "keeps the image")
]


class Oracle(Generator):
    """In place of a model: it draws what its prompt's scene says. `fails` at one of its calls."""

    def __init__(self, model: Generator, prompts: Sequence[Prompt] = EVERY, fails: int = -1, wrong: Scene | None = None) -> None:
        self.__dict__.update(model.__dict__)
        self.scenes = {(prompt.text, prompt.frames): prompt.scene for prompt in prompts}
        self.fails, self.calls, self.wrong = fails, 0, wrong
        self.seeds: list[int] = []

    def __call__(
        self, prompts: str | Sequence[str], frames: int | None = None, seed: int | Sequence[int] = 0, **settings: Any
    ) -> Tensor:
        self.calls += 1
        if self.calls == self.fails:
            raise KeyboardInterrupt
        assert not isinstance(prompts, str) and not isinstance(seed, int) and frames is not None
        self.seeds += seed
        video = self.config.video
        scenes = [self.wrong or self.scenes[text, 1 if frames == 1 else 17] for text in prompts]
        return torch.cat([render(pack([scene]), frames, video.height, video.fps) for scene in scenes])


@pytest.fixture(scope="module")
def whole(random_model: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose work is done, in batches of one."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    evaluate_shapes(Oracle(random_model), folder, FEW, batch=1)
    return folder


@pytest.fixture
def done(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "done"))


def test_truth_is_right_in_every_class(random_model: Generator, tmp_path: Path) -> None:
    firsts = {(prompt.split, name): prompt for prompt in reversed(benchmark()) for name in prompt.checks}
    oracle = Oracle(random_model)
    report = evaluate_shapes(oracle, tmp_path / "out", list({each.id: each for each in firsts.values()}.values()))
    assert len(set(oracle.seeds)) == len(report["prompts"])  # each has its own
    assert report["overall"]["score"] == 1.0, [prompt for prompt in report["prompts"] if not all(prompt["classes"].values())]
    assert len(report["classes"]) == 16 and all({"seen", "held-out"} <= set(entry) for entry in report["classes"].values())
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_a_random_model_goes_all_the_way_and_is_not_right(
    random_model: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate_shapes(random_model, tmp_path / "out", FEW)
    output = capsys.readouterr()
    assert output.out == "" and "4 of 4 prompts, 0.0 minutes left" in output.err
    assert report["overall"]["right"] <= 1
    assert len(list((tmp_path / "out" / "videos").iterdir())) == 4


def test_the_same_seed_gives_the_same_files(random_model: Generator, tmp_path: Path) -> None:
    reports = [evaluate_shapes(random_model, tmp_path / f"{i}", FEW[:1], seed=seed) for i, seed in enumerate((0, 0, 1))]
    files = [(tmp_path / f"{i}" / report["prompts"][0]["file"]).read_bytes() for i, report in enumerate(reports)]
    assert files[0] == files[1] != files[2]
    assert reports[0]["prompts"] == reports[1]["prompts"]


def test_the_report_is_one_file_with_the_videos_and_words_made_safe(
    random_model: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    spiked = [replace(FEW[1], text=FEW[1].text + " & it's 4 < 5"), *FEW[:1]]
    oracle = Oracle(random_model, spiked)
    monkeypatch.setattr(PromptReader, "ids", lambda *arguments: [0])  # these signs are not in its vocabulary
    evaluate_shapes(oracle, out, spiked)
    page = (out / "report.html").read_text()
    assert page.count("data:image/webp;base64,") == 1 and page.count("data:image/png;base64,") == 1
    assert "&amp; it&#x27;s 4 &lt; 5" in page and "http" not in page


def test_an_interrupted_run_goes_on_and_ends_as_a_whole_one(random_model: Generator, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate_shapes(Oracle(random_model, fails=3), tmp_path / "half", FEW, batch=1)
    results = tmp_path / "half" / "results.jsonl"
    assert len(results.read_text().splitlines()) == 2
    results.write_text(results.read_text() + '{"id": "cut off in the mid')
    rest = Oracle(random_model)
    report = evaluate_shapes(rest, tmp_path / "half", FEW, batch=1)
    assert rest.calls == 2
    unbroken, nothing = json.loads((whole / "report.json").read_text()), Oracle(random_model)
    assert report["prompts"] == unbroken["prompts"]
    assert evaluate_shapes(nothing, tmp_path / "half", FEW, batch=1)["classes"] == unbroken["classes"]
    assert nothing.calls == 0


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch": 2}, {"sampler": SamplerConfig(steps=3)}, {"prompts": FEW[:2]}])
def test_a_folder_of_other_settings_is_refused(random_model: Generator, done: Path, change: dict[str, Any]) -> None:
    before = (done / "results.jsonl").read_bytes()
    with pytest.raises(ValueError, match="other settings"):
        evaluate_shapes(Oracle(random_model), done, **{"prompts": FEW, "batch": 1, **change})
    assert (done / "results.jsonl").read_bytes() == before


def test_a_folder_of_other_weights_or_of_an_older_benchmark_is_refused(random_model: Generator, done: Path) -> None:
    oracle = Oracle(random_model)
    oracle.model = Transformer(random_model.config.model)
    oracle.model.initialise(torch.Generator().manual_seed(2))
    with pytest.raises(ValueError, match=r"other settings \(weights"):
        evaluate_shapes(oracle, done, FEW, batch=1)
    (done / "settings.json").write_text((done / "settings.json").read_text().replace('"benchmark": 2', '"benchmark": 1'))
    with pytest.raises(ValueError, match="results of version 1 of the benchmark, this is version 2.*another folder"):
        evaluate_shapes(oracle, done, FEW, batch=1)


def test_bad_folders_are_refused_and_left_alone(random_model: Generator, done: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="must be a folder"):
        evaluate_shapes(random_model, file, FEW)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="new or empty folder"):
        evaluate_shapes(random_model, foreign, FEW)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    (done / "results.jsonl").write_text("what\n")
    with pytest.raises(ValueError, match="must have one JSON object per line"):
        evaluate_shapes(Oracle(random_model), done, FEW, batch=1)
    (done / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        evaluate_shapes(Oracle(random_model), done, FEW)


@pytest.mark.parametrize(("side", "fps", "frames"), [(256, 12, 25), (64, 8, 17)])
def test_videos_of_other_sizes_and_rates_are_judged(
    random_model: Generator, tmp_path: Path, side: int, fps: int, frames: int
) -> None:
    oracle = Oracle(random_model)
    oracle.config = replace(random_model.config, video=replace(random_model.config.video, height=side, width=side, fps=fps))
    report = evaluate_shapes(oracle, tmp_path / "out", FEW)
    assert report["overall"]["score"] == 1.0
    with Image.open(tmp_path / "out" / report["prompts"][1]["file"]) as video:
        assert (video.n_frames, video.size) == (frames, (side, side))  # two seconds


def test_a_model_of_another_size_or_rate_is_refused(random_model: Generator, tmp_path: Path) -> None:
    for change in ({"height": 96, "width": 96}, {"width": 256}, {"fps": 7}):
        oracle = Oracle(random_model)
        oracle.config = replace(random_model.config, video=replace(random_model.config.video, **change))
        with pytest.raises(ValueError, match="needs a model of square videos, .*, got one for"):
            evaluate_shapes(oracle, tmp_path / "out", FEW)
    assert not (tmp_path / "out").exists()


def test_bad_choices_are_refused(random_model: Generator, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="known: one-object, .*colour binding"):
        chosen_prompts(False, "beauty", None)
    with pytest.raises(ValueError, match="leave one out"):
        chosen_prompts(False, "one-object", tmp_path / "few.jsonl")
    with pytest.raises(ValueError, match="batch must be"):
        evaluate_shapes(random_model, tmp_path / "out", FEW, batch=0)
    with pytest.raises(ValueError, match="at most 62 text ids"):
        evaluate_shapes(random_model, tmp_path / "out", [replace(FEW[0], text="red " * 99)])
    assert not (tmp_path / "out").exists()


def test_parts_of_the_benchmark() -> None:
    assert {tuple(prompt.checks) for prompt in chosen_prompts(False, "speed", None)} == {("speed",)}
    assert {prompt.task for prompt in chosen_prompts(True, "text to image", None)} == {"text to image"}
    assert len(chosen_prompts(True, "one-object", None)) == 16


def test_batches_are_of_one_length_and_one_image_and_hold_everything() -> None:
    prompts = benchmark()
    found = batches(prompts, 8)
    assert sorted(prompt.id for part in found for prompt in part) == sorted(prompt.id for prompt in prompts)
    for part in found:
        assert len({(prompt.frames, prompt.given) for prompt in part}) == 1
        assert len(part) <= (32 if part[0].frames == 1 else 8)


def test_one_object_counts_colour_and_direction(random_model: Generator, tmp_path: Path) -> None:
    report = measure_one_object(Oracle(random_model), count=8, sheet=tmp_path / "one.png")
    assert report["colour"]["right"] == report["direction"]["right"] == 8 and report["wrong"] == []
    assert (tmp_path / "one.png").exists()
    wrong = measure_one_object(Oracle(random_model, wrong=one_object(1)[0].scene), count=8)
    assert wrong["direction"]["right"] == 1
    assert len(wrong["wrong"]) == 7
