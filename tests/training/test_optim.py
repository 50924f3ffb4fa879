"""The optimiser, the learning-rate schedule and the averaged weights."""

import pytest
import torch
from torch import nn

from lumos.training.optim import Ema, OptimConfig, build_optimizer, learning_rate, set_learning_rate


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


def test_bad_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="decay_share"):
        OptimConfig(decay_share=0.0)
    with pytest.raises(ValueError, match="ema"):
        OptimConfig(ema=1.0)


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


def test_applied_ema_gives_the_weights_back_bit_for_bit() -> None:
    module = nn.Linear(4, 4).to(torch.bfloat16)
    ema = Ema(module, 0.5)
    own = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for tensor in ema.average.values():
        tensor += 1
    with ema.applied(module):
        assert torch.equal(module.weight, ema.average["weight"].to(torch.bfloat16))
    assert all(torch.equal(own[name], parameter) for name, parameter in module.named_parameters())
