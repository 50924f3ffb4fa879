"""Checkpoints: whole or not there, refused when damaged, and everything comes back bit for bit."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lumos.training import checkpoint
from lumos.training.optim import Ema, OptimConfig, build_optimizer


def network(seed: int) -> nn.Sequential:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 1))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    return module


def train(module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, start: int, stop: int) -> None:
    for step in range(start, stop):
        module(torch.randn(4, 2, 3, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(module, step)


def everything(module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoint.collect(module, optimizer, ema)[0].items()}


def test_four_steps_equal_two_a_checkpoint_and_two(tmp_path: Path) -> None:
    torch.manual_seed(5)
    random.seed(5)
    module = network(0)
    optimizer, ema = build_optimizer(module, OptimConfig()), Ema(module, 0.9)
    train(module, optimizer, ema, 0, 2)
    tensors, state = checkpoint.collect(module, optimizer, ema)
    path = checkpoint.save(tmp_path, 2, tensors, state)
    train(module, optimizer, ema, 2, 4)
    expected, expected_number = everything(module, optimizer, ema), random.random()

    module = network(1)
    optimizer, ema = build_optimizer(module, OptimConfig()), Ema(module, 0.9)
    tensors, state = checkpoint.load(path)
    assert state["step"] == 2
    checkpoint.restore(tensors, state, module, optimizer, ema)
    train(module, optimizer, ema, 2, 4)
    found = everything(module, optimizer, ema)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert random.random() == expected_number


def test_the_newest_are_kept_and_found(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    for step in (5, 20, 100):
        checkpoint.save(tmp_path, step, {"x": torch.tensor([step])}, {}, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000020.safetensors",
        "step_00000100.safetensors",
    ]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and int(checkpoint.load(newest)[0]["x"]) == 100


@pytest.mark.parametrize("moment", ["save_file", "fsync", "replace"])
def test_a_kill_at_any_moment_leaves_the_last_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    checkpoint.save(tmp_path, 1, {"x": torch.tensor([1])}, {"note": "first"})

    def killed(*arguments: object) -> None:
        if moment == "save_file":
            Path(str(arguments[1])).write_bytes(b"half of a fi")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint if moment == "save_file" else os, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 2, {"x": torch.tensor([2])}, {})
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    tensors, state = checkpoint.load(newest)
    assert (int(tensors["x"]), state) == (1, {"note": "first", "step": 1})
    checkpoint.save(tmp_path, 3, {"x": torch.tensor([3])}, {})
    assert not list((tmp_path / "checkpoints").glob("*.partial")), "leftovers of the killed run go with the next checkpoint"


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {"x": torch.arange(100)}, {})
    whole = path.read_bytes()
    for broken in (b"", whole[:5], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="truncated or is no checkpoint"):
            checkpoint.load(path)
    save_file({"x": torch.arange(3)}, path)
    with pytest.raises(ValueError, match="must be of format"):
        checkpoint.load(path)


def test_another_network_is_refused() -> None:
    module, other = nn.Linear(2, 2), nn.Linear(2, 3)
    tensors, state = checkpoint.collect(module, build_optimizer(module, OptimConfig()))
    with pytest.raises(ValueError, match="weight must have shape"):
        checkpoint.restore(tensors, state, other, build_optimizer(other, OptimConfig()))


def test_another_config_is_refused() -> None:
    saved = json.loads(json.dumps({"batch": 4, "optim": {"betas": (0.9, 0.95)}}))
    checkpoint.check_config(saved, {"batch": 4, "optim": {"betas": (0.9, 0.95)}}, "there")
    with pytest.raises(ValueError, match="got batch = 8 where there has 4"):
        checkpoint.check_config(saved, {"batch": 8, "optim": {"betas": (0.9, 0.95)}}, "there")
    with pytest.raises(ValueError, match="optim"):
        checkpoint.check_config(saved, {"batch": 4}, "there")


def test_a_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    assert checkpoint.find(tmp_path, resume=False) is None and checkpoint.find(tmp_path, resume=True) is None
    path = checkpoint.save(tmp_path, 1, {"x": torch.arange(3)}, {})
    assert checkpoint.find(tmp_path, resume=True) == path
    with pytest.raises(ValueError, match="resume it"):
        checkpoint.find(tmp_path, resume=False)
