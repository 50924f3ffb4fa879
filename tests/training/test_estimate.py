"""The estimate's counts against counts made another way, and what follows from them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lumos.model.attention import dense
from lumos.model.prefix import prefix
from lumos.model.rope import Rotation
from lumos.model.transformer import LUMOS_1B, LUMOS_3B, Layer, ModelConfig, Transformer
from lumos.model_folder import VideoConfig
from lumos.presets import MODELS
from lumos.sequence.layout import HEADER, PADDING_BLOCK, Grid, content_ids, pack, text_batch
from lumos.sequence.vocabulary import small_vocabulary
from lumos.training import estimate
from lumos.training.estimate import CARDS, GIB, Spread, Work
from lumos.training.parallel import ParallelConfig, Recompute, _compile_and_recompute

TOY = ModelConfig(vocabulary=100, layers=3, width=64, heads=4, kv_heads=2, head_width=32, ffn=96)
AT_384P = estimate.work(VideoConfig(384, 672, 25, 12, 268, 7, 6), 7, 1, 64_000)
H200 = CARDS["H200"]


@pytest.mark.parametrize(("shape", "count"), [(LUMOS_1B, 1_503_729_664), (LUMOS_3B, 3_614_630_912)])
def test_parameters_are_the_published_counts(shape: ModelConfig, count: int) -> None:
    layer, outside = estimate.parameters(shape)
    assert layer * shape.layers + outside == count


def test_ids_and_visible_pairs_are_those_of_the_block_rule() -> None:
    assert AT_384P.ids == 28_859  # the released code's sample
    vocabulary, grid = small_vocabulary(30, 20), Grid(4, 4)
    text = text_batch(vocabulary, [list(range(7))], 9)
    block_BL = pack(vocabulary, grid, *text, content_ids(vocabulary, torch.zeros(1, 3, 4, 4, dtype=torch.int64)), 1, 8).block_BL
    assert (block_BL < PADDING_BLOCK).all()
    work = Work(1, 9 + HEADER, grid.frame_length, 3, 0, 0)
    assert work.ids == block_BL.shape[1]
    assert work.visible == int((block_BL[:, None, :] <= block_BL[:, :, None]).sum())


def test_operations_are_those_that_torch_counts() -> None:
    """A full forward and backward pass without the head; torch counts attention over all pairs, seen or not."""
    model = Transformer(TOY)
    model.initialise(torch.Generator().manual_seed(0))
    L = 40
    block_BL = torch.arange(L)[None]
    with FlopCounterMode(display=False) as counter:
        position_BL3 = torch.zeros(1, L, 3, dtype=torch.int64)
        model(torch.zeros(1, L, dtype=torch.int64), position_BL3, dense(block_BL, block_BL)).sum().backward()
    matrices = sum(count for name, count in counter.get_flop_counts()["Global"].items() if "mm" in str(name))
    count = estimate.flops(TOY, Work(1, 0, L, 1, 0, 0))
    attention = 12.0 * L * L * TOY.heads * TOY.head_width * TOY.layers
    assert count.attention == attention
    # written out, scores and sums are batched products; their backward pass is twice the forward
    assert matrices in (count.matrices, count.matrices + attention)


def bytes_left_by(forward: Callable[[], Tensor]) -> int:
    """What the allocator gave and did not get back, while the result is alive."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        out = forward()
    assert out.requires_grad
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    return sum(event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]")


@pytest.mark.parametrize("recompute", get_args(Recompute))
@pytest.mark.parametrize("shard", [True, False])
def test_what_a_layer_keeps_is_what_the_allocator_counts(
    recompute: Recompute, shard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers cut for the compiler and for recomputation as on a card, with the compiler's choice of what is saved, in bf16."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    shape = ModelConfig(vocabulary=1, layers=2, width=256, heads=4, kv_heads=1, head_width=64, ffn=640)
    text, frame, frames = 20, 150, 3
    L = text + frame * frames
    layers = [Layer(shape) for _ in range(shape.layers)]
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.constant_(parameter, 0.01)
        layer.to(torch.bfloat16 if shard else torch.float32)
        _compile_and_recompute(layer, ParallelConfig(recompute=recompute), torch.device("cuda"))
    x_BLD = torch.ones(1, L, shape.width, dtype=torch.bfloat16 if shard else torch.float32, requires_grad=True)
    turn, attend = Rotation(*torch.ones(2, 1, L, 32)), prefix([4], text, frame, frames)

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=not shard):
            out_BLD = x_BLD
            for layer in layers:
                out_BLD = layer(out_BLD, turn, attend, None, 0)
        return out_BLD

    forward()  # compiles
    left = bytes_left_by(forward)
    kept = estimate.kept(shape, recompute, Spread(shard=shard)).kept
    assert left == pytest.approx(2 * L * kept * shape.layers, rel=0.03)


def test_what_is_computed_again_is_not_kept() -> None:
    for spread in (Spread(), Spread(8), Spread(shard=False)):
        needs = [estimate.memory(LUMOS_1B, AT_384P, mode, spread).activations for mode in estimate.MODES]
        assert needs[0] > needs[1] > needs[2]
        times = [estimate.seconds(LUMOS_1B, AT_384P, mode, H200, spread) for mode in estimate.MODES]
        assert times[0] < times[1] < times[2]


def test_sharding_spreads_what_it_should() -> None:
    one, eight = (estimate.memory(LUMOS_3B, AT_384P, "full", Spread(gpus)) for gpus in (1, 8))
    assert eight.parameters == one.parameters / 8 and eight.optimiser == one.optimiser / 8
    assert estimate.memory(LUMOS_3B, AT_384P, "full", Spread(8, replicas=8)).parameters == one.parameters
    assert estimate.memory(LUMOS_3B, AT_384P, "full", Spread(8, shard=False)).parameters == one.parameters
    averaged = estimate.memory(LUMOS_3B, AT_384P, "full", Spread(average=True))
    assert averaged.optimiser == one.optimiser * 12 / 8


def test_advice_is_taken_from_what_would_fit() -> None:
    assert estimate.advice(LUMOS_1B, AT_384P, "off", Spread(), 40) == "use --set parallel.recompute=selective"
    assert "one sample at a time" in estimate.advice(LUMOS_1B, AT_384P, "off", Spread(shard=False), 24.0)
    words = estimate.advice(LUMOS_3B, AT_384P, "full", Spread(), 40)
    gpus = int(words.split("at least ")[1].split()[0])
    need = estimate.memory(LUMOS_3B, AT_384P, "full", Spread(gpus)).total
    assert need <= estimate.RESERVE * 40 * GIB < estimate.memory(LUMOS_3B, AT_384P, "full", Spread(gpus // 2)).total
    assert "shorter" in estimate.advice(LUMOS_3B, replace(AT_384P, frames=100), "full", Spread(), 4)


def test_a_card_is_known_by_its_name() -> None:
    assert estimate.card_named("NVIDIA H200") is H200
    assert estimate.card_named("NVIDIA A100-SXM4-80GB") is CARDS["A100"]
    assert estimate.card_named("NVIDIA H20") is CARDS["H20"]
    assert estimate.card_named("NVIDIA GeForce RTX 4090") is None


def test_the_published_stages_are_presets() -> None:
    names = {f"{size}-{stage}" for size in ("1b", "3b") for stage in ("256p-images", "256p", "384p")}
    assert names <= MODELS.keys()
    rates = {name: MODELS[name].optim.lr for name in names}
    assert rates["1b-256p-images"] == 5e-5 and rates["3b-256p-images"] == 1e-4
    assert {rates[f"{size}-{stage}"] for size in ("1b", "3b") for stage in ("256p", "384p")} == {2.5e-5}
    for name in names:
        config = MODELS[name]
        assert (config.drop_text, config.mask, config.least_ratio, config.optim.clip) == (0.1, "tube", 0.7, 4.0)
        assert config.image_every == (1 if name.endswith("images") else 2) and config.parallel.shard
    assert (MODELS["1b-384p"].images, MODELS["1b-384p"].videos) == (6, 1)
