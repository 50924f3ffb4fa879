"""Checkpoints of all ranks: whole or not there, the same for any number of ranks, refused when damaged or of another model."""

import os
import shutil
import socket
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing

from lumos.model.transformer import ModelConfig, Transformer
from lumos.training import checkpoint, parallel
from lumos.training.optim import Ema, OptimConfig, build_optimizer
from lumos.training.parallel import ParallelConfig, Ranks, whole
from lumos.training.shared_checkpoint import Saver, find, latest, load, read_state, tensors_of

MODEL = ModelConfig(vocabulary=50, layers=1, width=32, heads=1, kv_heads=1, head_width=32, ffn=32)
ALONE = Ranks(0, 1, torch.device("cpu"))


class Run:
    """A model in training: a step moves every weight by something that depends on its place and its history."""

    def __init__(self, ranks: Ranks = ALONE, shard: bool = False, seed: int = 0, shape: ModelConfig = MODEL) -> None:
        self.ranks = ranks
        self.model: Transformer = parallel.build(shape, ParallelConfig(shard=shard), ranks, seed)
        self.optimizer = build_optimizer(self.model, OptimConfig())
        self.ema = Ema(self.model, 0.9)

    def step(self, number: int) -> None:
        for parameter in self.model.parameters():
            parameter.grad = (parameter * (number + 1)).detach().cos()
        self.optimizer.step()
        self.ema.update(self.model, number)

    def tensors(self) -> dict[str, Tensor]:
        return tensors_of(self.model, self.optimizer, self.ema)

    def values(self) -> dict[str, Tensor]:
        return {name: whole(tensor).clone() for name, tensor in self.tensors().items()}

    def load(self, path: Path) -> None:
        load(path, self.model, self.optimizer, self.ema, self.ranks)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and len(one) > 40 and all(torch.equal(one[name], other[name]) for name in one)


def saved(folder: Path, steps: list[int], keep: int = 2) -> Run:
    run, saver = Run(), Saver(folder, ALONE, keep)
    for step in range(max(steps)):
        run.step(step)
        if step + 1 in steps:
            saver.save(step + 1, run.tensors(), {"note": f"after {step + 1}"})
    saver.wait()
    return run


def test_what_comes_back_is_what_was_there_while_training_went_on(tmp_path: Path) -> None:
    run, saver = Run(), Saver(tmp_path, ALONE, 2)
    run.step(0)
    then = run.values()
    saver.save(1, run.tensors(), {"note": "here"})
    run.step(1)  # while the checkpoint is being written
    saver.wait()
    other = Run(seed=9)
    other.load(tmp_path / "checkpoints/step_00000001")
    assert equal(other.values(), then)
    assert read_state(tmp_path / "checkpoints/step_00000001")["note"] == "here"
    other.step(1)
    assert equal(other.values(), run.values())


def test_leftovers_of_a_kill_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for name in ("thesis.partial", "step_old.partial", "step_00000001.partial"):
        (folder / name).mkdir(parents=True)
    saved(tmp_path, [2])
    assert {path.name for path in folder.iterdir()} == {"thesis.partial", "step_old.partial", "step_00000002"}


def test_the_newest_are_kept_and_nothing_can_run_code(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    saved(tmp_path, [1, 2, 3], keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000002", "step_00000003"]
    newest = latest(tmp_path)
    assert newest is not None and newest.name == "step_00000003"
    assert {path.suffix for path in newest.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failure_at_any_moment_leaves_the_last_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    run = saved(tmp_path, [1])
    then, saver = run.values(), Saver(tmp_path, ALONE, 2)

    def fails(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    run.step(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, moment, fails)
        saver.save(2, run.tensors(), {})
        with pytest.raises(OSError, match="could not write a checkpoint .*No space left on device"):
            saver.wait()
    newest = latest(tmp_path)
    assert newest is not None and newest.name == "step_00000001"
    other = Run(seed=9)
    other.load(newest)
    assert equal(other.values(), then)
    saver.save(3, run.tensors(), {})
    saver.wait()
    assert not list((tmp_path / "checkpoints").glob("*.partial")), "leftovers go with the next checkpoint"


def test_a_disk_without_room_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(OSError, match=r"must have room for a checkpoint of 0\.\d\d GiB, got 0\.00 GiB; free some space"):
        Saver(tmp_path, ALONE, 2).save(1, Run().tensors(), {})
    assert latest(tmp_path) is None


def test_a_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    assert find(tmp_path, resume=False) is None and find(tmp_path, resume=True) is None
    checkpoint.save(tmp_path, 1, {"x": torch.arange(3)}, {})
    with pytest.raises(ValueError, match=r"got step_00000001\.safetensors of an earlier version"):
        find(tmp_path, resume=True)
    saved(tmp_path, [2])
    assert find(tmp_path, resume=True) == tmp_path / "checkpoints/step_00000002"
    with pytest.raises(ValueError, match="resume it"):
        find(tmp_path, resume=False)


def test_damaged_checkpoints_and_those_of_another_model_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, [1])
    path = tmp_path / "checkpoints/step_00000001"
    with pytest.raises(ValueError, match=r"is of another model: model/embedding must have shape \[60, 32\], got \[50, 32\]"):
        Run(shape=replace(MODEL, vocabulary=60)).load(path)
    with pytest.raises(ValueError, match=r"is of another model: it lacks model/layers\.1\."):
        Run(shape=replace(MODEL, layers=2)).load(path)
    state = (path / "state.json").read_text()
    for broken in ("", "{", '{"format": "other"}'):
        (path / "state.json").write_text(broken)
        with pytest.raises(ValueError, match="is damaged|must be of format"):
            read_state(path)
    (path / "state.json").write_text(state)
    file = next(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged .*delete it to go on from an earlier one"):
        Run().load(path)


def worker(rank: int, world: int, port: int, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}.items():
            patch.setenv(name, str(value))
        patch.setenv("MASTER_ADDR", "localhost")
        torch.set_num_threads(1)
        ranks = parallel.start()
        run = Run(ranks, shard=True, seed=5)
        run.load(out / "alone/checkpoints/step_00000001")
        run.step(1)
        saver = Saver(out / "two", ranks, 2)
        saver.save(2, run.tensors(), {"note": "of two"})
        run.step(2)
        saver.wait()
        parallel.finish(ranks)


@pytest.mark.slow
def test_saved_by_one_gone_on_by_two_sharded_and_by_one_again(tmp_path: Path) -> None:
    alone = saved(tmp_path / "alone", [1])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (2, port, tmp_path), nprocs=2)
    alone.step(1)
    path = tmp_path / "two/checkpoints/step_00000002"
    assert len(list(path.glob("*.safetensors"))) == 2 and read_state(path)["note"] == "of two"
    again = Run(seed=7)
    again.load(path)
    assert equal(again.values(), alone.values())
    sharded = Run(seed=8, shard=True)
    sharded.load(path)
    assert equal(sharded.values(), alone.values())
