"""The decoder's training loop on toy sizes: resumes bit-exactly, is the same however the batch is split, and learns."""

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
from lumos.data.shapes import ShapesConfig
from lumos.model_folder import load_model
from lumos.training import checkpoint
from lumos.training import train_model as module
from lumos.training.config import TrainModelConfig
from lumos.training.lora import LoraSettings
from lumos.training.parallel import ParallelConfig
from lumos.training.train_model import train_model
from lumos.training.train_tokenizer import TrainTokenizerConfig
from lumos.weights import find_weights
from tests.training.toys import TOY, save_toy_tokenizer


class ClockThatStopsAfterTwo(module.Clock):
    def progress(self, step: int) -> float:
        progress = super().progress(step)
        self.interrupted = step == 2
        return progress


def interrupted_after_two(config: TrainModelConfig, out: Path, tokenizer: Path) -> None:
    # the learning rate follows the share of max_steps, so half a run is a whole one that is interrupted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Clock", ClockThatStopsAfterTwo)
        train_model(config, out, tokenizer)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def saved(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_four_steps_equal_two_resumed_for_two(tmp_path: Path, tokenizer: Path) -> None:
    train_model(TOY, tmp_path / "whole", tokenizer)
    random.seed(99)  # nothing of a resumed process but its checkpoint may matter
    torch.manual_seed(99)
    interrupted_after_two(TOY, tmp_path / "halves", tokenizer)
    assert [path.name for path in (tmp_path / "halves/checkpoints").iterdir()] == ["step_00000002"]
    torch.manual_seed(7)
    train_model(TOY, tmp_path / "halves", tokenizer, resume=True)

    whole, halves = (saved(tmp_path / run / "checkpoints/step_00000004") for run in ("whole", "halves"))
    assert whole.keys() == halves.keys() and len(whole) > 30
    assert [name for name in whole if not torch.equal(whole[name], halves[name])] == []
    for file in ("model.safetensors", "config.json", "text_tokenizer.json", "tokenizer/model.safetensors"):
        assert (tmp_path / "whole/model" / file).read_bytes() == (tmp_path / "halves/model" / file).read_bytes(), file
    timed = ("seconds", "samples_per_second", "ids_per_second", "data_wait")
    logs = [
        [{k: v for k, v in line.items() if k not in timed} for line in metrics(tmp_path / run)] for run in ("whole", "halves")
    ]
    assert logs[0] == logs[1]


def test_a_resumed_run_skips_what_a_whole_one_skips(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumos.training.learner.USUAL", 1)  # steps until the usual norm is known
    config = replace(TOY, spike=1.0001, log_every=1)
    train_model(config, tmp_path / "whole", tokenizer)
    interrupted_after_two(config, tmp_path / "halves", tokenizer)
    train_model(config, tmp_path / "halves", tokenizer, resume=True)
    whole, halves = (saved(tmp_path / run / "checkpoints/step_00000004") for run in ("whole", "halves"))
    assert [name for name in whole if not torch.equal(whole[name], halves[name])] == []
    skipped = [[line["skipped"] for line in metrics(tmp_path / run)] for run in ("whole", "halves")]
    assert skipped[0] == skipped[1] and skipped[0][2:] != [0, 0]


def test_the_weights_that_are_left_are_the_average(tmp_path: Path, tokenizer: Path) -> None:
    _, model, _, _ = load_model(train_model(TOY, tmp_path, tokenizer))
    kept = saved(tmp_path / "checkpoints/step_00000004")
    own, average = ({name: kept[f"{kind}/{name}"].bfloat16() for name in model.state_dict()} for kind in ("model", "ema"))
    assert all(torch.equal(tensor.bfloat16(), average[name]) for name, tensor in model.state_dict().items())
    assert not any(torch.equal(own[name], average[name]) for name in own if own[name].ndim > 1)
    without = replace(TOY, optim=replace(TOY.optim, ema=0.0), max_steps=1)
    _, model, _, _ = load_model(train_model(without, tmp_path / "without", tokenizer))
    kept = saved(tmp_path / "without/checkpoints/step_00000001")
    assert all(torch.equal(tensor.bfloat16(), kept[f"model/{name}"].bfloat16()) for name, tensor in model.state_dict().items())


def test_a_kill_between_two_renames_leaves_weights_for_every_reader(tmp_path: Path, tokenizer: Path) -> None:
    folder = train_model(replace(TOY, max_steps=1), tmp_path, tokenizer)
    before = {path.name for path in folder.iterdir()}
    folder.rename(folder.with_name(".model.previous"))  # a save puts the old folder here before the new one takes its place
    assert find_weights(folder, "model") == folder and {path.name for path in folder.iterdir()} == before


def test_a_run_leaves_weights_samples_and_metrics(tmp_path: Path, tokenizer: Path) -> None:
    folder = train_model(TOY, tmp_path, tokenizer)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "text_tokenizer.json",
        "tokenizer",
    ]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["prompts_00000004.png"]
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [2, 4]
    frames = {"loss_frame_0", "loss_frame_1"}
    others = {"loss_video", "loss_image", "gradient_norm", "learning_rate", "seconds", "skipped"}
    others |= {"samples_per_second", "ids_per_second", "data_wait"}
    for line in lines:
        assert line.keys() == {"step", *frames, *others}
        assert line["loss_video"] == pytest.approx((line["loss_frame_0"] + line["loss_frame_1"]) / 2)
        assert 0 < line["learning_rate"] <= TOY.optim.lr and line["gradient_norm"] > 0 and line["samples_per_second"] > 0
        assert 0 < line["data_wait"] < 1 and line["skipped"] == 0
        # two steps: 2 videos of 64 + 3 + 2 * 24 ids and 4 images of 64 + 3 + 24
        assert line["ids_per_second"] / line["samples_per_second"] == pytest.approx((2 * 115 + 4 * 91) / 6)
    assert 0 < lines[0]["seconds"] < lines[1]["seconds"]


def test_ctrl_c_saves_without_making_samples(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted_after_two(TOY, tmp_path, tokenizer)
    assert not (tmp_path / "samples").exists() and (tmp_path / "model/model.safetensors").exists()
    assert "stopped at step 2" in capsys.readouterr().err


def test_a_run_is_neither_overwritten_nor_resumed_as_another(tmp_path: Path, tokenizer: Path) -> None:
    config = replace(TOY, max_steps=1)
    train_model(config, tmp_path / "run", tokenizer)
    before = (tmp_path / "run/model/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="got videos = 4 where .* has 2"):
        train_model(replace(config, videos=4), tmp_path / "run", tokenizer, resume=True)
    save_toy_tokenizer(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="got tokenizer = "):
        train_model(config, tmp_path / "run", tmp_path / "other", resume=True)
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == before
    longer = replace(config, max_steps=2, save_every=7, accumulate=2, shapes=replace(TOY.shapes, reuse=1, workers=0))
    train_model(longer, tmp_path / "run", tokenizer, resume=True)  # a longer budget is fine
    assert checkpoint.latest(tmp_path / "run") == tmp_path / "run/checkpoints/step_00000002"


def test_a_trained_model_goes_on_with_new_words(tmp_path: Path, tokenizer: Path) -> None:
    config = replace(TOY, max_steps=1, sample_every=9)
    first = train_model(config, tmp_path / "first", tokenizer)
    again = replace(config, new_words=True, text_vocabulary=150, optim=replace(TOY.optim, lr=0.0))
    second = train_model(again, tmp_path / "second", tokenizer, init=first)
    (old, before, *_), (new, after, text, _) = load_model(first), load_model(second)
    assert new.vocabulary.text_size == text.size <= 150 < old.vocabulary.text_size
    assert torch.equal(after.embedding[new.vocabulary.first_code :], before.embedding[old.vocabulary.first_code :])
    with pytest.raises(ValueError, match="adapters leave the words as they are"):
        replace(again, lora=LoraSettings(rank=4))


def test_settings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="videos must be a multiple of accumulate = 4, got 2"):
        replace(TOY, accumulate=4)
    with pytest.raises(ValueError, match=r"optim\.muon needs whole matrices"):
        replace(TOY, optim=replace(TOY.optim, muon=1.0), parallel=ParallelConfig(shard=True))
    with pytest.raises(ValueError, match="set parallel.shard=false"):
        replace(TOY, lora=LoraSettings(rank=4), parallel=ParallelConfig(shard=True))
    with pytest.raises(ValueError, match=r"video\.height must be 64, as in shapes, got 32"):
        replace(TOY, shapes=replace(TOY.shapes, size=64))
    with pytest.raises(ValueError, match=r"video\.latest must be a latent frame of the clips, at most 1"):
        replace(TOY, shapes=replace(TOY.shapes, frames=5))


@pytest.mark.parametrize("kind", [TrainModelConfig, TrainTokenizerConfig])
def test_numbers_outside_their_range_are_refused_by_name(kind: type[Any]) -> None:
    good = json.loads(json.dumps(asdict(TOY if kind is TrainModelConfig else TrainTokenizerConfig())))
    assert read_config(kind, good, "here")
    parts = {name: values for name, values in good.items() if name in ("optim", "parallel", "loader", "lora")}
    tried = 0
    for part, values in (("", good), *parts.items()):
        for name in (name for name, value in values.items() if type(value) in (int, float) and name != "seed"):
            for bad in (-1, float("nan"), 1e300):
                changed = {**values, name: bad}
                with pytest.raises(ValueError, match=rf"here: .*{name}"):
                    read_config(kind, {**good, part: changed} if part else changed, "here")
                tried += 1
    assert tried > 40


def test_the_loss_falls_on_a_few_clips(tmp_path: Path, tokenizer: Path) -> None:
    few = ShapesConfig(size=32, frames=9, chunk=4, pool=1, reuse=1000, workers=0)
    config = replace(TOY, shapes=few, videos=4, image_every=0, max_steps=30, log_every=5, sample_every=99, save_every=99)
    train_model(config, tmp_path, tokenizer)
    losses = [line["loss_video"] for line in metrics(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]


def test_gradients_that_are_no_numbers_are_skipped_and_end_the_run(tmp_path: Path, tokenizer: Path) -> None:
    config = replace(TOY, optim=replace(TOY.optim, lr=float("inf")), max_steps=8, save_every=9, sample_every=9, patience=3)
    with pytest.raises(ValueError, match="got 3 steps in a row that were not, up to step 4"):
        train_model(config, tmp_path, tokenizer)
    assert checkpoint.latest(tmp_path) is None
    assert [line["skipped"] for line in metrics(tmp_path)] == [1]
