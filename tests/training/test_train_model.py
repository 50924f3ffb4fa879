"""The decoder's training loop on toy sizes: resumes bit-exactly, is the same however the batch is split, and learns."""

import json
import random
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, multiprocessing
from torch.nn.functional import cross_entropy

from lumos.data.shapes import Batch, ShapesConfig, sample_captions
from lumos.diffusion.sampler import SamplerConfig
from lumos.model.attention import attend_by_block
from lumos.model.transformer import ModelConfig, Transformer
from lumos.model_folder import VideoConfig
from lumos.sequence.layout import Grid, content_ids, pack
from lumos.sequence.vocabulary import small_vocabulary
from lumos.tokenizer.model import TokenizerConfig, VideoTokenizer, save_tokenizer
from lumos.training import checkpoint, parallel
from lumos.training import train_model as module
from lumos.training.optim import OptimConfig
from lumos.training.parallel import Ranks
from lumos.training.train_model import Hidden, TrainModelConfig, backward, generator_of, hide, train_model

VOCABULARY = small_vocabulary(text_size=20, codes=25)
TOY = TrainModelConfig(
    model=ModelConfig(vocabulary=0, layers=1, width=32, heads=1, kv_heads=1, head_width=32, ffn=32),
    video=VideoConfig(height=32, width=32, frames=5, fps=8, slots=64, window=2, latest=2),
    shapes=ShapesConfig(size=32, frames=9, chunk=4, pool=2, reuse=1, workers=0),
    optim=OptimConfig(lr=1e-2, warmup_steps=2, ema=0.9),
    sampler=SamplerConfig(steps=2),
    videos=2,
    images=4,
    image_every=2,
    max_steps=4,
    log_every=2,
    sample_every=4,
    save_every=2,
)
GRID = Grid(4, 4)
ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tokenizer of 25 codes."""
    small = VideoTokenizer(
        TokenizerConfig(levels=(5, 5), encoder_widths=(8, 8), encoder_blocks=(1, 1), decoder_widths=(8, 8), decoder_blocks=(1, 1))
    )
    small.initialise(torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder / "small", small)
    return folder / "small"


@pytest.fixture(autouse=True)
def few_captions() -> Iterator[None]:
    """Enough to make a text vocabulary from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sample_captions", lambda count, seed: sample_captions(300, seed))
        yield


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


def test_four_steps_equal_two_resumed_for_two(tmp_path: Path, tokenizer: Path) -> None:
    train_model(TOY, tmp_path / "whole", tokenizer)
    random.seed(99)  # nothing of a resumed process but its checkpoint may matter
    torch.manual_seed(99)
    interrupted_after_two(TOY, tmp_path / "halves", tokenizer)
    assert [path.stem for path in (tmp_path / "halves/checkpoints").iterdir()] == ["step_00000002"]
    torch.manual_seed(7)
    train_model(TOY, tmp_path / "halves", tokenizer, resume=True)

    whole, halves = (checkpoint.load(tmp_path / run / "checkpoints/step_00000004.safetensors")[0] for run in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert [name for name in whole if not name.startswith("random") and not torch.equal(whole[name], halves[name])] == []
    for file in ("model.safetensors", "config.json", "text_tokenizer.json", "tokenizer/model.safetensors"):
        assert (tmp_path / "whole/model" / file).read_bytes() == (tmp_path / "halves/model" / file).read_bytes(), file
    timed = ("seconds", "samples_per_second")
    logs = [
        [{k: v for k, v in line.items() if k not in timed} for line in metrics(tmp_path / run)] for run in ("whole", "halves")
    ]
    assert logs[0] == logs[1]


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
    others = {"loss_video", "loss_image", "gradient_norm", "learning_rate", "samples_per_second", "seconds"}
    for line in lines:
        assert line.keys() == {"step", *frames, *others}
        assert line["loss_video"] == pytest.approx((line["loss_frame_0"] + line["loss_frame_1"]) / 2)
        assert 0 < line["learning_rate"] <= TOY.optim.lr and line["gradient_norm"] > 0 and line["samples_per_second"] > 0
    assert 0 < lines[0]["seconds"] < lines[1]["seconds"]


def test_ctrl_c_saves_without_making_samples(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted_after_two(TOY, tmp_path, tokenizer)
    assert not (tmp_path / "samples").exists() and (tmp_path / "model/model.safetensors").exists()
    assert "stopped at step 2" in capsys.readouterr().err


def test_a_run_is_neither_overwritten_nor_resumed_as_another(tmp_path: Path, tokenizer: Path) -> None:
    config = replace(TOY, max_steps=1)
    train_model(config, tmp_path / "run", tokenizer)
    before = (tmp_path / "run/model/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="already holds a run"):
        train_model(config, tmp_path / "run", tokenizer)
    with pytest.raises(ValueError, match="got videos = 4 where .* has 2"):
        train_model(replace(config, videos=4), tmp_path / "run", tokenizer, resume=True)
    with pytest.raises(ValueError, match=r"got optim\.lr = 0\.5 where .* has 0\.01"):
        train_model(replace(config, optim=replace(TOY.optim, lr=0.5)), tmp_path / "run", tokenizer, resume=True)
    other = VideoTokenizer(TokenizerConfig((5, 5), (8, 8), (1, 1), (8, 8), (1, 1)))
    other.initialise(torch.Generator().manual_seed(1))
    save_tokenizer(tmp_path / "other", other)
    with pytest.raises(ValueError, match="got tokenizer = "):
        train_model(config, tmp_path / "run", tmp_path / "other", resume=True)
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == before
    longer = replace(config, max_steps=2, save_every=7, accumulate=2, shapes=replace(TOY.shapes, reuse=1, workers=0))
    train_model(longer, tmp_path / "run", tokenizer, resume=True)  # a longer budget is fine
    assert checkpoint.latest(tmp_path / "run") == tmp_path / "run/checkpoints/step_00000002.safetensors"


def test_settings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="videos must be a multiple of accumulate = 4, got 2"):
        replace(TOY, accumulate=4)
    with pytest.raises(ValueError, match=r"video\.height must be 64, as in shapes, got 32"):
        replace(TOY, shapes=replace(TOY.shapes, size=64))
    with pytest.raises(ValueError, match=r"video\.latest must be a latent frame of the clips, at most 1"):
        replace(TOY, shapes=replace(TOY.shapes, frames=5))


def test_the_loss_falls_on_a_few_clips(tmp_path: Path, tokenizer: Path) -> None:
    few = ShapesConfig(size=32, frames=9, chunk=4, pool=1, reuse=1000, workers=0)
    config = replace(TOY, shapes=few, videos=4, image_every=0, max_steps=30, log_every=5, sample_every=99, save_every=99)
    train_model(config, tmp_path, tokenizer)
    losses = [line["loss_video"] for line in metrics(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, tokenizer: Path) -> None:
    config = replace(TOY, optim=replace(TOY.optim, lr=float("inf")))
    with pytest.raises(ValueError, match="must stay finite, got nan at step 2"):
        train_model(config, tmp_path, tokenizer)
    assert checkpoint.latest(tmp_path) is None and not (tmp_path / "metrics.jsonl").exists()


def test_every_rank_step_and_seed_draws_its_own() -> None:
    drawn = [torch.rand(1, generator=generator_of(*of)).item() for of in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len(set(drawn)) == 4
    assert drawn[1] == torch.rand(1, generator=generator_of(1, 0, 0)).item()


def test_windows_and_dropped_prompts_come_as_often_as_asked() -> None:
    codes_BTHW = torch.arange(3)[None, :, None, None].expand(50, 3, 4, 4)  # every code says its latent frame
    batch = Batch(torch.zeros(50, 64, dtype=torch.int64), torch.full((50,), 9), codes_BTHW)
    draws = [hide(batch, False, TOY, GRID, generator_of(0, 0, step)) for step in range(200)]
    for each in draws:
        assert each.codes_BTHW[0, :, 0, 0].tolist() == [each.first, each.first + 1]
    assert {each.first for each in draws} == {0, 1}
    assert sum(each.first > 0 for each in draws) / 200 == pytest.approx(TOY.late_windows, abs=0.1)
    dropped = torch.cat([each.length_B for each in draws]) == 0
    assert dropped.float().mean().item() == pytest.approx(TOY.drop_text, abs=0.02)
    image = hide(batch._replace(codes_BTHW=codes_BTHW[:, :1]), True, TOY, GRID, generator_of(0, 0, 0))
    assert image.codes_BTHW.shape[1] == image.mask.shape[1] == 1 and image.first == 0


def build() -> Transformer:
    model = Transformer(replace(TOY.model, vocabulary=VOCABULARY.size))
    model.initialise(torch.Generator().manual_seed(3))
    return model


def masked_batch() -> Hidden:
    """Four samples whose mask ratios differ, so that halves of them have different numbers of masked codes."""
    draw = torch.Generator().manual_seed(1)
    text_BS = torch.randint(20, (4, 64), generator=draw)
    codes_BTHW = torch.randint(25, (4, 3, 4, 4), generator=draw)
    batch = hide(Batch(text_BS, torch.tensor([7, 0, 9, 12]), codes_BTHW), False, TOY, GRID, draw)
    assert batch.mask[:2].sum() != batch.mask[2:].sum()
    return batch


def gradients(batch: Hidden, config: TrainModelConfig, ranks: Ranks) -> dict[str, Tensor]:
    model = build()
    backward(model, VOCABULARY, GRID, batch, False, config, ranks)
    parallel.average_gradients(model.parameters(), ranks)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_are_those_of_the_mean_over_all_masked_codes() -> None:
    batch, model = masked_batch(), build()
    loss_T = backward(model, VOCABULARY, GRID, batch, False, TOY, ALONE)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}

    plain = build()
    content = torch.where(batch.mask, VOCABULARY.mask, content_ids(VOCABULARY, batch.codes_BTHW))
    packed = pack(VOCABULARY, GRID, batch.text_BS, batch.length_B, content, 1, 8, batch.first)
    hidden_BLD = plain(packed.ids_BL, packed.position_BL3, attend_by_block(packed.block_BL))
    target_BTHW = batch.mask[..., :-1]
    is_masked = (packed.ids_BL == VOCABULARY.mask).view(4, -1)
    is_newline = torch.zeros_like(content, dtype=torch.bool)
    is_newline[..., -1] = True
    logits = plain.logits(hidden_BLD[is_masked][~is_newline[batch.mask]], VOCABULARY.first_code, VOCABULARY.codes)
    loss_M = cross_entropy(logits, batch.codes_BTHW[target_BTHW], reduction="none")
    loss_M.mean().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    frame_M = target_BTHW.nonzero()[:, 1]
    torch.testing.assert_close(loss_T, torch.stack([loss_M[frame_M == t].mean() for t in range(2)]).detach())


def test_a_batch_in_parts_equals_the_whole() -> None:
    whole, parts = (gradients(masked_batch(), replace(TOY, videos=4, accumulate=parts), ALONE) for parts in (1, 4))
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient)


def worker(rank: int, world: int, port: int, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}.items():
            patch.setenv(name, str(value))
        patch.setenv("MASTER_ADDR", "localhost")
        torch.set_num_threads(1)
        ranks = parallel.start()
        save_file(gradients(masked_batch().part(slice(2 * rank, 2 * rank + 2)), TOY, ranks), out / f"{rank}.safetensors")
        parallel.finish(ranks)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (2, port, tmp_path), nprocs=2)
    alone = gradients(masked_batch(), TOY, ALONE)
    for rank in (0, 1):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(found[name], gradient)
