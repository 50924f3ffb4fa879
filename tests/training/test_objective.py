"""What a step computes: the same gradients for any split over parts, processes and shards."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from lumos.data.batch import Batch
from lumos.model.attention import dense
from lumos.model.transformer import ModelConfig, Transformer
from lumos.model_folder import VideoConfig
from lumos.ranks import ALONE, Ranks, agree, average, finish, start, together
from lumos.sequence.layout import Grid, Keyframe, content_ids, content_of, pack
from lumos.sequence.vocabulary import Vocabulary, small_vocabulary
from lumos.training import objective, parallel
from lumos.training.clock import Clock
from lumos.training.config import TrainModelConfig
from lumos.training.objective import MaskedBatch, attention, backward, generator_of, mask_batch, states_at_targets, work_of
from lumos.training.optim import OptimConfig
from lumos.training.parallel import ParallelConfig, whole
from lumos.training.step_cost import flops
from tests.training.toys import two

VOCABULARY = small_vocabulary(text_size=20, codes=25)
CONFIG = TrainModelConfig(
    model=ModelConfig(vocabulary=VOCABULARY.size, layers=2, width=32, heads=2, kv_heads=1, head_width=32, ffn=32),
    video=VideoConfig(height=32, width=32, frames=5, fps=8, slots=64, window=2, latest=2),
    worlds=None,
    optim=OptimConfig(),
    videos=2,
    images=4,
)
GRID = Grid(4, 4)


def test_every_rank_step_and_seed_draws_its_own() -> None:
    places = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    drawn, again = ([torch.rand(1, generator=generator_of(*place)).item() for place in places] for _ in range(2))
    assert len(set(drawn)) == 4 and drawn == again


def test_windows_and_dropped_prompts_come_as_often_as_asked() -> None:
    codes_BTHW = torch.arange(3)[None, :, None, None].expand(50, 3, 4, 4)  # every code says its latent frame
    batch = Batch(torch.zeros(50, 64, dtype=torch.int64), torch.full((50,), 9), codes_BTHW)
    draws = [mask_batch(batch, CONFIG, generator_of(0, 0, step)) for step in range(200)]
    for each in draws:
        assert each.codes_BTHW[0, :, 0, 0].tolist() == [each.first, each.first + 1]
    assert {each.first for each in draws} == {0, 1}
    assert sum(each.first > 0 for each in draws) / 200 == pytest.approx(CONFIG.late_windows, abs=0.1)
    dropped = torch.cat([each.length_B for each in draws]) == 0
    assert dropped.float().mean().item() == pytest.approx(CONFIG.drop_text, abs=0.02)
    image = mask_batch(batch._replace(codes_BTHW=codes_BTHW[:, :1]), CONFIG, generator_of(0, 0, 0))
    assert image.codes_BTHW.shape[1] == image.mask.shape[1] == 1 and image.first == 0
    assert image.image and not draws[0].image


def test_rows_are_put_in_the_order_of_their_prompts_and_stay_whole() -> None:
    numbers = torch.arange(20)
    text_BS, codes_BTHW = numbers[:, None].expand(20, 64), numbers[:, None, None, None].expand(20, 2, 4, 4)
    length_B = (numbers * 7) % 20 + 2
    batch = mask_batch(Batch(text_BS, length_B, codes_BTHW), CONFIG, generator_of(0, 0, 1))
    rows = batch.codes_BTHW[:, 0, 0, 0]
    assert torch.equal(batch.text_BS[:, 0], rows) and sorted(rows.tolist()) == numbers.tolist()
    assert (batch.length_B.diff() >= 0).all() and ((batch.length_B == 0) | (batch.length_B == length_B[rows])).all()


def test_a_keyframe_is_given_first_and_is_no_target() -> None:
    draw = torch.Generator().manual_seed(1)
    key_BHW, at_B = torch.randint(25, (4, 4, 4), generator=draw), torch.tensor([3, 8, 1, 5])
    batch = Batch(
        torch.randint(20, (4, 64), generator=draw), torch.tensor([7, 0, 9, 12]), torch.randint(25, (4, 2, 4, 4)), key_BHW, at_B
    )
    config = replace(CONFIG, keyframes=1.0)
    keyed, plain = (mask_batch(batch, each, torch.Generator().manual_seed(2)) for each in (config, CONFIG))
    assert plain.key is None and keyed.key is not None and torch.equal(plain.codes_BTHW, keyed.codes_BTHW)
    assert mask_batch(batch._replace(codes_BTHW=batch.codes_BTHW[:, :1]), config, draw).key is None  # images have one frame
    rows = [at_B.tolist().index(at) for at in keyed.key.at_B.tolist()]
    assert torch.equal(keyed.key.codes_BHW, key_BHW[rows]) and torch.equal(keyed.codes_BTHW, batch.codes_BTHW[rows])
    model = new_model(CONFIG)
    hidden_MD, code_M, frame_M = states_at_targets(model, VOCABULARY, keyed, config)
    _, plain_M, plain_frame_M = states_at_targets(model, VOCABULARY, plain, config)
    assert torch.equal(code_M, plain_M) and torch.equal(frame_M, plain_frame_M)
    content = torch.where(keyed.mask, VOCABULARY.mask, content_ids(VOCABULARY, keyed.codes_BTHW))
    packed = pack(VOCABULARY, GRID, keyed.text_BS, keyed.length_B, content, 1, 8, key=keyed.key)
    whole_BLD = model(packed.ids_BL, packed.position_BL3, dense(packed.block_BL, packed.block_BL))
    found_BTHWD = content_of(GRID, whole_BLD, 64, 3)[:, 1:, :, :-1]
    torch.testing.assert_close(hidden_MD, found_BTHWD[keyed.target_BTHW])
    first = keyed.part(slice(1, 3))
    assert first.key is not None and torch.equal(first.key.at_B, keyed.key.at_B[1:3])
    other = keyed._replace(key=Keyframe((keyed.key.codes_BHW + 1) % 25, keyed.key.at_B))
    assert not torch.allclose(states_at_targets(model, VOCABULARY, other, config)[0], hidden_MD)


def masked_batch() -> MaskedBatch:
    """Four samples whose mask ratios differ, so that halves of them have different numbers of masked codes."""
    draw = torch.Generator().manual_seed(1)
    text_BS = torch.randint(20, (4, 64), generator=draw)
    codes_BTHW = torch.randint(25, (4, 3, 4, 4), generator=draw)
    batch = mask_batch(Batch(text_BS, torch.tensor([7, 0, 9, 12]), codes_BTHW), CONFIG, draw)
    assert batch.mask[:2].sum() != batch.mask[2:].sum()
    return batch


def new_model(config: TrainModelConfig, ranks: Ranks = ALONE) -> Transformer:
    return parallel.build(config.model, config.parallel, ranks, seed=3)


def gradients(config: TrainModelConfig, ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """Of the four samples, shared out among the ranks."""
    share = 4 // ranks.world
    first = ranks.rank * share
    model = new_model(config, ranks)
    backward(model, VOCABULARY, masked_batch().part(slice(first, first + share)), config, ranks)
    if not config.parallel.shard:
        parallel.average_gradients(model.parameters(), ranks)
    return {name: whole(parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None}


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and len(found) > 20
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("shard", [False, True])
def test_a_card_computes_in_the_precision_asked_for(device: str, precision: Any, shard: bool, monkeypatch: Any) -> None:
    def autocast(*_: Any, enabled: bool) -> None:
        raise InterruptedError(enabled)

    monkeypatch.setattr(torch, "autocast", autocast)
    on_device: Any = SimpleNamespace(device=torch.device(device))
    config = replace(CONFIG, parallel=ParallelConfig(precision=precision, shard=shard))
    low = (device, precision, shard) == ("cuda", "bfloat16", False)
    with pytest.raises(InterruptedError, match=str(low)):
        objective.batch_loss(new_model(CONFIG), VOCABULARY, masked_batch()._replace(codes_BTHW=on_device), config, torch.ones(()))


def test_gradients_are_those_of_the_mean_over_all_masked_codes() -> None:
    batch, model, plain = masked_batch(), new_model(CONFIG), new_model(CONFIG)
    with FlopCounterMode(display=False) as counter:
        loss_T = backward(model, VOCABULARY, batch, CONFIG, ALONE)
    reckoned = flops(CONFIG.model, work_of(batch, CONFIG, VOCABULARY))
    assert counter.get_total_flops() == reckoned.matrices + reckoned.head  # attention on a CPU is not counted
    content = torch.where(batch.mask, VOCABULARY.mask, content_ids(VOCABULARY, batch.codes_BTHW))
    packed = pack(VOCABULARY, GRID, batch.text_BS, batch.length_B, content, 1, 8, batch.first)
    hidden_BLD = plain(packed.ids_BL, packed.position_BL3, dense(packed.block_BL, packed.block_BL))
    target_BTHW = batch.mask[..., :-1]
    is_masked = (packed.ids_BL == VOCABULARY.mask).view(4, -1)
    is_newline = torch.zeros_like(content, dtype=torch.bool)
    is_newline[..., -1] = True
    logits = plain.logits(hidden_BLD[is_masked][~is_newline[batch.mask]], VOCABULARY.first_code, VOCABULARY.codes)
    loss_M = cross_entropy(logits, batch.codes_BTHW[target_BTHW], reduction="none")
    loss_M.mean().backward()
    check_equal(*({name: p.grad for name, p in each.named_parameters() if p.grad is not None} for each in (model, plain)))
    frame_M = target_BTHW.nonzero()[:, 1]
    torch.testing.assert_close(loss_T, torch.stack([loss_M[frame_M == t].mean() for t in range(2)]).detach())


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, videos=4, accumulate=4),
        replace(CONFIG, parallel=ParallelConfig(shard=True)),
        *(replace(CONFIG, parallel=ParallelConfig(recompute=mode, attention="prefix")) for mode in ("selective", "full")),
    ],
    ids=["in parts", "sharded", "selective", "full"],
)
def test_how_it_is_computed_changes_nothing(config: TrainModelConfig) -> None:
    finish(ALONE)  # a process alone makes itself a group
    check_equal(gradients(config), gradients(CONFIG))


def test_parts_are_computed_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, real = [], objective.batch_loss

    def noted(model: Transformer, vocabulary: Vocabulary, batch: MaskedBatch, *more: Any) -> tuple[Tensor, Tensor]:
        rows.append(len(batch.text_BS))
        return real(model, vocabulary, batch, *more)

    monkeypatch.setattr(objective, "batch_loss", noted)
    gradients(replace(CONFIG, videos=4, accumulate=2))
    assert rows == [2, 2]


def test_recomputation_keeps_less() -> None:
    """Bytes that the forward pass leaves for the backward pass: layers' inner values go, first all but attention's."""
    kept = []
    for recompute in parallel.Recompute.__args__:
        stored: dict[int, int] = {}

        def note(tensor: Tensor, stored: dict[int, int] = stored) -> Tensor:
            stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        config = replace(CONFIG, parallel=ParallelConfig(recompute=recompute))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            gradients(config)
        kept.append(sum(stored.values()))
    assert kept[0] > 1.3 * kept[1] > 1.3 * kept[2]


PLANS = {
    "averaged": ParallelConfig(),
    "sharded": ParallelConfig(shard=True, recompute="full", attention="prefix"),
    "replicas": ParallelConfig(shard=True, replicas=2),
    "selective": ParallelConfig(shard=True, recompute="selective", attention="dense"),
}


def worker(rank: int, out: Path) -> None:
    ranks = start()
    for name, plan in PLANS.items():
        save_file(gradients(replace(CONFIG, parallel=plan), ranks), out / f"{name} {rank}.safetensors")
    used_by_one = torch.nn.Parameter(torch.zeros(1))  # must not hang the other rank
    used_by_one.grad = torch.full((1,), 4.0) if rank == 1 else None
    parallel.average_gradients([used_by_one], ranks)
    assert used_by_one.grad is not None and used_by_one.grad.item() == 2.0
    assert average(torch.tensor([float(rank)]), ranks).item() == 0.5
    assert agree((float(rank), float(-rank)), ranks) == (1.0, 0.0)
    # the clocks of the two ranks differ, yet both see the same progress and stop together
    clock = Clock(100, 100.0, ranks, now=iter([0.0, 50.0 + rank, 60.0 + rank]).__next__)
    clock._asked = rank == 1
    assert (clock.progress(0), clock.progress(1), clock.progress(10), clock.interrupted) == (0.51, 0.51, 0.61, True)
    # what fails on one rank ends all, and rank 0 tells
    try:
        with together(ranks):
            if rank == 1:
                raise ValueError("shards are missing")
    except (ValueError, SystemExit) as error:
        (out / f"failure {rank}").write_text(f"{type(error).__name__} {error}")
    finish(ranks)


@pytest.mark.slow
def test_two_processes_equal_one_however_the_work_is_spread(tmp_path: Path) -> None:
    assert two(worker, tmp_path) == [0, 0]
    alone = gradients(CONFIG)
    for name in PLANS:
        for rank in (0, 1):
            check_equal(load_file(tmp_path / f"{name} {rank}.safetensors"), alone)
    failures = [(tmp_path / f"failure {rank}").read_text() for rank in (0, 1)]
    assert failures == ["ValueError process 1: shards are missing", "SystemExit 2"]


def test_plans_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"multiple of parallel\.replicas = 2, got 3"):
        ParallelConfig(shard=True, replicas=2).check(3)
    with pytest.raises(ValueError, match=r"set parallel\.shard=true"):
        ParallelConfig(replicas=2)
    block_BL = torch.zeros(1, 64 + 3 + 2 * GRID.frame_length, dtype=torch.int64)
    with pytest.raises(ValueError, match="use flex"):
        attention(block_BL, torch.tensor([5]), 64, replace(GRID, causal=True), 2, ParallelConfig(attention="prefix"))
