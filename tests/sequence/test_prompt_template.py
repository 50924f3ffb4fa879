"""The published sentence, its numbers and the frame sizes."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumos.sequence.prompt_template import SIZES, PromptReader, clock, crops, fill_numbers, said_frames
from lumos.sequence.text import train_text_tokenizer
from lumos.sequence.vocabulary import OPEN_FPS, OPEN_FRAMES, SENTENCE

SIDES = st.integers(1, 32).map(lambda n: 32 * n)


@given(SIDES, SIDES)
def test_crops_have_about_the_area_and_a_side_ratio_of_at_most_4(width: int, height: int) -> None:
    found = crops(width, height)
    assert len(set(found)) == len(found) and {(h, w) for w, h in found} == set(found)
    for w, h in found:
        assert w % 32 == h % 32 == 0 and max(w, h) <= 4 * min(w, h)
        assert w * h <= width * height < (w + 32) * (h + 32)
    assert ((width, height) in found) == (max(width, height) <= 4 * min(width, height))


def test_known_sizes() -> None:
    small, large = (crops(*size) for size in SIZES)
    assert (448, 256) in small and (672, 384) in large
    assert (576, 416) in large, "the size of images in the authors' pre-tokenised data"
    assert (672, 384) not in small and (448, 256) not in large and (1024, 256) not in large


@pytest.mark.parametrize(("width", "height"), [(450, 256), (0, 32), (32, -32)])
def test_odd_sides_have_no_crops(width: int, height: int) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        crops(width, height)


@pytest.mark.parametrize(
    ("frames", "fps", "said"), [(1, 12, 1), (25, 12, 24), (85, 12, 84), (17, 8, 16), (17, 12, 17), (5, 24, 5), (49, 12, 48)]
)
def test_the_sentence_speaks_of_whole_seconds_where_they_need_the_same_latent_frames(frames: int, fps: int, said: int) -> None:
    latent_frames = 1 + (frames - 1) // 4
    assert said_frames(latent_frames, *clock(frames, fps)) == said


def test_a_prompt_is_read_inside_the_sentence() -> None:
    text = train_text_tokenizer(["a"], 80)
    reader = PromptReader(text, "{width} {height} {frames} {fps} {caption}", 40, 25, 12, 4)
    for frames, said in ((1, "1 1"), (25, "24 12"), (49, "49 12")):  # longer than a clip: its own frames, a clip's seconds
        assert reader.ids("a", frames, 384, 672) == text.encode(f"672 384 {said} a")
    with pytest.raises(ValueError, match="at most 40 text ids"):
        reader.ids("a " * 40, 25, 384, 672)


def test_open_numbers_are_written_digit_by_digit() -> None:
    assert [clock(1, 8), clock(17, 8), clock(25, 12), clock(5, 24)] == [(1, 1), (2, 8), (2, 12), (1, 24)]
    assert fill_numbers([7, OPEN_FRAMES, 8, OPEN_FPS], 120, 9) == [7, 16400, 16401, 16399, 8, 16408]
    assert SENTENCE.count(OPEN_FRAMES) == SENTENCE.count(OPEN_FPS) == 1
    filled = fill_numbers(SENTENCE, 84, 12)
    assert len(filled) == len(SENTENCE) + 2 and max(filled) < 65_536
    assert filled[9:16] == [16405, 16406, 16401, 16471, 16402, 16407, 16403]  # 672x384
    assert zlib.crc32(repr(filled).encode()) == 1198652581, "ids as the authors' records have them"
