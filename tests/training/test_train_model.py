"""The decoder's training loop on toy sizes: resumes bit-exactly, leaves what it promises, and learns."""

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lumos.config import read_config
from lumos.data.worlds import WorldsConfig
from lumos.diffusion.sampler import SamplerConfig
from lumos.model_folder import load_model
from lumos.training import checkpoint, run_parts
from lumos.training import train_model as module
from lumos.training.config import Sources, TrainModelConfig
from lumos.training.lora import LoraSettings
from lumos.training.parallel import ParallelConfig
from lumos.training.train_model import train_model
from lumos.training.train_tokenizer import TrainTokenizerConfig
from tests.training.toys import TOY, save_toy_tokenizer, stopped_after_two


@pytest.fixture(scope="module")
def whole(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run."""
    return train_model(TOY, tmp_path_factory.mktemp("run"), tokenizer).parent


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def saved(run: Path, step: int = 4) -> dict[str, Tensor]:
    files = (run / f"checkpoints/step_{step:08d}").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_four_steps_equal_two_resumed_for_two(
    whole: Path, tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random.seed(99)  # nothing of a resumed process but its checkpoint may matter
    torch.manual_seed(99)
    # the learning rate follows the share of max_steps, so half a run is a whole one that is interrupted
    with stopped_after_two(module):
        train_model(TOY, tmp_path, tokenizer)
    said = capsys.readouterr().err
    assert "M parameters on cpu; shapes drawn meanwhile; " in said and "at most 4 steps\n" in said
    assert "stopped at step 2" in said and (tmp_path / "model/model.safetensors").exists()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]
    assert not (tmp_path / "samples").exists()
    torch.manual_seed(7)
    with pytest.MonkeyPatch.context() as patch:  # the vocabulary is that of the run, so no captions are looked at
        patch.setattr(run_parts, "sample_captions", None)
        train_model(TOY, tmp_path, tokenizer, resume=True)
    one, other = saved(whole), saved(tmp_path)
    assert one.keys() == other.keys() and len(one) > 30
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    for file in ("model.safetensors", "config.json", "text_tokenizer.json", "tokenizer/model.safetensors"):
        assert (whole / "model" / file).read_bytes() == (tmp_path / "model" / file).read_bytes(), file
    timed = ("seconds", "samples_per_second", "ids_per_second", "data_wait")
    logs = [[{k: v for k, v in line.items() if k not in timed} for line in metrics(run)] for run in (whole, tmp_path)]
    assert logs[0] == logs[1]


def test_a_resumed_run_skips_what_a_whole_one_skips(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumos.training.learner.USUAL", 1)  # steps until the usual norm is known
    config = replace(TOY, spike=1.0001, log_every=1, seed=3)
    train_model(config, tmp_path / "whole", tokenizer)
    with stopped_after_two(module):
        train_model(config, tmp_path / "halves", tokenizer)
    train_model(config, tmp_path / "halves", tokenizer, resume=True)
    one, other = saved(tmp_path / "whole"), saved(tmp_path / "halves")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    skipped = [[line["skipped"] for line in metrics(tmp_path / run)] for run in ("whole", "halves")]
    assert skipped[0] == skipped[1] and skipped[0][2:] != [0, 0]


def test_the_weights_that_are_left_are_the_average_where_there_is_one(whole: Path, tmp_path: Path, tokenizer: Path) -> None:
    train_model(replace(TOY, optim=replace(TOY.optim, ema=0.0), max_steps=1), tmp_path, tokenizer)
    for run, kind, step in ((whole, "ema", 4), (tmp_path, "model", 1)):
        state, kept = load_model(run / "model")[1].state_dict(), saved(run, step)
        assert all(torch.equal(tensor, kept[f"{kind}/{name}"].bfloat16()) for name, tensor in state.items())
    kept = saved(whole)
    assert not any(torch.equal(kept[f"model/{name}"], kept[f"ema/{name}"]) for name, p in state.items() if p.ndim > 1)


def test_a_run_leaves_weights_samples_and_metrics(whole: Path) -> None:
    names = sorted(path.name for path in (whole / "model").iterdir())
    assert names == ["config.json", "model.safetensors", "text_tokenizer.json", "tokenizer", "words.txt"]
    assert [path.name for path in (whole / "samples").iterdir()] == ["prompts_00000004.png"]
    assert [path.name for path in (whole / "checkpoints").iterdir()] == ["step_00000004"]
    lines = metrics(whole)
    assert [line["step"] for line in lines] == [2, 4]
    expected = {"step", "seconds", "loss_video", "loss_frame_0", "loss_frame_1", "loss_image", "gradient_norm", "learning_rate"}
    expected |= {"skipped", "samples_per_second", "ids_per_second", "data_wait"}
    for line in lines:
        assert line.keys() == expected
        assert line["loss_video"] == pytest.approx((line["loss_frame_0"] + line["loss_frame_1"]) / 2)
        assert 0 < line["learning_rate"] <= TOY.optim.lr and line["gradient_norm"] > 0 and line["samples_per_second"] > 0
        assert 0 < line["data_wait"] < 1 and line["skipped"] == 0
        # two steps: 2 videos of 64 + 3 + 2 * 24 ids and 4 images of 64 + 3 + 24
        assert line["ids_per_second"] / line["samples_per_second"] == pytest.approx((2 * 115 + 4 * 91) / 6)
    assert 0 < lines[0]["seconds"] < lines[1]["seconds"]


def test_a_run_goes_on_with_its_own_tokenizer(whole: Path, tmp_path: Path) -> None:
    before = (whole / "model/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="got tokenizer = "):
        train_model(TOY, whole, save_toy_tokenizer(tmp_path / "other", seed=1), resume=True)
    assert (whole / "model/model.safetensors").read_bytes() == before


def test_a_trained_model_goes_on_with_new_words(whole: Path, tmp_path: Path, tokenizer: Path) -> None:
    config = replace(TOY, new_words=True, text_vocabulary=300, optim=replace(TOY.optim, lr=0.0), max_steps=1, sample_every=9)
    (old, before, *_), (new, after, text, _) = (
        load_model(folder)
        for folder in (whole / "model", train_model(config, tmp_path, tokenizer, sources=Sources(init=whole / "model")))
    )
    assert new.vocabulary.text_size == text.size <= 300 < old.vocabulary.text_size
    assert torch.equal(after.embedding[new.vocabulary.first_code :], before.embedding[old.vocabulary.first_code :])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"accumulate": 4}, "videos must be a multiple of accumulate = 4, got 2"),
        ({"new_words": True, "lora": LoraSettings(rank=4)}, "adapters leave the words as they are"),
        ({"lora": LoraSettings(rank=4), "parallel": ParallelConfig(shard=True)}, "set parallel.shard=false"),
        ({"worlds": WorldsConfig(size=64)}, r"video\.height must be 64, as in worlds, got 32"),
        ({"worlds": replace(TOY.worlds, frames=5)}, r"video\.latest must be a latent frame of the clips, at most 1"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(TOY, **change)


@pytest.mark.parametrize("config", [TOY, TrainTokenizerConfig()])
def test_numbers_outside_their_range_are_refused_by_name(config: TrainModelConfig | TrainTokenizerConfig) -> None:
    good = json.loads(json.dumps(asdict(config)))
    assert read_config(type(config), good, "here") == config
    parts = {name: values for name, values in good.items() if name in ("optim", "parallel", "loader", "lora")}
    tried = 0
    for part, values in (("", good), *parts.items()):
        for name in (name for name, value in values.items() if type(value) in (int, float) and name != "seed"):
            for bad in (-1, float("nan"), 1e300):
                changed = {**values, name: bad}
                with pytest.raises(ValueError, match=rf"here: .*{name}"):
                    read_config(type(config), {**good, part: changed} if part else changed, "here")
                tried += 1
    assert tried > 40


def test_a_sampler_that_cannot_be_is_refused_before_the_work(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(ValueError, match="steps must be 1 to the 16 codes of a frame, got 17"):
        train_model(replace(TOY, sampler=SamplerConfig(steps=17)), tmp_path / "run", tokenizer)
    assert not (tmp_path / "run").exists()


def test_gradients_that_are_no_numbers_are_skipped_and_end_the_run(tmp_path: Path, tokenizer: Path) -> None:
    config = replace(TOY, optim=replace(TOY.optim, lr=float("inf")), max_steps=8, save_every=9, sample_every=9, patience=3)
    with pytest.raises(ValueError, match="got 3 steps in a row that were not, up to step 4"):
        train_model(config, tmp_path, tokenizer)
    assert checkpoint.latest(tmp_path) is None
    assert [line["skipped"] for line in metrics(tmp_path)] == [1]


def test_a_run_that_goes_on_says_from_where(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also that there is nothing to go on with, where a folder's name was mistyped."""
    said = []
    for _ in range(2):
        train_model(replace(TOY, max_steps=1), tmp_path / "run", tokenizer, resume=True)
        said.append(capsys.readouterr().err)
    assert "holds no run to go on with" in said[0] and "from step 1 on" in said[1]
