"""The stream of the worlds' batches: every chunk is a function of (seed, rank, number), so a resumed run meets the same data."""

import os
import signal
from collections import Counter
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from lumos.data.batch import Batch, Schedule
from lumos.data.worlds import (
    Chunks,
    Shapes,
    World,
    WorldsConfig,
    WorldsStream,
    open_worlds,
    own_captions,
    sample_captions,
    world_of,
)
from lumos.sequence.text import train_text_tokenizer
from lumos.sequence.vocabulary import small_vocabulary
from tests.toy_model import toy_tokenizer

SLOTS = 64
CONFIG = WorldsConfig(size=16, frames=5, chunk=4, pool=2, reuse=1, workers=0)
TEXT = train_text_tokenizer(sample_captions([Shapes()], 300, 0), 768)
VOCABULARY = small_vocabulary(TEXT.size, 25)


def chunks(seed: int = 0, rank: int = 0, size: int = 2, image_every: int = 2, workers: int = 0) -> Chunks:
    schedule = Schedule(size, size, image_every, seed, rank)
    return Chunks(replace(CONFIG, workers=workers), {"shapes": Shapes()}, TEXT, VOCABULARY, SLOTS, schedule)


def tensors(number: int, seed: int = 0, rank: int = 0) -> list[Tensor]:
    _, *halves = chunks(seed, rank)[number]
    return [tensor for (scenes,), *words in halves for tensor in (scenes.objects_BNP, scenes.background_BP, *words)]


def stream(first_step: int, **settings: int) -> WorldsStream:
    return WorldsStream(chunks(**settings), toy_tokenizer(), first_step, torch.device("cpu"))


def take(source: WorldsStream, step: int) -> Batch:
    return source.batch(step, torch.Generator().manual_seed(step))


def same(one: tuple[Tensor, ...] | list[Tensor], other: tuple[Tensor, ...] | list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_chunk_depends_on_seed_rank_and_number_alone() -> None:
    before = tensors(3)
    tensors(0), tensors(7, rank=1)  # what else was asked for, and in which order, does not matter
    torch.manual_seed(5)
    assert same(tensors(3), before)
    for other in (tensors(4), tensors(3, seed=1), tensors(3, rank=1)):
        assert not same(other, before)


@pytest.mark.parametrize("first_step", [1, 2, 9, 10])
def test_a_stream_started_late_gives_the_batches_of_one_that_ran_there(first_step: int) -> None:
    whole, late = stream(0), stream(first_step)
    assert whole.steps_per_chunk == 4  # so the pool has moved on by step 9
    for step in range(first_step):
        take(whole, step)
    for step in range(first_step, first_step + 4):
        assert same(take(whole, step), take(late, step)), step


def test_the_pool_moves_on() -> None:
    source = stream(0, size=64, image_every=0)
    source.steps_per_chunk = 2
    first = take(source, 0)
    for step in range(1, 5):
        later = take(source, step)
    seen, now = ({tuple(text) for text in batch.text_BS.tolist()} for batch in (first, later))
    assert len(seen) == len(now) == CONFIG.pool * CONFIG.chunk and not seen & now


def test_every_clip_and_every_image_is_used_as_often_as_asked() -> None:
    schedule = Schedule(videos=2, images=8, image_every=4)
    config = replace(CONFIG, chunk=8, reuse=3)
    source = stream(0)
    made = Chunks(config, {"shapes": Shapes()}, TEXT, VOCABULARY, SLOTS, schedule)
    assert made.sizes == [6, 8] and made.steps == 12  # of which nine use 2 of 6 clips each, and three use 8 of 8 images
    source.schedule, source.config, source.steps_per_chunk = schedule, replace(config, pool=1), 12
    source.chunks = iter([made[0]])
    for images, count in ((False, 6), (True, 8)):
        steps = [step for step in range(12) if schedule.is_image(step) == images]
        seen = Counter(tuple(text) for step in steps for text in take(source, step).text_BS.tolist())
        assert len(seen) == count and seen.total() == 3 * count


def test_ranks_take_the_same_world_at_the_same_time() -> None:
    worlds: dict[str, World] = {"shapes": Shapes(), "stickers": Shapes()}
    config = replace(CONFIG, shapes=0.5, stickers=0.5, chunk=1)
    names = [
        [Chunks(config, worlds, TEXT, VOCABULARY, SLOTS, Schedule(1, 1, 2, rank=rank))[n][0] for n in range(20)]
        for rank in (0, 1)
    ]
    assert names[0] == names[1] and len(set(names[0])) == 2


def test_every_pool_holds_all_worlds() -> None:
    share = {"shapes": 0.25, "stickers": 0.5, "creatures": 0.25}
    names = [world_of(number, share) for number in range(1000)]
    for name, part in share.items():
        assert all(abs(names[first : first + 12].count(name) - 12 * part) <= 1 for first in range(988))


def test_prompts_and_codes_belong_together() -> None:
    source = stream(0, size=32)
    source.steps_per_chunk = 2
    for image in (False, True):
        expected: dict[tuple[int, ...], Tensor] = {}
        for number in range(CONFIG.pool):
            name, *halves = chunks()[number]
            words_BS, _, codes_BTHW, *_ = source.tokenised(name, halves[image], 1 if image else CONFIG.frames)
            expected |= {tuple(text): codes for text, codes in zip(words_BS.tolist(), codes_BTHW, strict=True)}
        assert len(expected) == CONFIG.pool * CONFIG.chunk
        text_BS, _, codes_BTHW, *_ = take(source, int(image))
        assert all(torch.equal(expected[tuple(text)], codes) for text, codes in zip(text_BS.tolist(), codes_BTHW, strict=True))


def test_worlds_come_as_often_as_asked_and_need_their_files(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (200, 100, 0, 128)).save(tmp_path / "cat.png")
    (tmp_path / "one.jsonl").write_text('{"path": "cat.png", "noun": "cat", "captions": ["a cat"], "mirror": true}')
    config = replace(CONFIG, shapes=0.25, stickers=0.75, chunk=2)
    with pytest.raises(ValueError, match="worlds.stickers must be 0 without the stickers' files, got 0.75; give --stickers"):
        open_worlds(config, None, None)
    worlds = open_worlds(config, tmp_path / "one.jsonl", None)
    found = Chunks(config, worlds, TEXT, VOCABULARY, SLOTS, Schedule(2, 2, 2))
    names = [found[number][0] for number in range(200)]
    assert names.count("stickers") / 200 == pytest.approx(0.75, abs=0.1)
    source = stream(0)
    source.worlds, source.config = worlds, config
    name, video, _ = found[names.index("stickers")]
    assert source.tokenised(name, video, 5).codes_BTHW.shape == (2, 2, 2, 2)
    assert set(sample_captions(list(worlds.values()), 100, 0)) & {"a cat"} and [*own_captions([*worlds.values()])] == ["a cat"]
    assert [*open_worlds(CONFIG, tmp_path / "none", tmp_path / "none")] == ["shapes"]  # those without a share are not opened
    with pytest.raises(ValueError, match="must add up to 1, got 1.75"):
        replace(config, shapes=1.0)


def test_a_keyframe_is_the_picture_that_its_frame_shows() -> None:
    source = stream(0, size=8, image_every=0)
    name, video, _ = chunks()[0]
    made = source.tokenised(name, video, CONFIG.frames)
    assert made.key_BHW is not None and made.key_at_B is not None
    assert made.key_at_B.min() >= 1 and made.key_at_B.max() < CONFIG.frames and len(set(made.key_at_B.tolist())) > 1
    pixels_BCFHW = source.worlds[name].render(video[0][0], CONFIG.frames, CONFIG, torch.device("cpu"))
    for row, at in enumerate(made.key_at_B.tolist()):
        expected = source.tokenizer.encode(pixels_BCFHW[row : row + 1, :, at : at + 1])[0, 0]
        assert torch.equal(made.key_BHW[row], expected)


def test_ctrl_c_does_not_kill_the_workers() -> None:
    before = active_children()
    source = stream(0, workers=1)
    expected = stream(0)
    assert same(take(source, 0), take(expected, 0))
    (worker,) = set(active_children()) - set(before)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGINT)  # a terminal's Ctrl-C goes to the whole process group
    for step in range(1, 12):
        assert same(take(source, step), take(expected, step))
    assert worker.is_alive()
