"""What a step changes: the optimiser and its schedule, the averaged weights; gradients out of the usual change nothing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lumos.ranks import finish, start
from lumos.training.learner import USUAL, Learner, SpikeGuard, step_unless
from lumos.training.optim import Ema, OptimConfig, build_optimizer, is_inner_matrix, learning_rate, set_learning_rate
from lumos.training.parallel import whole
from tests.toy_model import toy_tokenizer
from tests.training.toys import two


def test_warm_up_rises_to_the_peak() -> None:
    config = OptimConfig(lr=2.0, warmup_steps=4, schedule="constant")
    assert [learning_rate(step, 0.0, config) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decay_falls_from_its_start_to_the_final_rate(schedule: str) -> None:
    config = OptimConfig(lr=1.0, warmup_steps=0, schedule=schedule, decay_share=0.5, final=0.1)  # type: ignore[arg-type]
    rates = [learning_rate(1000, progress, config) for progress in (0.0, 0.5, 0.6, 0.75, 0.9, 1.0, 1.2)]
    assert rates[:2] == [1.0, 1.0] and rates[1:6] == sorted(set(rates[1:6]), reverse=True)
    assert rates[3:] == pytest.approx([0.55, rates[4], 0.1, 0.1])
    assert (rates[2] > 0.9) == (schedule == "cosine")  # which falls slowly at first


@pytest.mark.parametrize(("decay", "steps", "expected"), [(0.9, range(1000, 1003), 1 - 0.9**3), (0.9999, range(50), 1.0)])
def test_the_average_follows_the_weights_and_forgets_its_start_quickly(decay: float, steps: range, expected: float) -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = Ema(module, decay)
    nn.init.ones_(module.weight)
    for step in steps:
        ema.update(module, step)
    assert float(ema.average["weight"]) == pytest.approx(expected, abs=1e-6 if decay == 0.9 else 0.05)
    assert ema.average["weight"].dtype == torch.float32


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.ones(4, 6))
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)])
        self.layers[0].shared = nn.Parameter(torch.ones(1, 6))


@pytest.mark.parametrize("gradient", [1.0, torch.nan])
def test_a_step_that_the_device_skips_changes_nothing(gradient: float) -> None:
    module = nn.ModuleDict({"layers": nn.Linear(4, 4)})
    optimizer = build_optimizer(module, OptimConfig(muon=1.0, weight_decay=0.5))
    for value, skip in ((1.0, False), (gradient, True)):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, value)
        before = [parameter.detach().clone() for parameter in module.parameters()]
        momenta = [optimizer.state[parameter].get("momentum", torch.zeros(())).clone() for parameter in module.parameters()]
        optimizer.found_inf = torch.tensor(float(skip))  # type: ignore[attr-defined] # as on a card
        muon = next(group for group in optimizer.param_groups if group.get("muon"))
        torch.no_grad()(optimizer._orthogonal_step)(muon)  # type: ignore[attr-defined]
        after = list(module.parameters())
        assert torch.equal(before[0], after[0]) == skip
    assert torch.equal(optimizer.state[after[0]]["momentum"], momenta[0])


def test_muon_takes_the_layers_matrices_and_weight_decay_matrices_alone() -> None:
    module = Stack()
    for parameter in module.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer = build_optimizer(module, OptimConfig(muon=2.0, weight_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    names = {parameter: name for name, parameter in module.named_parameters()}
    for parameter, state in optimizer.state.items():
        by_muon = names[parameter].startswith("layers.") and names[parameter].endswith("weight")
        assert ("momentum" in state) == by_muon
        left = 1 - 0.2 * 0.5 if by_muon else 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1.0
        assert torch.allclose(parameter, torch.tensor(left)), names[parameter]


@pytest.mark.parametrize("shape", [(6, 8), (8, 6), (6, 2, 1, 2, 2)])
def test_muon_steps_as_torch_has_them(shape: tuple[int, ...]) -> None:
    """Orthogonal steps of a size that does not depend on the gradient's, with Nesterov's momentum as the gradients turn."""
    torch.manual_seed(0)
    ours, theirs = nn.Module(), nn.Parameter(torch.randn(shape).flatten(1))
    ours.layers = nn.ParameterList([nn.Parameter(theirs.detach().view(shape).clone())])
    one = build_optimizer(ours, OptimConfig(muon=1.0, weight_decay=0.1))
    set_learning_rate(one, 0.05)
    other = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        gradient = 10.0**step * torch.randn(shape, generator=torch.Generator().manual_seed(step))
        ours.layers[0].grad, theirs.grad = gradient, gradient.flatten(1).clone()
        one.step()
        other.step()
    assert torch.allclose(ours.layers[0].flatten(1), theirs, atol=2e-3)  # theirs computes in bfloat16


def muon_steps(mesh: DeviceMesh | None = None) -> dict[str, Tensor]:
    """Three matrices of a form and one of another after two steps, spread over a mesh by rows if there is one."""
    draw, module = torch.Generator().manual_seed(0), nn.Module()
    shapes = [(5, 4), (5, 4), (3, 8), (5, 4)]

    def spread(tensor: Tensor) -> Tensor:
        return tensor if mesh is None else distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None)

    module.layers = nn.ParameterList([nn.Parameter(spread(torch.randn(shape, generator=draw))) for shape in shapes])
    optimizer = build_optimizer(module, OptimConfig(muon=1.0))
    for _ in range(2):
        for parameter in module.layers:
            parameter.grad = spread(torch.randn(parameter.shape, generator=draw))
        optimizer.step()
    return {name: whole(parameter.detach()) for name, parameter in module.named_parameters()}


def muon_work(rank: int, out: Path) -> None:
    ranks = start()
    save_file(muon_steps(), out / f"whole {rank}")
    save_file(muon_steps(init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))), out / f"sharded {rank}")
    finish(ranks)


@pytest.mark.slow
def test_two_processes_take_muons_step_of_one(tmp_path: Path) -> None:
    assert two(muon_work, tmp_path) == [0, 0]
    alone = muon_steps()
    for file in tmp_path.iterdir():
        for name, found in load_file(file).items():
            torch.testing.assert_close(found, alone[name], rtol=0, atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 4


def test_of_a_tokenizer_muon_takes_what_lies_inside() -> None:
    tokenizer = toy_tokenizer()
    inside = {name for name, parameter in tokenizer.named_parameters() if is_inner_matrix(name, parameter)}
    assert len(inside) > 8 and not any(word in name for name in inside for word in ("conv_in", "conv_out", "encoder.out"))
    assert all(parameter.ndim > 1 for name, parameter in tokenizer.named_parameters() if name in inside)


def test_a_step_clips_the_gradient_and_is_adamws_with_its_betas() -> None:
    module = nn.Linear(2, 1, bias=False)
    learner = Learner(module, OptimConfig(betas=(0.5, 0.6), clip=1.0), 20.0, torch.device("cpu"))
    module.weight.grad = torch.tensor([[3.0, 4.0]])
    assert learner.update(0, 0.0) == 5
    state = learner.optimizer.state[module.weight]
    torch.testing.assert_close(state["exp_avg"], 0.5 * torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(state["exp_avg_sq"], 0.4 * torch.tensor([[0.36, 0.64]]))


def check(guard: SpikeGuard, *norms: float) -> list[bool]:
    return [bool(guard.check(torch.tensor(norm))) for norm in norms]


def test_no_numbers_are_bad_from_the_start_and_spikes_once_the_usual_is_known() -> None:
    assert check(SpikeGuard(10.0, torch.device("cpu")), float("nan"), float("inf"), 1.0, 50.0) == [True, True, False, False]
    guard = SpikeGuard(10.0, torch.device("cpu"))
    assert not any(check(guard, *[1.0] * USUAL))
    assert check(guard, 11.0, 9.0, 1.0, float("nan"), 11.0) == [True, False, False, True, False]  # 9 counts in the usual
    assert guard.report(patience=5, step=25) == 2.0
    check(guard, *[50.0] * 100)
    assert check(guard, 25.0, 1.0) == [True, False]  # what is skipped does not become the usual
    check(guard, *[1.0] * 200, *[5.0] * 60)
    assert check(guard, 40.0) == [False]  # but what has been taken of late does


def test_a_run_that_only_skips_ends() -> None:
    guard = SpikeGuard(10.0, torch.device("cpu"))
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
    changes = step(float("nan"), True)[1 if muon and fused else 0 :]  # Muon's matrix then goes on with its momentum
    assert all((change == 0).all() for change in changes)
    assert all(change.isfinite().all() and change.abs().max() > 0 for change in step(1.0, False))
