"""On the card: a training step in every mode, sharded or not, compiled or not, is that of float32 within bf16's rounding."""

from dataclasses import replace

import pytest
import torch

from lumos.data.batch import Batch
from lumos.diffusion.loss import weighted_code_loss
from lumos.model.transformer import ModelConfig
from lumos.model_folder import VideoConfig
from lumos.ranks import Ranks
from lumos.sequence.vocabulary import small_vocabulary
from lumos.training.config import TrainModelConfig
from lumos.training.learner import Learner
from lumos.training.objective import backward, mask_batch
from lumos.training.optim import OptimConfig
from lumos.training.parallel import ParallelConfig, build, clip_gradients

pytestmark = pytest.mark.gpu
VOCABULARY = small_vocabulary(text_size=100, codes=500)
CONFIG = TrainModelConfig(
    model=ModelConfig(vocabulary=VOCABULARY.size, layers=3, width=256, heads=4, kv_heads=2, head_width=64, ffn=512),
    video=VideoConfig(height=128, width=128, frames=9, fps=8, slots=40, window=3, latest=2),
    worlds=None,
    optim=OptimConfig(),
    parallel=ParallelConfig(attention="dense", compile="off", precision="float32"),
)
FAST = ParallelConfig(shard=True, attention="prefix")
PLANS = {
    "sharded": FAST,
    "flex": replace(FAST, attention="flex"),
    "selective": replace(FAST, recompute="selective"),
    "full": replace(FAST, recompute="full", compile="dynamic"),
    "plain": ParallelConfig(attention="flex"),
}


def loss_and_norm(plan: ParallelConfig) -> tuple[float, float]:
    ranks, draw = Ranks(0, 1, torch.device("cuda")), torch.Generator().manual_seed(0)
    model = build(CONFIG.model, plan, ranks, seed=0)
    text_BS = torch.randint(100, (4, 40), generator=draw)
    codes_BTHW = torch.randint(500, (4, 3, 16, 16), generator=draw)
    batch = Batch(text_BS.cuda(), torch.tensor([9, 40, 17, 30]), codes_BTHW.cuda())
    config = replace(CONFIG, parallel=plan)
    loss_T = backward(model, VOCABULARY, mask_batch(batch, config, draw), config, ranks)
    return float(loss_T.mean()), float(clip_gradients(model.parameters(), 1e9))


@pytest.mark.parametrize("name", PLANS)
def test_every_way_of_working_gives_the_step_of_float32(name: str) -> None:
    loss, norm = loss_and_norm(CONFIG.parallel)
    fast_loss, fast_norm = loss_and_norm(PLANS[name])
    assert fast_loss == pytest.approx(loss, rel=2e-3)
    assert fast_norm == pytest.approx(norm, rel=2e-2)


@pytest.mark.parametrize("name", ["sharded", "flex", "plain"])
def test_a_step_never_waits_for_the_card(name: str) -> None:
    config, ranks, draw = (
        replace(CONFIG, parallel=PLANS[name]),
        Ranks(0, 1, torch.device("cuda")),
        torch.Generator().manual_seed(0),
    )
    model = build(CONFIG.model, config.parallel, ranks, seed=0)
    learner = Learner(model, config.optim, config.spike, ranks.device)
    codes_BTHW = torch.randint(500, (4, 3, 16, 16), generator=draw).cuda()
    batch = Batch(torch.randint(100, (4, 40), generator=draw).cuda(), torch.tensor([9, 40, 17, 30]), codes_BTHW)
    for step in range(3):  # the first one compiles and lays out the optimiser's memory
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            backward(model, VOCABULARY, mask_batch(batch, config, draw), config, ranks)
            learner.update(step, progress=0.1)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_fused_loss_has_the_value_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumos.diffusion.loss.LOGITS", 128 * 5000)
    draw = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(300, 256, device="cuda", generator=draw).bfloat16()
    head = (torch.randn(5000, 256, device="cuda", generator=draw) / 16).bfloat16()
    target = torch.randint(5000, (300,), device="cuda", generator=draw)
    weight = torch.full((300,), 1 / 300, device="cuda")
    leaves = [x.clone().requires_grad_() for x in (hidden, head)]
    loss, _ = weighted_code_loss(*leaves, target, weight)
    loss.backward()
    exact = [x.float().requires_grad_() for x in (hidden, head)]
    truth = torch.nn.functional.cross_entropy(exact[0] @ exact[1].T, target)
    truth.backward()
    assert float(loss.detach()) == pytest.approx(float(truth.detach()), rel=1e-3)
    for one, other in zip(leaves, exact, strict=True):
        assert float((one.grad.float() - other.grad).norm() / other.grad.norm()) < 2e-2
