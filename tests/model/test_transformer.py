"""The block rule, QK-norm decoder, RoPE and the cache: properties that hold for any weights."""

import pytest
import torch

from lumos.model.attention import attend_to_all, dense
from lumos.model.cache import Cache
from lumos.model.rope import INTERLEAVED, axis_of_channel, inverse_frequency, rotation
from lumos.model.transformer import ModelConfig, Transformer
from lumos.sequence.layout import Grid, content_ids, pack, text_batch
from lumos.sequence.vocabulary import small_vocabulary

VOCABULARY = small_vocabulary(text_size=20, codes=30)
GRID = Grid(4, 4)
CONFIG = ModelConfig(VOCABULARY.size, layers=2, width=32, heads=4, kv_heads=2, head_width=32, ffn=48)
FIRST_FRAME = 6 + 3


@pytest.fixture
def model() -> Transformer:
    model = Transformer(CONFIG)
    model.initialise(torch.Generator().manual_seed(0))
    for parameter in model.parameters():  # louder than at initialisation, so that differences show
        parameter.data *= 3 if parameter.ndim == 2 and parameter.shape[0] > 1 else 1
    return model.eval().requires_grad_(False)


def batch(seed: int = 0, slots: int = 6, prompts: tuple[tuple[int, ...], ...] = ((3, 4),)):
    codes = torch.randint(0, 30, (len(prompts), 3, 4, 4), generator=torch.Generator().manual_seed(seed))
    return pack(VOCABULARY, GRID, *text_batch(VOCABULARY, prompts, slots), content_ids(VOCABULARY, codes), 1, 8)


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_changing_any_id_of_a_frame_leaves_every_earlier_output_bitwise_equal(model: Transformer, frame: int) -> None:
    ids, position, block = batch(slots=4)  # no padding: a padding place sees everything
    attend = dense(block, block)
    start = 4 + 3 + frame * GRID.frame_length
    before = model(ids, position, attend)
    for place in range(start, start + GRID.frame_length, 5):
        changed = ids.clone()
        changed[0, place] = VOCABULARY.mask
        after = model(changed, position, attend)
        assert torch.equal(after[:, :start], before[:, :start])
        assert not torch.equal(after[:, start : start + GRID.frame_length], before[:, start : start + GRID.frame_length])


def test_frame_by_frame_through_the_cache_equals_the_whole_sequence(model: Transformer) -> None:
    ids, position, block = batch(prompts=((3, 4), (), (1, 2, 3, 4)))
    whole = model(ids, position, dense(block, block))
    cache = Cache(CONFIG.layers, 3, CONFIG.kv_heads, ids.shape[1], CONFIG.head_width, torch.device("cpu"), torch.float32)
    starts = (block[:, :6] > 1000).sum(1).tolist()  # prompt padding lies before them
    model(ids[:, :FIRST_FRAME], position[:, :FIRST_FRAME], dense(block[:, :FIRST_FRAME], block[:, :FIRST_FRAME]), cache)
    cache.commit(FIRST_FRAME)
    for frame in range(3):
        at = slice(FIRST_FRAME + frame * GRID.frame_length, FIRST_FRAME + (frame + 1) * GRID.frame_length)
        noise = torch.full_like(ids[:, at], VOCABULARY.mask)
        model(noise, position[:, at], attend_to_all(starts), cache)  # a denoising step, to be overwritten
        hidden = model(ids[:, at], position[:, at], attend_to_all(starts), cache)
        cache.commit(GRID.frame_length)
        torch.testing.assert_close(hidden, whole[:, at], rtol=1e-4, atol=1e-5)


def test_new_weights_are_small_and_those_into_the_residual_stream_smaller() -> None:
    model = Transformer(CONFIG)
    model.initialise(torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "_norm_" in name:
            assert (parameter == (0 if name.endswith("bias") else 1)).all()
        else:
            sizes = parameter / (0.01 if name.endswith(("attention_out", "ffn_down")) else 0.02)
            assert 2.4 < sizes.max() <= 3 and -3 <= sizes.min() < -2.4 and abs(sizes.std() - 0.98) < 0.05, name


def test_every_axis_of_mm_rope_covers_the_spectrum() -> None:
    table = axis_of_channel("mm-rope", 64)
    assert [INTERLEAVED.count(axis) for axis in range(3)] == [4, 6, 6]
    for axis in range(3):
        places = [i for i, a in enumerate(table) if a == axis]
        assert places[0] < 16 and places[-1] >= 48
    split = axis_of_channel("m-rope", 64)
    assert split == sorted(split) and [split.count(axis) for axis in range(3)] == [16, 24, 24]


def test_angles_fall_from_one_pair_to_the_next() -> None:
    assert inverse_frequency(4, 16.0).tolist() == [1.0, 0.5, 0.25, 0.125]


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        ModelConfig(100, 1, 32, 2, 2, 24, 32)
    with pytest.raises(ValueError, match="kv_heads"):
        ModelConfig(100, 1, 32, 3, 2, 32, 32)


def test_the_last_layer_may_work_for_some_places_alone(model: Transformer) -> None:
    ids, position, _ = batch(prompts=((3, 4), (1, 2)))
    turn, attend = rotation(position, model.axis_K, model.inverse_frequency_K), attend_to_all([0, 0])
    whole = model.run(ids, turn, lambda layer: attend)
    at = torch.tensor([[7, 2, 9], [0, 5, 1]])
    torch.testing.assert_close(model.run(ids, turn, lambda layer: attend, at), whole.take_along_dim(at[..., None], 1))
    assert model.run(ids, turn, lambda layer: attend, at[:, :0]).shape == (2, 0, CONFIG.width)
