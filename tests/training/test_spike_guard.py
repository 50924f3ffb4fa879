"""Gradients out of the usual change nothing and are counted."""

import pytest
import torch
from torch import Tensor, nn

from lumos.training.learner import USUAL, SpikeGuard, step_unless
from lumos.training.optim import OptimConfig, build_optimizer

CPU = torch.device("cpu")


def check(guard: SpikeGuard, *norms: float) -> list[bool]:
    return [bool(guard.check(torch.tensor(norm))) for norm in norms]


def test_no_numbers_are_bad_from_the_start_and_spikes_once_the_usual_is_known() -> None:
    guard = SpikeGuard(10.0, CPU)
    assert check(guard, float("nan"), float("inf"), 1.0, 50.0) == [True, True, False, False]
    guard = SpikeGuard(10.0, CPU)
    assert not any(check(guard, *[1.0] * USUAL))
    assert check(guard, 11.0, 9.0, 1.0, float("nan"), 11.0) == [True, False, False, True, False]  # 9 counts in the usual
    assert guard.report(patience=5, step=25) == 2.0


def test_skipped_ones_do_not_become_the_usual() -> None:
    guard = SpikeGuard(10.0, CPU)
    check(guard, *[1.0] * USUAL, *[20.0] * 100)
    assert check(guard, 12.0, 1.0) == [True, False]


def test_a_run_that_only_skips_ends() -> None:
    guard = SpikeGuard(10.0, CPU)
    check(guard, 1.0, *[float("nan")] * 4)
    guard.report(patience=5, step=5)
    check(guard, float("nan"))
    with pytest.raises(ValueError, match=r"got 5 steps in a row that were not, up to step 6; resume .* lower learning rate"):
        guard.report(patience=5, step=6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("muon", [0.0, 1.0])
def test_a_skipped_step_leaves_the_weights(fused: bool, muon: float) -> None:
    module = nn.ModuleDict({"layers": nn.Linear(3, 3), "head": nn.Linear(3, 2)})
    optimizer = build_optimizer(module, OptimConfig(muon=muon, weight_decay=0.0))
    for group in optimizer.param_groups:
        group["fused"] = fused
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def step(factor: float, bad: bool) -> list[Tensor]:
        (module["head"](module["layers"](inputs)).square().sum() * factor).backward()
        before = [parameter.detach().clone() for parameter in module.parameters()]
        step_unless(torch.tensor(bad), optimizer)
        optimizer.zero_grad()
        return [parameter.detach() - old for parameter, old in zip(module.parameters(), before, strict=True)]

    assert all(change.abs().max() > 0 for change in step(1.0, False))
    changes = step(float("nan"), True)
    if muon and fused:  # its matrices go on with their momentum
        changes = changes[1:]
    assert all((change == 0).all() for change in changes)
    assert all(change.isfinite().all() and change.abs().max() > 0 for change in step(1.0, False))
