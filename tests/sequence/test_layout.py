"""Pack and unpack are inverse, positions and blocks follow the paper's rules, padding changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumos.sequence.layout import (
    HEADER,
    PADDING_BLOCK,
    Grid,
    Keyframe,
    Places,
    content_ids,
    content_of,
    frame_positions,
    pack,
    text_batch,
    unpack,
)
from lumos.sequence.vocabulary import small_vocabulary

SMALL = small_vocabulary(text_size=100, codes=50)


@settings(max_examples=25, deadline=None)
@given(
    text=st.lists(st.integers(0, 99), min_size=0, max_size=12),
    shape=st.tuples(st.integers(1, 3), st.sampled_from([4, 8]), st.sampled_from([4, 12])),
    seed=st.integers(0, 2**20),
)
def test_unpack_undoes_pack(text: list[int], shape: tuple[int, int, int], seed: int) -> None:
    codes = torch.randint(0, SMALL.codes, (1, *shape), generator=torch.Generator().manual_seed(seed))
    row, length = text_batch(SMALL, [text], 14)
    ids = pack(SMALL, Grid(*shape[1:]), row, length, content_ids(SMALL, codes), 2, 8, tail=True).ids_BL[0]
    found_text, found_codes, seconds, fps = unpack(SMALL, ids[14 - int(length) :].tolist())
    assert (found_text, seconds, fps) == (text, 2, 8)
    assert torch.equal(found_codes, codes[0])


def test_numbers_have_a_range() -> None:
    with pytest.raises(ValueError, match="0 to 63"):
        SMALL.number(64)
    with pytest.raises(ValueError, match="codes, or the square of a number, got 131073"):
        small_vocabulary(100, 2**17 + 1)


def test_prompt_padding_changes_no_position_and_is_visible_to_nothing() -> None:
    grid, codes = Grid(4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.int64)
    tight = pack(SMALL, grid, *text_batch(SMALL, [[5, 6]], 4), content_ids(SMALL, codes), 1, 1)
    padded = pack(SMALL, grid, *text_batch(SMALL, [[5, 6]], 9), content_ids(SMALL, codes), 1, 1)
    assert torch.equal(padded.ids_BL[:, 5:], tight.ids_BL) and torch.equal(padded.position_BL3[:, 5:], tight.position_BL3)
    assert (padded.block_BL[:, :5] == PADDING_BLOCK).all()
    see = padded.block_BL[:, None, :] <= padded.block_BL[:, :, None]
    assert not see[:, 5:, :5].any()
    tight_see = tight.block_BL[:, None, :] <= tight.block_BL[:, :, None]
    assert torch.equal(see[:, 5:, 5:], tight_see)


def test_a_window_has_the_positions_it_has_in_the_whole_video() -> None:
    grid, codes = Grid(4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    text = text_batch(SMALL, [[5]], 3)
    whole = pack(SMALL, grid, *text, content_ids(SMALL, codes), 1, 1)
    window = pack(SMALL, grid, *text, content_ids(SMALL, codes[:, :2]), 1, 1, first_latent=2)
    assert torch.equal(window.position_BL3[:, 6:], whole.position_BL3[:, 6 + 2 * grid.frame_length :])


def test_damaged_samples_are_refused() -> None:
    codes = torch.zeros(1, 1, 4, 4, dtype=torch.int64)
    ids = pack(SMALL, Grid(4, 4), *text_batch(SMALL, [[5]], 3), content_ids(SMALL, codes), 1, 1, tail=True).ids_BL[0].tolist()
    with pytest.raises(ValueError, match="newline"):
        unpack(SMALL, [SMALL.mask if i == SMALL.newline else i for i in ids])
    for wrong in (SMALL.mask, SMALL.first_code - 1, SMALL.first_code + SMALL.codes):
        with pytest.raises(ValueError, match="codes must be"):
            unpack(SMALL, [wrong if i == SMALL.first_code else i for i in ids])
    with pytest.raises(ValueError, match="video start"):
        unpack(SMALL, ids[:3])
    with pytest.raises(ValueError, match="got others or none"):
        unpack(SMALL, ids[:6] + ids[-2:])  # no frames


@pytest.mark.parametrize(("places", "step"), [("pixel", (4, 8, 8)), ("latent", (1, 1, 1))])
def test_content_lies_at_its_pixels_or_latent_places(places: Places, step: tuple[int, int, int]) -> None:
    grid = Grid(4, 4, places=places)
    position_BL3 = frame_positions(grid, torch.tensor([5]), 0, 3)
    index_TN = 5 + HEADER + torch.arange(position_BL3.shape[1]).view(3, -1)
    for structure in (0, 1, 2, -1):
        assert (position_BL3[0].view(3, -1, 3)[:, structure] == index_TN[:, structure, None]).all()
    position_THW3 = content_of(grid, torch.nn.functional.pad(position_BL3, (0, 0, 3 + HEADER, 0)), 3, 3)[0]
    origin = position_THW3[0, 0, 0]
    assert origin.tolist() == [11, 11, 11]
    assert (position_THW3[2, 3, 1] - origin).tolist() == [2 * step[0], 3 * step[1], step[2]]


@pytest.mark.parametrize("places", ["pixel", "latent", "index"])
def test_a_keyframe_lies_at_its_true_time(places: Places) -> None:
    grid, codes = Grid(4, 4, places=places), torch.zeros(2, 3, 4, 4, dtype=torch.int64)
    text = text_batch(SMALL, [[5], [6, 7, 8]], 6)
    plain = pack(SMALL, grid, *text, content_ids(SMALL, codes), 1, 8)
    key = Keyframe(codes[:, 0] + 1, torch.tensor([8, 8]))  # the last pixel frame of latent frame 2
    keyed = pack(SMALL, grid, *text, content_ids(SMALL, codes), 1, 8, key=key)
    start, N = 6 + HEADER, grid.frame_length
    frame = slice(start, start + N)
    assert torch.equal(keyed.position_BL3[:, frame], plain.position_BL3[:, -N:])
    for one, other in ((keyed.ids_BL, plain.ids_BL), (keyed.position_BL3, plain.position_BL3)):
        assert torch.equal(one[:, start + N :], other[:, start:]) and torch.equal(one[:, :start], other[:, :start])
    assert (keyed.block_BL[:, frame] > keyed.block_BL[:, start - 1 : start]).all()
    assert (keyed.block_BL[:, frame] < keyed.block_BL[:, start + N : start + N + 1]).all()
    between = pack(SMALL, grid, *text, content_ids(SMALL, codes), 1, 8, key=key._replace(at_B=torch.tensor([6, 7])))
    times = between.position_BL3[:, start + 4, 0] - plain.position_BL3[:, start + 4, 0]
    assert times.tolist() == {"pixel": [6, 7], "latent": [2, 2], "index": [2 * N, 2 * N]}[places]


def test_causal_ids_are_blocks_of_their_own() -> None:
    codes = torch.zeros(1, 2, 4, 4, dtype=torch.int64)
    grids = Grid(4, 4), Grid(4, 4, causal=True)
    frame, causal = (
        pack(SMALL, grid, *text_batch(SMALL, [[5]], 3), content_ids(SMALL, codes), 1, 1, tail=True) for grid in grids
    )
    assert causal.block_BL[0].diff().tolist() == [1] * (causal.block_BL.shape[1] - 1)
    assert torch.equal(frame.ids_BL, causal.ids_BL) and torch.equal(frame.position_BL3, causal.position_BL3)
    assert (frame.block_BL[0].diff() >= 0).all() and len(frame.block_BL.unique()) == 3 + HEADER + 2 + 2


@pytest.mark.parametrize(("codes", "code_rows"), [(50, 50), (1000**2, 2000)])
def test_every_id_of_a_small_vocabulary_means_one_thing(codes: int, code_rows: int) -> None:
    found = small_vocabulary(100, codes, numbers=16)
    special = [found.begin, found.separator, found.video_start, found.video_end, found.frame_start, found.frame_end]
    numbers, rows = range(found.number_zero, found.number_zero + found.numbers), range(found.first_code, found.size)
    assert [*range(100), *special, found.newline, found.mask, *numbers, *rows] == list(range(found.size))
    assert (len(numbers), len(rows), found.code_rows, found.codes, found.text_size) == (16, code_rows, code_rows, codes, 100)
