"""Training on shards, on a mix with shapes, and of adapters: exact resumes, words from the captions, foreign shards refused."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lumos.data.batch import Schedule
from lumos.data.loader import EpochPlan, LoaderConfig, ShardStream
from lumos.data.shards import CODES, open_shards, pack_codes, write_shard
from lumos.generate import Generator
from lumos.model_folder import load_model
from lumos.ranks import ALONE
from lumos.tokenizer.model import load_tokenizer
from lumos.training import train_model as module
from lumos.training.config import Sources
from lumos.training.lora import LoraSettings
from lumos.training.parallel import ParallelConfig
from lumos.training.run_parts import gather_parts
from lumos.training.train_model import train_model
from lumos.weights import fingerprint
from tests.training.toys import TOY as SMALL
from tests.training.toys import save_toy_tokenizer

TOY = replace(SMALL, optim=replace(SMALL.optim, schedule="constant"), sample_every=100)


@pytest.fixture(scope="module")
def shards(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    mark, generator = fingerprint(load_tokenizer(tokenizer)), torch.Generator().manual_seed(0)
    rows: list[dict[str, Any]] = []
    for number in range(12):
        T, H, W = (3, 4, 4) if number % 2 else (2, 4, 8)  # longer than the window, and of another shape
        codes_THW = torch.randint(25, (T, H, W), generator=generator)
        row = {"codes": pack_codes(codes_THW), "T": T, "H": H, "W": W, "captions": ["zebras quiz", "\u732b"], "fps": 8.0}
        rows.append({**row, "frames": 4 * T - 3, "source": "x", "start": 0.0, "mirrored": False, "tokenizer": mark})
    write_shard(folder / "000000.parquet", CODES, mark, rows, [])
    return folder


@pytest.fixture(scope="module")
def base(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the worlds alone."""
    return train_model(TOY, tmp_path_factory.mktemp("base"), tokenizer).parent


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sample_sheet", lambda *args: None)
    monkeypatch.setattr("lumos.training.metrics.RunLog.picture", lambda *args: None)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_two_halves_equal_one_run(share: float, tokenizer: Path, shards: Path, base: Path, tmp_path: Path) -> None:
    config = replace(TOY, data_share=share)
    train_model(config, tmp_path / "one", tokenizer, sources=Sources(data=str(shards)))
    train_model(replace(config, max_steps=2), tmp_path / "two", tokenizer, sources=Sources(data=str(shards)))
    other_threads = replace(config, loader=LoaderConfig(workers=1, ahead=1))
    train_model(other_threads, tmp_path / "two", tokenizer, resume=True, sources=Sources(data=str(shards)))
    assert same(tmp_path / "one", tmp_path / "two")
    assert not same(tmp_path / "one", base)


def test_a_model_without_shapes_knows_the_captions_words(tokenizer: Path, shards: Path, tmp_path: Path) -> None:
    train_model(replace(TOY, worlds=None), tmp_path / "run", tokenizer, sources=Sources(data=str(shards)))
    _, _, text, _ = load_model(tmp_path / "run" / "model")
    assert len(text.encode("zebras quiz")) == 2  # a word an id: they were in the captions that the vocabulary was made from


def test_a_mix_takes_from_both(tokenizer: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[bool, bool]] = []  # of each step: images, from the shards
    real = ShardStream.batch

    def noted(self: ShardStream, step: int, draw: torch.Generator) -> Any:
        batch = real(self, step, draw)
        chosen.append((batch.codes_BTHW.shape[1] == 1, self._place(step) is not None))
        return batch

    monkeypatch.setattr(ShardStream, "batch", noted)
    train_model(replace(TOY, data_share=0.5, max_steps=8), tmp_path / "run", tokenizer, sources=Sources(data=str(shards)))
    assert Counter(chosen) == {(image, sharded): 2 for image in (True, False) for sharded in (True, False)}


def test_adapters_leave_the_weights_alone_and_resume(tokenizer: Path, shards: Path, base: Path, tmp_path: Path) -> None:
    tuned, sources = replace(TOY, lora=LoraSettings(rank=2), seed=5), Sources(data=str(shards), init=base / "model")
    train_model(tuned, tmp_path / "one", tokenizer, sources)
    train_model(replace(tuned, max_steps=2), tmp_path / "two", tokenizer, sources)
    train_model(tuned, tmp_path / "two", tokenizer, sources, resume=True)
    assert same(tmp_path / "one", tmp_path / "two")
    before, after = weights(base), weights(tmp_path / "one")
    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"query_key_value", "attention_out", "ffn_gate_up", "ffn_down"}

    for recompute, compiled in (("off", "static"), ("full", "off")):
        plan = ParallelConfig(recompute=recompute)  # type: ignore[arg-type]
        parts = gather_parts(replace(tuned, parallel=plan), tokenizer, Sources(init=base / "model"), ALONE)
        assert parts.config.parallel.compile == compiled

    merged = Generator.from_folder(tmp_path / "one" / "model", "cpu")("a red circle", seed=1)
    beside = Generator.from_folder(base / "model", "cpu", lora=tmp_path / "one" / "lora")("a red circle", seed=1)
    with pytest.raises(ValueError, match="holds the adapter"):
        Generator.from_folder(tmp_path / "one", "cpu", lora=tmp_path / "one" / "lora")
    assert torch.equal(merged, beside)


def test_runs_that_cannot_start(tokenizer: Path, shards: Path, tmp_path: Path) -> None:
    save_toy_tokenizer(tmp_path / "other", seed=1)
    for config, data, words in (
        (replace(TOY, worlds=None), None, "trains on shards, got none; give --data FOLDER"),
        (replace(TOY, worlds=None, video=replace(TOY.video, fps=12)), str(shards), "video.fps must be 8, as in"),
        (replace(TOY, lora=LoraSettings(rank=2)), str(shards), "give --init NAME or FOLDER"),
        (TOY, "nowhere", "nowhere must be a folder of shards"),
        (replace(TOY, videos=13), str(shards), "13 videos of a step on all GPUs, got 12; use --set videos=12, or more"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            train_model(config, tmp_path / "run", tokenizer, sources=Sources(data=data))
    with pytest.raises(ValueError, match="must be made with this tokenizer"):
        train_model(TOY, tmp_path / "run", tmp_path / "other", sources=Sources(data=str(shards)))
    index = open_shards(str(shards))
    for image, schedule, words in (
        (True, Schedule(2, 4, 2, world=10), "the 40 images of a step on all GPUs, got 12; use --set images=1, or more clips"),
        (False, Schedule(1, 4, 0, world=13), "got 12; use at most 12 GPUs, or more clips"),
    ):
        with pytest.raises(ValueError, match=words):
            EpochPlan(index, image, schedule, 2**20).check("there")
    EpochPlan(index, True, Schedule(100, 2, 1, world=6), 2**20).check("there")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_shards(tokenizer: Path, shards: Path, tmp_path: Path) -> None:
    train_model(replace(TOY, max_steps=1), tmp_path / "run", tokenizer, sources=Sources(data=str(shards)))
    shutil.copytree(shards, tmp_path / "more")
    shutil.copy(shards / "000000.parquet", tmp_path / "more/000001.parquet")
    with pytest.raises(ValueError, match="data = .* where"):
        train_model(TOY, tmp_path / "run", tokenizer, resume=True, sources=Sources(data=str(tmp_path / "more")))
