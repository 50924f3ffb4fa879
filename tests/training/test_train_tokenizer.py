"""The tokenizer's training loop on toy sizes: resumes bit-exactly, learns, and leaves what it promises."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lumos.data.clips import Cut
from lumos.data.prepare import PrepareConfig, prepare_shards
from lumos.data.worlds import Shapes, WorldBatches, open_worlds
from lumos.ranks import ALONE
from lumos.tokenizer.model import TokenizerConfig, load_tokenizer
from lumos.training import train_tokenizer as module
from lumos.training.config import Sources
from lumos.training.optim import OptimConfig
from lumos.training.train_tokenizer import TrainTokenizerConfig, clips_of_worlds, new_tokenizer, pixel_batches, train_tokenizer
from lumos.worlds.shapes.render import render
from tests.training.toys import stopped_after_two

TOY = TrainTokenizerConfig(
    tokenizer=TokenizerConfig((5, 5), (8, 8), (1, 1), (8, 8), (1, 1)),
    optim=OptimConfig(lr=3e-3, warmup_steps=2, ema=0.9),
    batch=2,
    size=16,
    frames=5,
    max_steps=4,
    workers=0,
    log_every=2,
    evaluate_every=4,
    evaluation_clips=3,
    save_every=2,
    keep=1,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run."""
    run = tmp_path_factory.mktemp("tokenizer-run")
    train_tokenizer(TOY, run)
    return run


def saved(run: Path) -> dict[str, Tensor]:
    return load_file(next((run / "checkpoints/step_00000004").glob("*.safetensors")))


def test_four_steps_equal_two_resumed_for_two(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random.seed(99)  # nothing of a resumed process but its checkpoint may matter
    torch.manual_seed(99)
    config = replace(TOY, save_every=3, evaluate_every=3, keep=2)
    with stopped_after_two(module):
        train_tokenizer(config, tmp_path)
    err = capsys.readouterr().err
    assert "interrupted" in err and "held-out" not in err
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]
    made = train_tokenizer(config, tmp_path, resume=True)
    err = capsys.readouterr().err
    assert err.count("on held-out clips") == 2 and "finished: step 4" in err
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000003", "step_00000004"]
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), made.parameters(), strict=True))
    one, other = saved(whole), saved(tmp_path)
    assert one.keys() == other.keys() and len(one) > 30
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_run_leaves_averaged_weights_samples_and_metrics(whole: Path) -> None:
    loaded, kept = load_tokenizer(whole / "tokenizer"), saved(whole)
    assert all(torch.equal(parameter, kept[f"ema/{name}"]) for name, parameter in loaded.named_parameters())
    assert not any(torch.equal(parameter, kept[f"model/{name}"]) for name, parameter in loaded.named_parameters())
    samples, checkpoints = ([*(whole / folder).iterdir()] for folder in ("samples", "checkpoints"))
    assert [path.name for path in (*samples, *checkpoints)] == ["reconstruction_00000004.png", "step_00000004"]
    with Image.open(samples[0]) as picture:
        assert picture.width >= 5 * 16 and picture.height >= 2 * TOY.batch * 16  # five frames of clips and reconstructions
    metrics = (whole / "metrics.jsonl").read_text()
    assert metrics.count('"psnr"') == 1 and '"codes_used"' in metrics and metrics.count('"loss"') == 2


def test_ranks_share_the_scenes_of_one() -> None:
    whole = WorldBatches(Shapes(), 3, 4)
    shares = [WorldBatches(Shapes(), 3, 2, rank, 2) for rank in (0, 1)]
    for step in (0, 7):
        assert torch.equal(whole[step].objects_BNP, torch.cat([share[step].objects_BNP for share in shares]))
    for other in (whole[1], WorldBatches(Shapes(), 4, 4)[0]):
        assert not torch.equal(whole[0].objects_BNP, other.objects_BNP)


def test_a_batch_has_clips_of_every_world_that_has_a_share(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (250, 0, 0, 255)).save(tmp_path / "red.png")
    (tmp_path / "red.jsonl").write_text('{"path": "red.png", "noun": "cat", "captions": ["red"], "mirror": true}')
    config = replace(TOY, batch=8, stickers=0.25)
    assert clips_of_worlds(config, 8) == {"stickers": 2, "shapes": 6}
    shares = replace(config, creatures=0.25, workers=3).worlds
    assert (shares.shapes, shares.stickers, shares.creatures, shares.workers) == (0.5, 0.25, 0.25, 3)
    assert clips_of_worlds(replace(config, stickers=0.01, creatures=0.85), 8) == {"stickers": 1, "creatures": 7}
    with pytest.raises(ValueError, match="room for a clip of each world, got 1"):
        clips_of_worlds(replace(config, stickers=0.5, creatures=0.5), 1)
    with pytest.raises(ValueError, match="room for a clip of each world, got 1"):
        train_tokenizer(replace(config, batch=1, stickers=0.5, creatures=0.5), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="at most 1 together, got 1.2"):
        replace(config, stickers=0.6, creatures=0.6)
    worlds = open_worlds(config.worlds, tmp_path / "red.jsonl", None)
    batches = pixel_batches(config, worlds, None, ALONE, 3)
    pixels_BCFHW = next(batches)
    assert pixels_BCFHW.shape == (8, 3, TOY.frames, TOY.size, TOY.size)
    assert ((pixels_BCFHW[:2, 0] > 0.8) & (pixels_BCFHW[:2, 1] < -0.5)).flatten(1).any(1).all()  # the red sticker
    shapes = Shapes().draw([random.Random(f"{TOY.seed} {number}") for number in range(18, 24)], image=False)[0]
    torch.testing.assert_close(pixels_BCFHW[2:], render(shapes, TOY.frames, TOY.size, TOY.fps))


def test_real_clips_beside_shapes(tmp_path: Path) -> None:
    """Picture shards take their share of a batch; a run on them resumes exactly, and only on them."""
    (tmp_path / "in").mkdir()
    for number in range(24):
        frames = [Image.new("RGB", (16, 16), (10 * number, 5 * time, 99)) for time in range(9)]
        frames[0].save(tmp_path / "in" / f"{number}.webp", save_all=True, append_images=frames[1:], duration=125)
    prepare_shards(tmp_path / "in", tmp_path / "pictures", PrepareConfig(Cut(9, 8.0, ((16, 16),), step=1)), None, ALONE)
    data = str(tmp_path / "pictures")
    config = replace(TOY, batch=2, data_share=0.5, optim=replace(TOY.optim, schedule="constant"))
    one = train_tokenizer(config, tmp_path / "one", sources=Sources(data=data))
    assert "data_psnr" in (tmp_path / "one" / "metrics.jsonl").read_text()
    train_tokenizer(replace(config, max_steps=2), tmp_path / "two", sources=Sources(data=data))
    two = train_tokenizer(config, tmp_path / "two", resume=True, sources=Sources(data=data))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    with pytest.raises(ValueError, match="keep its config"):
        train_tokenizer(config, tmp_path / "two", resume=True)
    only = train_tokenizer(
        replace(config, data_share=1.0), tmp_path / "only", sources=Sources(data=data, init=tmp_path / "one" / "tokenizer")
    )
    assert not torch.equal(next(only.parameters()), next(one.parameters()))


@pytest.mark.parametrize("decoder_only", [True, False])
def test_training_the_decoder_alone_keeps_every_code(whole: Path, tmp_path: Path, decoder_only: bool) -> None:
    before = load_tokenizer(whole / "tokenizer")
    after = train_tokenizer(replace(TOY, decoder_only=decoder_only, seed=1), tmp_path, sources=Sources(init=whole / "tokenizer"))
    changed = {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])}
    assert changed and all(name.startswith("decoder.") for name in changed) == decoder_only
    pixels_BCFHW = torch.rand(2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(before.encode(pixels_BCFHW), after.encode(pixels_BCFHW)) or not decoder_only


def test_weights_to_start_from_are_asked_for_and_must_fit(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"decoder_only must start from a trained tokenizer, got none; name one with --init"):
        new_tokenizer(replace(TOY, decoder_only=True), None)
    with pytest.raises(ValueError, match="must hold a tokenizer of shape"):
        new_tokenizer(replace(TOY, tokenizer=TokenizerConfig((8, 8))), whole / "tokenizer")
