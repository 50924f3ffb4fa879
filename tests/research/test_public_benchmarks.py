import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lumos.generate import Generator
from research.public_benchmarks import SuiteRun, generate_suite, place_of_process

GENEVAL = [{"tag": "single_object", "prompt": "a red circle"}, {"tag": "counting", "prompt": "two stars"}]
VBENCH = [
    {"prompt_en": "a blue star", "dimension": ["scene"]},
    {"prompt_en": "a red ring, still", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a blue star", "dimension": ["color"]},
]


class Painter(Generator):
    """In place of a model: a colour for each seed, and it keeps what it was told."""

    def __init__(self, model: Generator) -> None:
        self.__dict__.update(model.__dict__)
        self.prompts: Any = self  # which it reads as its model would
        self.told: list[str] = []
        self.given: list[Tensor | None] = []

    def __call__(self, prompts: Any, frames: int | None = None, seed: Any = 0, **settings: Any) -> Tensor:
        self.told += prompts
        self.given.append(settings["given"])
        shades = torch.tensor([value % 255 for value in seed]) / 127.5 - 1
        return shades[:, None, None, None, None].expand(-1, 3, frames, 32, 32)

    def ids(self, prompt: str, frames: int, height: int, width: int) -> list[int]:
        if len(prompt) > 60:
            raise ValueError("a prompt may have at most 62 text ids for this model, got more; shorten it")
        return [1]


@pytest.fixture
def painter(random_model: Generator) -> Painter:
    return Painter(random_model)


@pytest.fixture
def geneval(tmp_path: Path) -> Path:
    (tmp_path / "geneval.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in GENEVAL))
    return tmp_path / "geneval.jsonl"


@pytest.fixture
def vbench(tmp_path: Path) -> Path:
    (tmp_path / "vbench.json").write_text(json.dumps(VBENCH))
    return tmp_path / "vbench.json"


def files(
    painter: Painter, suite: str, prompts: Path, out: Path, rank: int = 0, world: int = 1, sampler: Any = None, **settings: Any
) -> dict[str, Any]:
    return generate_suite(painter, SuiteRun(suite, prompts, out, **settings), sampler, rank, world)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_geneval_folders_are_those_of_its_tool(painter: Painter, geneval: Path, tmp_path: Path) -> None:
    done = files(painter, "geneval", geneval, tmp_path / "out")
    assert (done["files"], done["of"]) == (8, 8)
    expected = [f"{i:05}/samples/{j:05}.png" for i in range(2) for j in range(4)] + [f"{i:05}/metadata.jsonl" for i in range(2)]
    assert tree(tmp_path / "out") == sorted([*expected, "settings.json"])
    assert json.loads((tmp_path / "out/00001/metadata.jsonl").read_text()) == GENEVAL[1]
    shades = {Image.open(tmp_path / "out" / name).getpixel((3, 3)) for name in expected if name.endswith("png")}
    assert len(shades) == 8  # every sample has a seed of its own


def test_vbench_videos_are_named_by_prompt_and_number(painter: Painter, vbench: Path, tmp_path: Path) -> None:
    files(painter, "vbench", vbench, tmp_path / "out")
    names = [f"a blue star-{i}.mp4" for i in range(5)] + [f"a red ring, still-{i}.mp4" for i in range(25)]
    assert tree(tmp_path / "out" / "videos") == sorted(names)


def test_processes_share_the_work_and_what_is_there_is_kept(painter: Painter, geneval: Path, tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    files(painter, "geneval", geneval, whole)
    painter.told.clear()
    for rank in (0, 1):
        files(painter, "geneval", geneval, shared, rank=rank, world=2, batch=3)
        assert len(painter.told) == 4 * (rank + 1)
    assert tree(shared) == tree(whole)
    assert all((shared / name).read_bytes() == (whole / name).read_bytes() for name in tree(whole) if name.endswith("png"))
    (shared / "00000/samples/00002.png").unlink()
    painter.told.clear()
    files(painter, "geneval", geneval, shared)
    assert painter.told == ["a red circle"] and tree(shared) == tree(whole)


def test_rewritten_prompts_are_told_and_files_keep_the_old_names(painter: Painter, vbench: Path, tmp_path: Path) -> None:
    rewrites = tmp_path / "rewrites.json"
    rewrites.write_text(json.dumps({"a blue star": "a large blue star", "a red ring, still": "a ring"}))
    files(painter, "vbench", vbench, tmp_path / "out", samples=1, rewrites=rewrites)
    assert painter.told == ["a large blue star", "a ring"]
    assert tree(tmp_path / "out" / "videos") == ["a blue star-0.mp4", "a red ring, still-0.mp4"]


def test_image_to_video_starts_from_each_image(painter: Painter, tmp_path: Path) -> None:
    file = tmp_path / "i2v.json"
    entries = [{"prompt_en": f"a {name}", "image_name": f"{name}.png", "dimension": ["i2v_subject"]} for name in ("star", "ring")]
    file.write_text(json.dumps(entries))
    for name, colour in (("star", "red"), ("ring", "blue")):
        Image.new("RGB", (160, 128), colour).save(tmp_path / f"{name}.png")
    files(painter, "vbench-i2v", file, tmp_path / "out", images=tmp_path)
    assert painter.told == ["a star"] * 5 + ["a ring"] * 5
    first, second = painter.given[0], painter.given[-1]
    assert first is not None and second is not None and first.shape == (3, 1, 128, 128)
    assert first[0].min() > 0.9 and second[2].min() > 0.9
    (tmp_path / "ring.png").unlink()
    with pytest.raises(ValueError, match=r"there is no image .*ring\.png"):
        files(painter, "vbench-i2v", file, tmp_path / "other", images=tmp_path)
    with pytest.raises(ValueError, match="--images FOLDER goes with vbench-i2v"):
        files(painter, "vbench-i2v", file, tmp_path / "other")


@pytest.mark.parametrize(
    ("suite", "content", "says"),
    [
        ("geneval", "", "at least one prompt"),
        ("vbench", "[]", "at least one prompt"),
        ("geneval", "what", "a JSON object per line"),
        ("vbench", "{", "one JSON list"),
        ("vbench", '[{"prompt": "a star"}]', "entry 1 must have prompt_en"),
        ("geneval", '{"prompt": " "}', "entry 1 must have prompt"),
        ("vbench", '[{"prompt_en": "a/b"}]', "must have no '/'"),
        ("geneval", json.dumps({"prompt": "red " * 20}), "at most 62 text ids"),
    ],
)
def test_bad_prompt_files_are_refused_before_any_work(
    painter: Painter, tmp_path: Path, suite: Any, content: str, says: str
) -> None:
    file = tmp_path / "prompts"
    file.write_text(content)
    with pytest.raises(ValueError, match=says):
        files(painter, suite, file, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not painter.told


def test_other_bad_input_is_refused(painter: Painter, geneval: Path, tmp_path: Path) -> None:
    out, rewrites = tmp_path / "out", tmp_path / "rewrites.json"
    for content, says in (
        ('{"a": 1}', "another form"),
        ("{", "not readable JSON"),
        ('{"a red circle": "x"}', "1 are missing, first 'two stars'"),
    ):
        rewrites.write_text(content)
        with pytest.raises(ValueError, match=says):
            files(painter, "geneval", geneval, out, rewrites=rewrites)
    with pytest.raises(ValueError, match="samples must be"):
        files(painter, "geneval", geneval, out, samples=0)
    files(painter, "geneval", geneval, out, samples=1)
    other = replace(painter.config.sampler, steps=9)
    for settings, says in (({"seed": 1}, "seed: 0, now 1"), ({"sampler": other}, "sampler"), ({"rewrites": geneval}, "")):
        with pytest.raises(ValueError, match=rf"other settings \({says}" if says else "JSON"):
            files(painter, "geneval", geneval, out, **settings)  # type: ignore[arg-type]


def test_the_place_of_a_process_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_of_process() == (0, 1, 0)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert place_of_process() == (5, 8, 1)
