"""Batches are a function of (seed, rank, step): nothing is lost, doubled or mixed up, whatever the threads, ranks and resumes."""

import random
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lumos.data.batch import Batch, Schedule
from lumos.data.loader import EpochPlan, LoaderConfig, ShardStream, caption_report, captions_by_clip
from lumos.data.shards import CODES, TOKENS, ShardIndex, open_shards, pack_codes, write_shard
from lumos.sequence.prompt_template import PromptReader
from lumos.sequence.text import train_text_tokenizer
from lumos.sequence.vocabulary import DIGIT_ZERO, OPEN_FPS, OPEN_FRAMES, small_vocabulary

WORDS = ["one", "two", "three", "red", "blue"]
TEXT = train_text_tokenizer([" ".join(WORDS)], 80)
VOCABULARY = small_vocabulary(TEXT.size, 4096)
SLOTS = 16
PROMPTS = PromptReader(TEXT, "{caption}", SLOTS - 2, 9, 8, 4)
CPU = torch.device("cpu")


def row(number: int, T: int = 3, H: int = 4, W: int = 4, captions: tuple[str, ...] = ()) -> dict[str, Any]:
    """A clip whose every code is its number, so that it can be told in a batch."""
    facts = {"codes": pack_codes(torch.full((T, H, W), number)), "T": T, "H": H, "W": W, "fps": 8.0, "frames": 1 + 4 * (T - 1)}
    words = list(captions) or [WORDS[number % 5], f"{WORDS[number % 5]} {WORDS[number // 5 % 5]}"]
    return {**facts, "captions": words, "source": f"{number}.mp4", "start": 0.0, "mirrored": False, "tokenizer": "t"}


def write(folder: Path, rows: list[dict[str, Any]], a_shard: int = 10) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(rows), a_shard)):
        write_shard(folder / f"{number:06}.parquet", CODES, "t", rows[first : first + a_shard], [])
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """47 videos of two sizes and 9 images."""
    rows = [row(number, T=1) if number % 6 == 5 else row(number, W=6 if number % 3 else 4) for number in range(56)]
    return write(tmp_path_factory.mktemp("shards") / "s", rows)


def stream(
    shards: Path | str, videos: int = 4, images: int = 3, every: int = 3, rank: int = 0, world: int = 1, **config: int
) -> Any:
    schedule = Schedule(videos, images, every, 7, rank, world)
    return ShardStream(open_shards(shards), PROMPTS, 8, VOCABULARY, schedule, LoaderConfig(**config), CPU, 1.0)


def take(source: Any, step: int) -> Batch:
    return source.batch(step, torch.Generator())


def numbers(batch: Batch) -> list[int]:
    return batch.codes_BTHW[:, 0, 0, 0].tolist()


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


def test_codes_and_one_of_the_captions_belong_together(shards: Path) -> None:
    source = stream(shards)
    chosen: dict[int, set[tuple[int, ...]]] = {}
    for step in range(60):
        batch = take(source, step)
        assert (batch.codes_BTHW == batch.codes_BTHW[:, :1, :1, :1]).all() and batch.codes_BTHW.dtype == torch.int64
        for number, ids, length in zip(numbers(batch), batch.text_BS, batch.length_B.tolist(), strict=True):
            prompt = ids[SLOTS - length :].tolist()
            expected = [[VOCABULARY.begin, *TEXT.encode(words), VOCABULARY.separator] for words in row(number)["captions"]]
            assert prompt in expected
            chosen.setdefault(number, set()).add(tuple(prompt))
    assert sum(len(prompts) == 2 for prompts in chosen.values()) > 10  # both captions come up


def test_every_epoch_shows_everything_once_in_another_order(shards: Path) -> None:
    index = open_shards(shards)

    def epochs(seed: int, image: bool = False) -> list[list[int]]:
        plan, count = EpochPlan(index, image, Schedule(1, 1, 0, seed), 2**20), 9 if image else 47
        return [[int(plan.rows(n)[0]) for n in range(start, start + count)] for start in (0, count)]

    for image in (False, True):
        first, second = epochs(3, image)
        assert sorted(first) == sorted(second) == [number for number in range(56) if (number % 6 == 5) == image]
        assert first != second and epochs(3, image) == [first, second] and epochs(4, image)[0] != first


@pytest.mark.parametrize("first_step", [1, 5, 29])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_stream_started_late_goes_on_exactly_with_other_threads(shards: Path, first_step: int, workers: int) -> None:
    whole, late = stream(shards), stream(shards, workers=workers, ahead=workers)
    expected = [take(whole, step) for step in range(first_step + 12)]
    assert all(same(take(late, step), expected[step]) for step in range(first_step, first_step + 12))
    assert len(late.ready) == workers  # the next ones


def test_ranks_have_the_same_shape_and_other_clips(shards: Path) -> None:
    plans = [EpochPlan(open_shards(shards), False, Schedule(1, 1, 0, 7, rank, 3), 2**20) for rank in range(3)]
    steps = [[int(plan.rows(n)[0]) for plan in plans] for n in range(plans[0].epoch_batches)]
    assert all(len({row % 3 > 0 for row in rows}) == 1 for rows in steps)
    rows = [row for step in steps for row in step]
    assert len(set(rows)) == len(rows) >= 47 - 2 * 2  # at most world - 1 rows of a bucket wait for the next epoch


def large_index(groups: list[int]) -> ShardIndex:
    sizes = np.tile([3, 8, 8], (sum(groups), 1))
    places = np.concatenate([np.stack([np.full(n, 0), np.full(n, g), np.arange(n)], 1) for g, n in enumerate(groups)])
    return ShardIndex("-", ("-",), CODES, "t", 8.0, sizes, places, "-", sizes[:, 0])


def test_a_bucket_larger_than_memory_is_shuffled() -> None:
    plan = EpochPlan(large_index([20] * 10), False, Schedule(1, 1, 0, seed=1), 50 * 3 * 8 * 8)
    first, second = ([int(plan.rows(n)[0]) for n in range(start, start + 200)] for start in (0, 200))
    assert sorted(first) == sorted(second) == list(range(200)) and first != second
    assert (np.diff(first) == 1).mean() < 0.2, "a set is shuffled"
    fits, ample = (EpochPlan(plan.index, False, plan.schedule, rows * 3 * 8 * 8)._dealt(0, 0) for rows in (200, 400))
    assert fits.tolist() == ample.tolist() != first


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 7), st.integers(1, 50))
@example([5], 5, 1, 50)  # one row for each rank
def test_buckets_larger_than_memory_are_dealt_fairly(groups: list[int], world: int, size: int, a_set: int) -> None:
    index = large_index(groups)
    plans = [EpochPlan(index, False, Schedule(size, 1, 0, 1, rank, world), a_set * 3 * 8 * 8) for rank in range(world)]
    total = sum(groups)
    if total < world:
        return
    share = total // world
    for epoch in range(2):
        parts = [plan._dealt(0, epoch) for plan in plans]
        assert all(len(part) == share for part in parts)
        rows = np.concatenate(parts).tolist()
        assert len(set(rows)) == len(rows)
    if share > a_set:  # a rank stays in few row groups at a time
        for part in parts:
            first = {int(index.place_N3[row, 1]) for row in part[:a_set]}
            assert len(first) <= a_set + 1
    batch = plans[0].rows(5)
    assert len(batch) == size and (batch < total).all()


@given(st.integers(0, 200), st.integers(0, 5))
def test_every_kind_counts_its_own_steps(step: int, every: int) -> None:
    schedule, kinds = Schedule(4, 3, every), [every > 0 and s % every == every - 1 for s in range(step + 1)]
    assert [schedule.is_image(s) for s in range(step + 1)] == kinds
    assert schedule.number(step) == kinds[:step].count(kinds[step])
    assert schedule.size(kinds[step]) == (3 if kinds[step] else 4)


def test_without_images_the_first_frames_of_videos_are_images(tmp_path: Path) -> None:
    source = stream(write(tmp_path / "s", [row(number) for number in range(6)]))
    batch = take(source, 2)
    assert batch.codes_BTHW.shape == (3, 1, 4, 4) and set(numbers(batch)) <= set(range(6))


def test_fewer_clips_than_a_batch_or_than_ranks_are_repeated(tmp_path: Path) -> None:
    index = open_shards(write(tmp_path / "s", [row(0), row(1)]))
    plans = [EpochPlan(index, False, Schedule(6, 1, 0, 7, rank, world), 2**20) for world in (1, 3) for rank in range(world)]
    assert Counter(plans[0].rows(0).tolist()) == {0: 3, 1: 3}
    assert {row for plan in plans for row in plan.rows(0).tolist()} <= {0, 1}
    with pytest.raises(ValueError, match="got 2; use --set videos=2, or more clips"):
        stream(index.folder, videos=6)
    with pytest.raises(ValueError, match="hold the 4 videos of a step on all GPUs, got 0; use image_every=1, or more clips"):
        stream(write(tmp_path / "images", [row(0, T=1)]))


class Other:
    """A stream that says which step it was asked for."""

    def batch(self, step: int, draw: torch.Generator) -> Batch:
        return Batch(torch.zeros(1), torch.zeros(1), torch.full((4, 1, 1, 1), 1000 + step))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_mix_alternates_and_resumes(shards: Path, share: float) -> None:
    def mixed() -> ShardStream:
        source = stream(shards)
        source.share, source.other = share, Other()
        return source

    whole = mixed()
    found = [numbers(take(whole, step)) for step in range(120)]
    for image in (False, True):
        mine = [batch for step, batch in enumerate(found) if (step % 3 == 2) == image]
        assert abs(sum(batch[0] < 1000 for batch in mine) - share * len(mine)) <= 1
    assert all(batch[0] == 1000 + step for step, batch in enumerate(found) if batch[0] >= 1000)
    late = mixed()
    assert [numbers(take(late, step)) for step in range(50, 80)] == found[50:80]
    pure = stream(shards)
    shown = [batch for step, batch in enumerate(found) if batch[0] < 1000 and step % 3 != 2]
    assert shown == [numbers(pure._make(False, n)) for n in range(len(shown))]  # none of the shards' batches is skipped


def test_prompts_are_read_in_the_sentence_that_generation_has(shards: Path) -> None:
    source = stream(shards)
    source.prompts = reader = replace(PROMPTS, template="{width} {height} {frames} {fps} {caption}", most=30)
    for step, frames in ((0, 9), (2, 1)):  # videos, images
        batch = take(source, step)
        sides = [8 * side for side in batch.codes_BTHW.shape[2:]]
        possible = [reader.ids(words, frames, *sides) for words in {*WORDS, *map(" ".join, product(WORDS, WORDS))}]
        for text_S, length in zip(batch.text_BS.tolist(), batch.length_B.tolist(), strict=True):
            assert text_S[len(text_S) - length + 1 : -1] in possible
    source.index = replace(source.index, form=TOKENS)  # the authors' ids, with numbers left open: 9 frames at 8 per second
    assert source._prompt([7, OPEN_FRAMES, OPEN_FPS], random.Random(), 9, 32, 32) == [7, DIGIT_ZERO + 8, DIGIT_ZERO + 8]
    assert source._prompt([7, OPEN_FRAMES, OPEN_FPS], random.Random(), 1, 32, 32) == [7, DIGIT_ZERO + 1, DIGIT_ZERO + 1]


def test_captions_as_people_write_them(tmp_path: Path) -> None:
    words = "\u732b one " * 30
    folder = write(tmp_path / "s", [row(number, captions=(words,)) for number in range(4)])
    batch = take(stream(folder), 0)
    assert batch.length_B.tolist() == [SLOTS] * 4 and (batch.text_BS < VOCABULARY.size).all()
    report = caption_report(stream(folder), 32, 32)
    assert report.startswith("100% of the captions are cut") and "; 100% of the captions are shown without" in report
    assert list(captions_by_clip(open_shards(folder), 3)) == [[words]] * 3


def test_rows_stay_right_when_the_cache_is_too_small(shards: Path) -> None:
    large, small = stream(shards), stream(shards, cache_mib=0)
    assert all(same(take(large, step), take(small, step)) for step in range(12))
    assert small.reader.group.cache_info().maxsize == 1
    some = stream(shards, cache_mib=3, set_mib=5)
    assert some.reader.group.cache_info().maxsize == 3 * 2**20 // some.index.group_bytes
    assert some.plans[False].set_codes == 5 * 2**19  # of two bytes


def test_codes_beyond_the_codebook_are_refused_by_name(tmp_path: Path) -> None:
    source = stream(write(tmp_path / "s", [row(VOCABULARY.codes) for _ in range(4)]))
    with pytest.raises(ValueError, match=r"000000\.parquet: codes must be below 4096, got 4096"):
        take(source, 0)
