"""Checkpoints: whole or not there, the same for any number of ranks, refused when damaged, edited or of another model."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lumos.model.transformer import ModelConfig, Transformer
from lumos.ranks import ALONE, Ranks, finish, start
from lumos.training import checkpoint, parallel
from lumos.training.checkpoint import Checkpoints, check_same, latest, load, read_state
from lumos.training.learner import Learner
from lumos.training.optim import OptimConfig, set_learning_rate
from lumos.training.parallel import ParallelConfig, whole
from tests.training.toys import two

MODEL = ModelConfig(vocabulary=50, layers=1, width=32, heads=1, kv_heads=1, head_width=32, ffn=32)


RECORD = MappingProxyType({"lr": 0.1})


class Run:
    """A model in training: a step moves every weight by something that depends on its place and its history."""

    def __init__(self, ranks: Ranks = ALONE, shard: bool = False, seed: int = 0, shape: ModelConfig = MODEL, muon: float = 1.0):
        self.ranks = ranks
        model: Transformer = parallel.build(shape, ParallelConfig(shard=shard), ranks, seed)
        self.learner = Learner(model, OptimConfig(muon=muon, ema=0.9), 2.0, ranks.device)

    def step(self, number: int) -> None:
        for parameter in self.learner.module.parameters():
            parameter.grad = (parameter * (number + 1)).detach().cos()
        set_learning_rate(self.learner.optimizer, 1e-3)
        self.learner.optimizer.step()  # not clipped: a norm of shards is rounded otherwise
        assert self.learner.ema is not None
        self.learner.ema.update(self.learner.module, number)
        self.learner.guard.check(torch.tensor(number + 1.0))

    def values(self) -> dict[str, Tensor]:
        return {name: whole(tensor).clone() for name, tensor in self.learner.tensors().items()}

    def load(self, path: Path) -> None:
        load(path, self.learner)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and len(one) > 40 and all(torch.equal(one[name], other[name]) for name in one)


def saver_of(folder: Path, run: Run, record: Mapping[str, Any] = RECORD) -> Checkpoints:
    """What goes on from a folder's newest checkpoint, without filling `run` from it."""
    saver = Checkpoints(folder, True, dict(record), run.ranks, keep=2)
    saver.path = None
    saver.start(run.learner)
    return saver


def saved(folder: Path, steps: list[int], **settings: Any) -> Run:
    run = Run()
    saver = saver_of(folder, run, **settings)
    for step in range(max(steps)):
        run.step(step)
        if step + 1 in steps:
            saver.save(step + 1, step + 0.5, run.learner)
    saver.close()
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    saved(folder, [1])
    return folder / "checkpoints/step_00000001"


@pytest.mark.parametrize("muon", [0.0, 1.0])
def test_what_comes_back_is_what_was_there_while_training_went_on(tmp_path: Path, muon: float) -> None:
    run = Run(muon=muon)
    saver = saver_of(tmp_path, run)
    run.step(0)
    then = run.values()
    saver.save(1, 0.5, run.learner)
    run.step(1)  # while the checkpoint is being written
    saver.wait()
    other = Run(seed=9, muon=muon)
    other.load(tmp_path / "checkpoints/step_00000001")
    assert equal(other.values(), then)
    assert any("momentum" in name for name in then) == (muon > 0)
    state = read_state(tmp_path / "checkpoints/step_00000001")
    assert (state["step"], state["seconds"], state["config"]) == (1, 0.5, {"lr": 0.1})
    other.step(1)
    assert equal(other.values(), run.values())


def test_the_newest_are_kept_leftovers_of_a_kill_are_deleted_and_nothing_can_run_code(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for name in ("thesis.partial", "step_old.partial", "step_00000001.partial", "step_00000009.partial"):
        (folder / name).mkdir(parents=True)
    assert latest(tmp_path) is None
    saved(tmp_path, [1, 2, 3])
    newest = folder / "step_00000003"
    assert latest(tmp_path) == newest
    assert {path.name for path in folder.iterdir()} == {"thesis.partial", "step_old.partial", "step_00000002", newest.name}
    assert {path.suffix for path in newest.iterdir()} == {".safetensors", ".json", ""}


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failure_at_any_moment_leaves_the_last_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    run = saved(tmp_path, [1])
    then, saver = run.values(), saver_of(tmp_path, run)

    def fails(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    run.step(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, moment, fails)
        saver.save(2, 1.0, run.learner)
        with pytest.raises(OSError, match="could not write a checkpoint .*No space left on device"):
            saver.wait()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]  # the full disk has its space again
    other = Run(seed=9)
    other.load(tmp_path / "checkpoints/step_00000001")
    assert equal(other.values(), then)
    saver.save(3, 1.0, run.learner)
    saver.wait()
    assert latest(tmp_path) == tmp_path / "checkpoints/step_00000003"


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    replaced = os.replace

    def check(partial: Path, path: Path) -> None:
        assert sorted(flushed) == sorted([*partial.iterdir(), partial])
        replaced(partial, path)

    monkeypatch.setattr(checkpoint, "flush", flushed.append)
    monkeypatch.setattr(os, "replace", check)
    saved(tmp_path, [1])
    assert flushed[-1] == tmp_path / "checkpoints"


def test_a_run_is_neither_overwritten_nor_resumed_as_another(tmp_path: Path) -> None:
    run, record = tmp_path / "runs/run", {"lr": 0.1, "batch": 4, "max_steps": 3, "parallel": {"shard": True}}
    for resume in (True, False):
        new = Checkpoints(run, resume, record, ALONE, 2)
        assert (new.path, new.step, new.seconds) == (None, 0, 0.0)
    saved(run, [2], record=record)
    begun = Checkpoints(run, True, record | {"max_steps": 4, "parallel": {"shard": False}}, ALONE, 2)  # may change
    assert (begun.path, begun.step, begun.seconds) == (run / "checkpoints/step_00000002", 2, 1.5)
    with_rate = record | {"optim": {"lr": 0.1, "muon": 1.0}}
    check_same(with_rate, record | {"optim": {"lr": 0.05, "muon": 1.0}}, run)  # what a run that diverges is told to do
    with pytest.raises(ValueError, match=r"optim\.muon = 0\.5"):
        check_same(with_rate, record | {"optim": {"lr": 0.1, "muon": 0.5}}, run)
    with pytest.raises(ValueError, match="resume it"):
        Checkpoints(run, False, record, ALONE, 2)
    with pytest.raises(ValueError, match=r"keep its config, got lr = 0\.2 where .* has 0\.1, batch = 8 where .* has 4; use that"):
        Checkpoints(run, True, record | {"lr": 0.2, "batch": 8}, ALONE, 2)


HOLD = """
import sys, pathlib, lumos.files
held = lumos.files.lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
input()
"""


def test_a_second_command_is_told_who_has_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("somebody's")
    with subprocess.Popen([sys.executable, "-c", HOLD, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        before = {path: path.read_bytes() for path in run.iterdir()}
        with pytest.raises(ValueError, match=f"one training at a time, but process {other.pid} on .* has it; stop that or"):
            Checkpoints(run, True, {}, ALONE, 2)
        assert {path: path.read_bytes() for path in run.iterdir()} == before
        other.kill()
    begun = Checkpoints(run, True, {}, ALONE, 2)  # a kill leaves no lock
    begun.close()
    assert begun.lock is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(begun.lock)
    assert (run / ".lock").read_text() == "somebody's"


def test_checkpoints_of_another_model_are_refused(made: Path) -> None:
    with pytest.raises(ValueError, match=r"step_00000001: model/embedding must have shape \[60, 32\]"):
        Run(shape=replace(MODEL, vocabulary=60)).load(made)
    with pytest.raises(ValueError, match=r"it lacks .*layers\.1\."):
        Run(shape=replace(MODEL, layers=2)).load(made)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_or_missing_part_is_noticed(
    made: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("copy") / made.name
    shutil.copytree(made, path)
    file = path / data.draw(st.sampled_from(sorted(file.name for file in made.iterdir())))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "remove"]))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content[:place] if how == "cut" else content)
    if how == "remove":
        file.unlink()
    with pytest.raises(ValueError, match=r"is damaged \(.*\); delete it to go on from an earlier one") as told:
        read_state(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "edit",
    [
        *('""', "null", "[]", "[" * 100_000, "{}"),
        *({"format": "other"}, {"step": None}, {"step": 1.0}, {"step": 2}, {"step": True}, {"config": None}, {"config": []}),
        *({"seconds": "1"}, {"seconds": -1.0}, {"seconds": float("nan")}, {"seconds": 1e999}),
    ],
)
def test_an_edited_state_is_one_line(made: Path, tmp_path: Path, edit: str | dict[str, Any]) -> None:
    path = tmp_path / made.name
    shutil.copytree(made, path)
    text = edit if isinstance(edit, str) else json.dumps({**json.loads((path / "state.json").read_text()), **edit})
    (path / "state.json").write_text(text)
    (path / "SHA256SUMS").write_text(checkpoint._sums(path))  # by somebody who mends the checksum, too
    with pytest.raises(ValueError, match="is damaged .*; delete it to go on from an earlier one") as told:
        read_state(path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_checksums_are_in_the_usual_form(made: Path) -> None:
    assert shutil.which("sha256sum")
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=made, capture_output=True, text=True)
    assert done.returncode == 0 and len(re.findall(": OK", done.stdout)) == 2


def worker(rank: int, out: Path) -> None:
    ranks = start()
    run = Run(ranks, shard=True, seed=5)
    run.load(out / "alone/checkpoints/step_00000001")
    run.step(1)
    saver = saver_of(out / "two", run)
    saver.save(2, 1.5, run.learner)
    run.step(2)
    saver.wait()
    finish(ranks)


@pytest.mark.slow
def test_saved_by_one_gone_on_by_two_sharded_and_by_one_again(tmp_path: Path) -> None:
    alone = saved(tmp_path / "alone", [1])
    assert two(worker, tmp_path) == [0, 0]
    alone.step(1)
    path = tmp_path / "two/checkpoints/step_00000002"
    assert len(list(path.glob("*.safetensors"))) == 2 and read_state(path)["seconds"] == 1.5
    again = Run(seed=7)
    again.load(path)
    assert equal(again.values(), alone.values())
    sharded = Run(seed=8, shard=True)
    sharded.load(path)
    assert equal(sharded.values(), alone.values())
