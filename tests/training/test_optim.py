"""The optimiser, the learning-rate schedule and the averaged weights."""

import pytest
import torch
from torch import nn

from lumos.training.optim import Ema, OptimConfig, build_optimizer, learning_rate, orthogonal, set_learning_rate


def test_warm_up_rises_to_the_peak() -> None:
    config = OptimConfig(lr=2.0, warmup_steps=4, schedule="constant")
    assert [learning_rate(step, 0.0, config) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decay_falls_from_its_start_to_the_final_rate(schedule: str) -> None:
    config = OptimConfig(lr=1.0, warmup_steps=0, schedule=schedule, decay_share=0.5, final=0.1)  # type: ignore[arg-type]
    rates = [learning_rate(1000, progress, config) for progress in (0.0, 0.5, 0.6, 0.75, 0.9, 1.0, 1.2)]
    assert rates[:2] == [1.0, 1.0]
    assert rates[1:6] == sorted(rates[1:6], reverse=True) and len(set(rates[1:6])) == 5
    assert rates[3] == pytest.approx(0.55)
    assert rates[5] == pytest.approx(0.1) and rates[6] == rates[5]


def test_weight_decay_touches_matrices_only() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    for parameter in module.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer = build_optimizer(module, OptimConfig(weight_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    values = {name: float(parameter.detach().flatten()[0]) for name, parameter in module.named_parameters()}
    assert values == {"0.weight": pytest.approx(0.95), "0.bias": 1.0, "1.weight": 1.0, "1.bias": 1.0}


def test_ema_follows_the_weights() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = Ema(module, 0.9)
    nn.init.ones_(module.weight)
    for step in range(1000, 1003):
        ema.update(module, step)
    assert float(ema.average["weight"]) == pytest.approx(1 - 0.9**3)
    assert ema.average["weight"].dtype == torch.float32


def test_ema_forgets_its_start_quickly() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = Ema(module, 0.9999)
    nn.init.ones_(module.weight)
    for step in range(50):
        ema.update(module, step)
    assert float(ema.average["weight"]) > 0.95


@pytest.mark.parametrize("shape", [(3, 8, 5), (2, 5, 8), (1, 6, 6)])
def test_orthogonal_evens_out_the_singular_values(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrix)
    values = torch.linalg.svdvals(found)
    assert found.shape == matrix.shape
    assert values.min() > 0.4 and values.max() < 1.3  # those of the matrix itself differ by more than 10 times
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.cosine_similarity(found.flatten(1), (left @ right).flatten(1)).min() > 0.97


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.ones(4, 6))
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)])
        self.layers[0].shared = nn.Parameter(torch.ones(1, 6))


def test_muon_takes_the_layers_matrices_and_adamw_the_rest() -> None:
    module = Stack()
    optimizer = build_optimizer(module, OptimConfig(muon=2.0))
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_learning_rate(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 1.0}
    optimizer.step()
    names = {parameter: name for name, parameter in module.named_parameters()}
    kinds = {names[parameter]: "momentum" in state for parameter, state in optimizer.state.items()}
    assert kinds == {name: name.startswith("layers.") and name.endswith("weight") for name in names.values()}


def test_muon_steps_do_not_depend_on_the_gradients_size() -> None:
    moved = []
    for size in (1e-3, 1e3):
        torch.manual_seed(0)
        module = Stack()
        before = module.layers[0].weight.detach().clone()
        optimizer = build_optimizer(module, OptimConfig(muon=1.0, weight_decay=0.0))
        for parameter in module.parameters():
            parameter.grad = size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        set_learning_rate(optimizer, 0.1)
        optimizer.step()
        moved.append(module.layers[0].weight.detach() - before)
    assert torch.allclose(moved[0], moved[1], atol=1e-4)
    assert 0.5 < float(moved[0].square().mean().sqrt()) / (0.1 * 0.2) < 1.3  # root mean square 0.2 times the rate


def test_muon_looks_ahead_with_nesterov_s_momentum() -> None:
    """Against the published algorithm as torch has it, over several steps whose gradients turn."""
    torch.manual_seed(0)
    ours, theirs = nn.Module(), nn.Parameter(torch.randn(6, 8))
    ours.layers = nn.ParameterList([nn.Parameter(theirs.detach().clone())])
    one = build_optimizer(ours, OptimConfig(muon=1.0, weight_decay=0.1))
    set_learning_rate(one, 0.05)
    other = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        gradient = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
        ours.layers[0].grad, theirs.grad = gradient, gradient.clone()
        one.step()
        other.step()
    assert torch.allclose(ours.layers[0], theirs, atol=2e-3)  # theirs computes in bfloat16
