"""The block rule, QK-norm decoder, RoPE and the cache: properties that hold for any weights."""

import pytest
import torch

from lumos.model.attention import attend_to_all, dense
from lumos.model.cache import Cache
from lumos.model.rope import INTERLEAVED, axis_of_channel, inverse_frequency, rotate, rotation
from lumos.model.transformer import LUMOS_1B, LUMOS_3B, ModelConfig, Transformer
from lumos.published.official import from_official, official_names
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


@pytest.mark.parametrize(("config", "count"), [(LUMOS_1B, 1_503_729_664), (LUMOS_3B, 3_614_630_912)])
def test_published_parameter_counts(config: ModelConfig, count: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Transformer(config).parameters()) == count


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


def test_every_token_of_a_frame_sees_the_whole_frame(model: Transformer) -> None:
    ids, position, block = batch()
    last = FIRST_FRAME + GRID.frame_length - 2
    changed = ids.clone()
    changed[0, last - 1] = VOCABULARY.mask
    attend = dense(block, block)
    difference = (model(changed, position, attend) - model(ids, position, attend))[0].abs().amax(-1)
    assert (difference[FIRST_FRAME : FIRST_FRAME + GRID.frame_length] > 0).all()


def test_prompt_padding_changes_nothing(model: Transformer) -> None:
    tight, padded = batch(slots=4), batch(slots=11)
    one = model(tight.ids_BL, tight.position_BL3, dense(tight.block_BL, tight.block_BL))
    other = model(padded.ids_BL, padded.position_BL3, dense(padded.block_BL, padded.block_BL))
    torch.testing.assert_close(other[:, 7:], one, rtol=1e-5, atol=1e-5)


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


def test_turning_cached_keys_equals_writing_them_at_other_positions() -> None:
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(1, 2, 5, 32, generator=generator)
    axis, frequency = torch.tensor(axis_of_channel("mm-rope", 16)), inverse_frequency(16, 10_000.0)
    position = torch.randint(0, 300, (1, 5, 3), generator=generator)
    shift = torch.tensor([[[-4, 0, 0]]]).expand(1, 5, 3)
    turned = rotate(rotate(keys, rotation(position, axis, frequency)), rotation(shift, axis, frequency))
    torch.testing.assert_close(turned, rotate(keys, rotation(position + shift, axis, frequency)), rtol=1e-4, atol=1e-4)


def test_scores_depend_on_relative_positions_only() -> None:
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(2, 1, 1, 7, 32, generator=generator)
    axis, frequency = torch.tensor(axis_of_channel("mm-rope", 16)), inverse_frequency(16, 10_000.0)
    position = torch.randint(0, 100, (1, 7, 3), generator=generator)
    scores = []
    for offset in (0, 50):
        turn = rotation(position + offset, axis, frequency)
        scores.append(rotate(query, turn) @ rotate(key, turn).transpose(-1, -2))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-3)


def test_every_axis_of_mm_rope_covers_the_spectrum() -> None:
    table = axis_of_channel("mm-rope", 64)
    assert [INTERLEAVED.count(axis) for axis in range(3)] == [4, 6, 6]
    for axis in range(3):
        places = [i for i, a in enumerate(table) if a == axis]
        assert places[0] < 16 and places[-1] >= 48
    split = axis_of_channel("m-rope", 64)
    assert split == sorted(split) and [split.count(axis) for axis in range(3)] == [16, 24, 24]


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        ModelConfig(100, 1, 32, 2, 2, 24, 32)
    with pytest.raises(ValueError, match="kv_heads"):
        ModelConfig(100, 1, 32, 3, 2, 32, 32)


def test_released_names_cover_every_parameter_once() -> None:
    model = Transformer(CONFIG)
    names = official_names(CONFIG)
    assert set(names) == set(model.state_dict())
    theirs = [name for group in names.values() for name in group]
    assert len(theirs) == len(set(theirs)) == 3 + 13 * CONFIG.layers
    rows = {"q": 4 * 32, "k": 2 * 32, "v": 2 * 32}
    parts = {f"model.layers.0.self_attn.{x}_proj.weight": torch.full((n, 32), float(n + ord(x))) for x, n in rows.items()}
    fused = dict(from_official(CONFIG, lambda name: parts.get(name, torch.zeros(1, 32))))["layers.0.query_key_value"]
    assert torch.equal(fused, torch.cat(list(parts.values())))
