"""The arithmetic's counts against counts made another way and against peaks that were measured, and what follows from them."""

from dataclasses import replace

import pytest
import torch

from lumos.model.transformer import LUMOS_1B, LUMOS_3B, ModelConfig
from lumos.model_folder import VideoConfig
from lumos.presets import MODELS
from lumos.published.official import official_shapes
from lumos.sequence.layout import HEADER, PADDING_BLOCK, Grid, content_ids, pack, text_batch
from lumos.sequence.vocabulary import small_vocabulary
from lumos.training import step_cost
from lumos.training.parallel import ParallelConfig
from lumos.training.step_cost import CARDS, Work, step_memory, step_seconds, work_of_videos

TINY = ModelConfig(vocabulary=4816, layers=8, width=384, heads=6, kv_heads=2, head_width=64, ffn=1024)
AT_128P = work_of_videos(VideoConfig(128, 128, 17, 8, 64, 5, 4), 5, 64, 4096, masked=0.8)
AT_256P = work_of_videos(VideoConfig(256, 448, 25, 12, 268, 7, 6), 7, 2, 64_000, masked=0.8)
AT_384P = work_of_videos(VideoConfig(384, 672, 25, 12, 268, 7, 6), 7, 1, 64_000, masked=0.8)
OFF = ParallelConfig(shard=True)
SOME, FULL = replace(OFF, recompute="selective"), replace(OFF, recompute="full")
H200 = CARDS["H200"]


@pytest.mark.parametrize(("shape", "count"), [(LUMOS_1B, 1_503_729_664), (LUMOS_3B, 3_614_630_912)])
def test_parameters_are_the_published_counts(shape: ModelConfig, count: int) -> None:
    layer, outside = step_cost.parameters(shape)
    assert layer * shape.layers + outside == count == sum(torch.Size(of).numel() for of in official_shapes(shape).values())


def test_ids_and_visible_pairs_are_those_of_the_block_rule() -> None:
    assert (AT_384P.ids, AT_384P.targets) == (28_859, round(0.8 * 7 * 48 * 84))  # the released code's sample
    vocabulary, grid = small_vocabulary(30, 20), Grid(4, 4)
    text = text_batch(vocabulary, [list(range(7))], 9)
    block_BL = pack(vocabulary, grid, *text, content_ids(vocabulary, torch.zeros(1, 3, 4, 4, dtype=torch.int64)), 1, 8).block_BL
    assert (block_BL < PADDING_BLOCK).all()
    work = Work(1, 9 + HEADER, grid.frame_length, 3, 0, 0)
    assert work.ids == block_BL.shape[1]
    assert work.visible == int((block_BL[:, None, :] <= block_BL[:, :, None]).sum())


# docs/performance.md: the shape, its work, the plan, GPUs, peak GiB and seconds per step
MEASURED = [
    (LUMOS_1B, AT_384P, FULL, 1, 25.2, 1.158),
    (LUMOS_1B, AT_384P, SOME, 1, 28.9, 1.002),
    (LUMOS_1B, AT_384P, OFF, 1, 46.1, 0.912),
    (LUMOS_1B, AT_384P, replace(OFF, shard=False), 1, 47.4, 0.914),
    (LUMOS_1B, AT_384P, replace(FULL, compile="off"), 1, 25.9, 1.275),
    (LUMOS_1B, AT_256P, FULL, 1, 24.9, 0.737),
    (LUMOS_1B, AT_256P, OFF, 1, 43.6, 0.583),
    (LUMOS_3B, AT_384P, FULL, 1, 57.0, 2.635),
    (LUMOS_3B, AT_384P, SOME, 1, 67.1, 2.341),
    (LUMOS_3B, AT_384P, OFF, 1, 101.8, 2.085),
    (TINY, AT_128P, replace(OFF, shard=False), 1, 8.66, 0.0607),
    (TINY, AT_128P, OFF, 1, 7.88, None),
    (LUMOS_1B, AT_384P, FULL, 2, 15.2, None),
    (LUMOS_1B, AT_384P, OFF, 2, 37.8, None),
    (LUMOS_3B, AT_384P, FULL, 2, 31.9, None),
    (LUMOS_1B, AT_384P, replace(FULL, replicas=2), 2, 25.2, None),
]


@pytest.mark.parametrize(("shape", "work", "plan", "gpus", "peak", "seconds"), MEASURED)
def test_peaks_and_times_are_those_that_were_measured(
    shape: ModelConfig, work: Work, plan: ParallelConfig, gpus: int, peak: float, seconds: float | None
) -> None:
    share = 0.07 if shape is TINY or plan.compile == "off" else 0.03
    assert step_memory(shape, work, plan, gpus).total / 2**30 == pytest.approx(peak, rel=share)
    if seconds is not None:
        assert step_seconds(shape, work, plan, H200) == pytest.approx(seconds, rel=share)


def test_a_step_without_samples_is_the_update_alone() -> None:
    nothing = replace(AT_384P, samples=0)
    for plan, gpus, share in ((OFF, 1, 1), (OFF, 4, 4), (replace(OFF, shard=False), 4, 1)):
        assert step_seconds(LUMOS_1B, nothing, plan, H200, gpus) == pytest.approx(32 * 1_503_729_664 / share / 4e12)


def test_a_run_has_work_for_every_kind_of_its_steps() -> None:
    config = replace(MODELS["1b-384p"], videos=4, images=6, accumulate=2)
    for image_every, counts in ((0, {"videos": 2}), (1, {"images": 3}), (2, {"videos": 2, "images": 3})):
        works = step_cost.works_of(replace(config, image_every=image_every), 64_000)
        assert {name: work.samples for name, work in works.items()} == counts
        assert all(work.frames == (config.video.window if name == "videos" else 1) for name, work in works.items())


def test_sharding_spreads_what_it_should() -> None:
    one, eight = (step_memory(LUMOS_3B, AT_384P, FULL, gpus) for gpus in (1, 8))
    assert eight.parameters == one.parameters / 8 and eight.optimiser == one.optimiser / 8
    assert step_memory(LUMOS_3B, AT_384P, replace(FULL, shard=False), 8).parameters == one.parameters
    assert step_memory(LUMOS_3B, AT_384P, FULL, moments=12).optimiser == one.optimiser * 12 / 8
    assert step_memory(LUMOS_3B, AT_384P, FULL, moments=0).gradients == 0


def test_advice_is_taken_from_what_would_fit() -> None:
    assert step_cost.advice(LUMOS_1B, AT_384P, OFF, 1, 8, 40) == "use --set parallel.recompute=selective"
    assert "one sample at a time" in step_cost.advice(LUMOS_1B, AT_384P, replace(OFF, shard=False), 1, 8, 24.0)
    words = step_cost.advice(LUMOS_3B, replace(AT_384P, samples=50), FULL, 1, 8, 40)
    gpus = int(words.split("at least ")[1].split()[0])
    enough, less = (step_memory(LUMOS_3B, AT_384P, FULL, count) for count in (gpus, gpus // 2))
    assert step_cost.fits(enough, 40) and not step_cost.fits(less, 40)
    assert "shorter" in step_cost.advice(LUMOS_3B, replace(AT_384P, frames=100), FULL, 1, 8, 4)


@pytest.mark.parametrize(
    ("name", "card"),
    [("NVIDIA H200", "H200"), ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA H20", "H20"), ("NVIDIA RTX 4090", None)],
)
def test_a_card_is_known_by_its_name(name: str, card: str | None) -> None:
    assert step_cost.card_named(name) is (CARDS[card] if card else None)


def test_the_published_stages_are_presets() -> None:
    for size, first_rate in (("1b", 5e-5), ("3b", 1e-4)):
        for stage in ("256p-images", "256p", "384p"):
            config = MODELS[f"{size}-{stage}"]
            images = stage == "256p-images"
            assert config.optim.lr == (first_rate if images else 2.5e-5)
            assert (config.drop_text, config.mask, config.least_ratio, config.optim.clip) == (0.1, "tube", 0.7, 4.0)
            assert config.image_every == (1 if images else 2) and config.parallel.shard
            assert stage != "384p" or (config.images, config.videos) == (6, 1)
