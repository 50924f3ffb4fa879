"""Two processes that average their gradients take the step that one process takes on the whole batch."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lumos.training import parallel
from lumos.training.clock import Clock
from tests.training.toys import two


def step(module: nn.ModuleList, inputs: torch.Tensor, ranks: parallel.Ranks) -> None:
    module[0](inputs).square().mean().backward()
    if ranks.rank == 1:
        module[1](inputs).sum().backward()  # a parameter that only one rank uses must not hang the other
    parallel.average_gradients(module.parameters(), ranks)


def build() -> nn.ModuleList:
    module = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 1)])
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.5)
    return module


def inputs() -> torch.Tensor:
    return torch.arange(24.0).view(8, 3) / 24


def worker(rank: int, out: Path) -> None:
    ranks = parallel.start()
    module = build()
    step(module, inputs()[rank::2], ranks)
    numbers = {
        "average": parallel.average(torch.tensor([float(rank)]), ranks),
        "agreed": torch.tensor(parallel.agree((float(rank), float(-rank)), ranks)),
    }
    # the clocks of the two ranks differ, yet both see the same progress and stop together
    clock = Clock(100, 100.0, ranks, now=iter([0.0] + [50.0 + rank] * 9).__next__)
    clock._asked = rank == 1
    numbers["progress"] = torch.tensor([clock.progress(0), clock.progress(1), float(clock.interrupted)])
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    save_file({**gradients, **numbers}, out / f"{rank}.safetensors")
    parallel.finish(ranks)


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = parallel.start()
    assert (ranks.rank, ranks.world, ranks.is_main) == (0, 1, True)
    parallel.finish(ranks)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    assert two(worker, tmp_path) == [0, 0]
    results = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    alone = build()
    step(alone, inputs(), parallel.Ranks(0, 1, torch.device("cpu")))
    for result in results:
        for name, parameter in alone[0].named_parameters():
            torch.testing.assert_close(result[f"0.{name}"], parameter.grad)
        torch.testing.assert_close(result["1.bias"], torch.tensor([2.0]))  # (0 + 4) / 2
        assert result["average"].item() == 0.5
        assert result["agreed"].tolist() == [1.0, 0.0]
        assert result["progress"].tolist() == pytest.approx([0.51, 0.51, 1.0])
