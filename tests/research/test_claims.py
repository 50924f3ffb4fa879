import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lumos.files import add_line, read_lines
from lumos.generate import Generator
from lumos.tokenizer.model import VideoTokenizer
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import SEEN_PAIRS
from research import claims
from research.claims import ALL_RIGHT, CLAIMS, Claim, Setting, judged, run_claim
from research.claims_report import BY_HAND, verdict, write_claims
from research.latency import measure_latency
from research.small_runs import MOTIONS, TOY, Variant, World, claim_prompts

SMALL = replace(TOY, seconds=0.01, prompts=1)


@pytest.fixture
def world(random_model: Generator) -> World:
    assert isinstance(random_model.tokenizer, VideoTokenizer)
    return World.make(random_model.tokenizer, SMALL, torch.device("cpu"))


@pytest.fixture
def quick_claim(monkeypatch: pytest.MonkeyPatch) -> str:
    sizes = (64, 64), (64, 96)
    variants = (Variant(sizes=sizes[:1]), Variant("1d", "random", True, sizes))
    monkeypatch.setitem(CLAIMS, "rope", Claim("this", variants, (Setting("own"), Setting("wide", {"steps": 1}, 5, (64, 96))), 2))
    return "rope"


def test_a_claim_trains_and_judges_everything_once_and_goes_on(world: World, quick_claim: str, tmp_path: Path) -> None:
    said: list[str] = []
    assert run_claim(quick_claim, tmp_path, world, end=0, say=said.append) is False
    assert said == ["out of time; the same command goes on"] and not read_lines(tmp_path / "runs.jsonl")
    assert run_claim(quick_claim, tmp_path, world, say=said.append) is True
    runs, scores = read_lines(tmp_path / "runs.jsonl"), read_lines(tmp_path / "scores.jsonl")
    names = ["mm-rope_tube", "1d_random_causal_many-sizes"]
    assert [(run["variant"], run["seed"]) for run in runs] == [(name, seed) for seed in (0, 1) for name in names]
    assert len(scores) == 8 and all(run["steps"] >= 1 and run["curve"] for run in runs)
    assert all(math.isfinite(loss) for run in runs for loss in (*run["curve"][-1]["frames"], *run["curve"][-1]["own_frames"]))
    before = (tmp_path / "runs.jsonl").read_bytes(), (tmp_path / "scores.jsonl").read_bytes()
    assert run_claim(quick_claim, tmp_path, world, say=said.append) is True
    assert before == ((tmp_path / "runs.jsonl").read_bytes(), (tmp_path / "scores.jsonl").read_bytes())
    add_line(tmp_path / "latency.jsonl", measure_latency(torch.device("cpu"), toy=True))
    (tmp_path / "docs").mkdir()
    write_claims([tmp_path], tmp_path / "docs" / "page.md")
    page = (tmp_path / "docs" / "page.md").read_text()
    assert "toy sizes" in page and "| mm-rope_tube |" in page and "960 s" in page and "masks" in page.split("Not measured yet")[1]
    assert "img/claim_rope_0.01s.png" in page and not (tmp_path / "docs" / "img").exists()
    (tmp_path / "docs" / "page.md").write_text(f"of before\n{BY_HAND}\nwhat I think of it\n")
    write_claims([tmp_path], tmp_path / "docs" / "page.md")
    assert (tmp_path / "docs" / "page.md").read_text() == f"{page}\n{BY_HAND}\nwhat I think of it\n"


def test_models_of_two_training_times_stand_side_by_side(tmp_path: Path) -> None:
    for seconds, right in ((36.0, 1), (144.0, 9)):
        folder = tmp_path / f"{seconds}"
        folder.mkdir()
        (folder / "scale.json").write_text(json.dumps({"seconds": seconds}))
        marks = {name: [right, 0, 10] for name in ("all", *ALL_RIGHT)}
        for seed, variant in itertools.product((0, 1), CLAIMS["attention"].variants):
            point = {"seconds": seconds, "loss": 2.0, "own_frames": [2.0, 2.0]}
            add_line(folder / "runs.jsonl", {"variant": variant.name, "seed": seed, "curve": [point]})
            add_line(folder / "scores.jsonl", {"variant": variant.name, "seed": seed, "label": "own", "marks": marks})
    write_claims([tmp_path / "36.0", tmp_path / "144.0"], tmp_path / "page.md")
    short, long = (tmp_path / "page.md").read_text().split("### After 144 seconds of training")
    assert (
        "### After 36 seconds" in short and "attention --out runs/claims --seeds 2\n" in short and "| 2 | 10.0 +- 0.0 |" in short
    )
    assert "attention --out runs/claims_longer --seeds 2 --seconds 144" in long and "| 2 | 90.0 +- 0.0 |" in long
    pytest.importorskip("matplotlib", reason="plots need pip install 'lumos[research]'")
    write_claims([tmp_path / "36.0", tmp_path / "144.0"], tmp_path / "page.md", plots=True)
    assert (tmp_path / "img" / "claim_attention.png").exists() and (tmp_path / "img" / "claim_attention_144s.png").exists()


def test_the_page_says_what_its_lines_say(tmp_path: Path) -> None:
    """research/paper_claims.md was made of research/claims_data, and nobody changed a number in it by hand."""
    research = Path(__file__).parents[2] / "research"
    write_claims([research / "claims_data" / length for length in ("36s", "144s")], tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text().strip() == (research / "paper_claims.md").read_text().split(BY_HAND)[0].strip()


def test_another_scale_in_the_same_folder_is_refused(world: World, quick_claim: str, tmp_path: Path) -> None:
    run_claim(quick_claim, tmp_path, world, end=0, say=lambda line: None)
    world.scale = replace(SMALL, seconds=3.0)
    with pytest.raises(ValueError, match="another scale"):
        run_claim(quick_claim, tmp_path, world)
    with pytest.raises(ValueError, match="found none; run a claim first"):
        write_claims([tmp_path], tmp_path / "page.md")


def test_the_command_says_what_is_wrong_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["latency", "--device", "abacus"], ["rope", "--tokenizer", str(tmp_path / "none")]):
        with pytest.raises(SystemExit, match=r"claims: (device must be|no weights)"):
            claims.main([*words, "--toy", "--out", str(tmp_path / "out")])
    (tmp_path / "lines.jsonl").write_text("what\n")
    with pytest.raises(ValueError, match="one JSON object per line"):
        read_lines(tmp_path / "lines.jsonl")


def test_prompts_cover_all_motions_and_hold_out_half_the_pairs() -> None:
    prompts = claim_prompts(2 * len(MOTIONS))
    assert [prompt.scene.things[0].motion for prompt in prompts] == [*MOTIONS, *MOTIONS]
    for prompt in prompts:
        thing = prompt.scene.things[0]
        assert ((thing.colour, thing.shape) in SEEN_PAIRS) == (prompt.split == "seen")
    assert claim_prompts(3) == prompts[:3]


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (192, 96)])
def test_true_clips_of_any_size_are_right(size: tuple[int, int]) -> None:
    for prompt in claim_prompts(2):
        pixels = render(pack([prompt.scene]), 17, height=size[0], width=size[1])[0]
        rgb_CFHW = ((pixels + 1) * 127.5).round().to(torch.uint8).numpy()
        marks = judged(prompt, rgb_CFHW)
        assert marks["all"] is True, (size, prompt.text, marks)
        assert judged(prompt, np.zeros_like(rgb_CFHW))["all"] is False


def test_a_verdict_has_seeds_as_its_units() -> None:
    assert verdict([90, 91, 92], [60, 61, 59]) == "confirmed"
    assert verdict([60, 61, 59], [90, 91, 92]) == "opposite"
    assert verdict([88.5, 64.6, 90.6], [55.2, 64.6, 83.3]) == "not decided"  # three standard errors if videos were the units
    assert verdict([5.0, 5.0], [5.0, 5.0]) == "not decided"
    assert verdict([90], [60, 61]) == "one seed tells nothing"


def test_every_claim_is_whole() -> None:
    for claim in CLAIMS.values():
        assert len({variant.name for variant in claim.variants}) == len(claim.variants)
        assert len({setting.label for setting in claim.settings}) == len(claim.settings)
        for setting in claim.settings:
            replace(TOY.sampler, **setting.changes)


def test_latency_counts_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = measure_latency(torch.device("cpu"), toy=True)["toy model"]
    passes = {way: values["passes"] for way, values in found.items()}
    assert passes == {"next token": 2 * 20, "mask prediction without cache": 4, "mask prediction with cache": 5}
    assert all(values["seconds"] > 0 for values in found.values())
