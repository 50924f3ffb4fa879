"""The estimate's counts against counts made another way, and what follows from them."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lumos.model.attention import dense
from lumos.model.transformer import LUMOS_1B, LUMOS_3B, ModelConfig, Transformer
from lumos.model_folder import VideoConfig
from lumos.presets import MODELS
from lumos.sequence.layout import HEADER, PADDING_BLOCK, Grid, content_ids, pack, text_batch
from lumos.sequence.vocabulary import small_vocabulary
from lumos.training import estimate
from lumos.training.estimate import CARDS, GIB, Spread, Work

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


def test_what_is_computed_again_is_not_kept() -> None:
    for spread in (Spread(), Spread(8), Spread(shard=False)):
        needs = [estimate.memory(LUMOS_1B, AT_384P, mode, spread).activations for mode in estimate.MODES]
        assert needs[0] > needs[1] > needs[2]
        times = [estimate.seconds(LUMOS_1B, AT_384P, mode, H200, spread) for mode in estimate.MODES]
        assert times[0] < times[1] < times[2]


def test_sharding_and_sharing_spread_what_they_should() -> None:
    one, eight = (estimate.memory(LUMOS_3B, AT_384P, "full", Spread(gpus)) for gpus in (1, 8))
    assert eight.parameters == one.parameters / 8 and eight.optimiser == one.optimiser / 8
    assert estimate.memory(LUMOS_3B, AT_384P, "full", Spread(8, replicas=8)).parameters == one.parameters
    assert estimate.memory(LUMOS_3B, AT_384P, "full", Spread(8, shard=False)).parameters == one.parameters
    shared = estimate.memory(LUMOS_3B, AT_384P, "off", Spread(8, context=4))
    assert shared.activations == estimate.memory(LUMOS_3B, AT_384P, "off", Spread(8)).activations / 4
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
