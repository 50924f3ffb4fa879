"""Generation: cached equals uncached, prompts do not disturb each other, frames come as they are done, any length works."""

import re
import weakref
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import lumos.diffusion.cost as costs
import lumos.diffusion.draw as drawing
import lumos.diffusion.frame_model as frame_model
from lumos.diffusion.compute import Compute
from lumos.diffusion.draw import guide
from lumos.diffusion.frame_model import FrameModel, VideoSpec
from lumos.diffusion.sampler import MASKED, SamplerConfig, sample_video
from lumos.generate import Generator
from lumos.model.attention import dense
from lumos.model.cache import Cache
from lumos.sequence.layout import HEADER, Grid, Keyframe, content_ids, content_of, pack, text_batch
from lumos.sequence.token_file import Tokens

CPU = torch.device("cpu")
SAMPLER = SamplerConfig(steps=3, guidance=2.0)  # the toy's


@dataclass
class Watched:
    """Every denoising pass (what was shown, where was looked, the guided logits found), and every frame's hidden history."""

    shown: list[Tensor] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    histories: list[Tensor] = field(default_factory=list)
    finished: list[Tensor] = field(default_factory=list)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched, draw = Watched(), drawing.draw_codes
    predict, commit, hidden = FrameModel.predict, FrameModel.commit, FrameModel._hidden

    def keep_logits(hidden_RMD: Tensor, head_VD: Tensor, strength: float, *rest: Any) -> Any:
        logits = hidden_RMD @ head_VD.T
        watched.logits.append(guide(*logits.chunk(2), strength) if strength != 1 else logits)
        return draw(hidden_RMD, head_VD, strength, *rest)

    def keep_pass(self: FrameModel, codes_BN: Tensor, places_BM: Tensor, *rest: Any) -> Any:
        watched.shown.append(codes_BN.clone())
        watched.places.append(places_BM)
        return predict(self, codes_BN, places_BM, *rest)

    def keep_frame(self: FrameModel, number: int, codes_BN: Tensor) -> None:
        watched.finished.append(codes_BN)
        commit(self, number, codes_BN)

    def keep_history(self: FrameModel, *rest: Any) -> Tensor:
        watched.histories.append(hidden(self, *rest))
        return watched.histories[-1]

    monkeypatch.setattr(drawing, "draw_codes", keep_logits)
    monkeypatch.setattr(FrameModel, "predict", keep_pass)
    monkeypatch.setattr(FrameModel, "commit", keep_frame)
    monkeypatch.setattr(FrameModel, "_hidden", keep_history)
    return watched


PROMPTS = ["a red circle", "two blue stars moves", "two"]  # of different lengths
PICTURE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(4)) * 2 - 1


@pytest.mark.parametrize(("guidance", "at"), [(2.0, None), (1.0, None), (2.0, 6)])
def test_every_pass_through_the_engine_equals_one_over_the_whole_sequence(
    toy: Generator, watched: Watched, guidance: float, at: int | None
) -> None:
    keyframes = {} if at is None else {at: PICTURE}
    toy(PROMPTS, frames=9, sampler=replace(SAMPLER, guidance=guidance), keyframes=keyframes)
    assert len(watched.shown) == 9 and len(watched.histories) == 2
    vocabulary, grid, model = toy.config.vocabulary, Grid(4, 4), toy.model
    texts = sorted((toy.text.encode(prompt) for prompt in PROMPTS), key=len)  # the engine's order of rows
    branches = 2 if guidance != 1 else 1
    rows, keys = 3 * branches, len(keyframes)
    code_BHW = toy.tokenizer.encode(PICTURE[None, :, None])[:, 0].expand(rows, -1, -1)
    key = None if at is None else Keyframe(code_BHW, torch.full((rows,), at))
    for number, codes in enumerate(watched.shown):
        frame = number // 3
        done = [content_ids(vocabulary, watched.finished[t].view(-1, 4, 4)) for t in range(frame)]
        done = [torch.where(watched.histories[t], vocabulary.mask, content) for t, content in enumerate(done)]
        now = content_ids(vocabulary, codes.view(-1, 4, 4))
        done.append(now.masked_fill(now == vocabulary.first_code + MASKED, vocabulary.mask))
        content = torch.stack(done, dim=1).repeat(branches, 1, 1, 1)
        text, length = text_batch(vocabulary, [*texts, *[[]] * 3 * (branches - 1)], 12)
        batch = pack(vocabulary, grid, text, length, content, 1, 8, key=key)
        hidden = model(batch.ids_BL, batch.position_BL3, dense(batch.block_BL, batch.block_BL))
        content = content_of(grid, hidden, 12, keys + frame + 1)[:, -1, :, :-1]
        logits = model.logits(content.flatten(1, 2), vocabulary.first_code, 64)
        wanted = guide(*logits.chunk(2), guidance) if branches == 2 else logits
        places = watched.places[number][..., None].expand(-1, -1, 64)
        assert places.shape[1] == (codes == MASKED).sum(1).max()  # the head is asked for masked places only
        torch.testing.assert_close(watched.logits[number], wanted.gather(1, places), rtol=1e-3, atol=1e-3)


no_bf16 = pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="CPUs without bf16 sample in float32")


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=no_bf16)], ids=["float32", "bf16"])
@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize("causal", [False, True])
def test_a_prompt_and_its_seed_give_the_same_video_alone_and_in_a_batch(
    toy: Generator, dtype: torch.dtype, guidance: float, causal: bool
) -> None:
    model, video = replace(toy.config.model, causal=causal), replace(toy.config.video, slots=40)
    config = replace(toy.config, model=model, video=video)
    generator = Generator(config, deepcopy(toy.model), toy.text, toy.tokenizer, CPU, dtype)
    sampler = replace(SAMPLER, guidance=guidance)
    # of so different lengths that padding changes how attention over it is rounded
    prompts, seeds = ["two blue", "a red circle" + " two blue stars" * 4, "a" + " red" * 22], [2, 2, -7]
    together: list[Tensor] = []
    generator(prompts, frames=9, seed=seeds, sampler=sampler, record=together)
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone: list[Tensor] = []
        generator(prompt, frames=9, seed=seed, sampler=sampler, record=alone)
        assert all(torch.equal(one[0], all_[row]) for one, all_ in zip(alone, together, strict=True))


def test_seeds_are_one_for_all_or_one_each(toy: Generator) -> None:
    same = toy(["two"] * 3, frames=1, seed=[4, 4, 5])
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
    with pytest.raises(ValueError, match="one for each of the 3 prompts, got 2"):
        toy(["two"] * 3, frames=1, seed=[4, 4])
    assert torch.equal(toy("two", frames=1, seed=np.int64(4)), toy("two", frames=1, seed=4))


def test_wrong_values_are_refused_in_one_line(toy: Generator) -> None:
    for wrong in ({"prompts": []}, {"prompts": ["two", 2]}, {"seed": "x"}, {"seed": 1.5}, {"frames": 5.0}):
        with pytest.raises(ValueError, match="must be"):
            toy(**{"prompts": "two", "frames": 1, **wrong})


def model_of(toy: Generator, latent_frames: int, settings: SamplerConfig) -> FrameModel:
    video = toy.config.video
    keyframes = {9: torch.full((4, 4), 9), 2: torch.full((4, 4), 2)}
    spec = VideoSpec(Grid(4, 4), latent_frames, video.frames, video.fps, video.window, video.latest, keyframes=keyframes)
    texts = [toy.text.encode("a red circle")]
    picture = partial(torch.full, (1, 16))  # of all codes the frame's number
    return FrameModel(toy.model, toy.config.vocabulary, spec, texts, [0], settings, Compute(), picture=picture)


@pytest.mark.parametrize("changes", [{"sampler": "released"}, {}, {"window": 2}, {"window": 1}, {"only_visible": True}])
def test_any_length_in_constant_memory_with_positions_in_trained_range(toy: Generator, changes: Any) -> None:
    settings = replace(SAMPLER, history=0.5, **changes)
    model = model_of(toy, 11, settings)
    layer, latest, frame_start = toy.model.layers[0], toy.config.video.latest, toy.config.vocabulary.frame_start
    capacity = model_of(toy, 101, settings).cache.capacity  # ten times as long, and no larger
    prompt = model.cache.keys[:, :, :, : model.header].clone()
    used, origins = [], []
    for number, _ in enumerate(sample_video(model, settings, torch.zeros(1, 0, 16, dtype=torch.int64))):
        # at the yield, frames before `number` are history
        time = number - model.origin
        origins.append(model.origin)
        assert model.cache.length == model.prefix + sum(model.history)
        assert len(model.history) == min(time, model.window - 1) and time <= latest
        used.append(model.cache.length + model.grid.frame_length)
        # The first layer's keys depend on ids and positions alone, and the frame-start id is never masked: compare that.
        for age in range(1, len(model.history) + 1):
            position = HEADER + (time - age) * model.grid.frame_length + model.length_B
            cached = model.cache.keys[0, :, :, model.prefix + sum(model.history[:-age])]
            torch.testing.assert_close(cached, first_key(toy, layer, frame_start, position), rtol=1e-3, atol=1e-3)
    assert origins == [0, 0, 0, 0, 2, 2, 4, 4, 6, 6, 8]  # parts of latest + 1 = 4, which begin with the last two
    assert max(used) == capacity == model.cache.capacity and number == 10
    assert torch.equal(model.cache.keys[:, :, :, : model.header], prompt)


def test_a_part_begins_with_a_picture_and_what_is_to_come(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Tensor] = []
    monkeypatch.setattr(frame_model, "content_ids", lambda words, codes: read.append(codes) or content_ids(words, codes))
    model = model_of(toy, 5, SAMPLER)
    keys = [(model.prefix - model.header) // model.grid.frame_length]
    for number in range(4):
        model.commit(number, torch.full((1, 16), 10 + number))
    keys.append((model.prefix - model.header) // model.grid.frame_length)
    assert keys == [2, 1]  # of the pictures at frames 2 and 9, the former is over when the part begins after frame 8
    assert [int(codes[0, 0, 0]) for codes in read if codes.ndim == 3] == [10, 11, 12, 2, 13]


def test_the_announced_memory_grows_with_layers_as_the_cache_does(toy: Generator) -> None:
    model = model_of(toy, 3, SAMPLER)
    cache = model.cache.keys.nbytes + model.cache.values.nbytes
    twice = replace(toy.model.config, layers=2 * toy.model.config.layers)
    slots, codes = model.prefix - HEADER - len(model.spec.keyframes) * model.grid.frame_length, toy.tokenizer.codebook_size
    both = [costs.generation_cost(config, model.spec, 0, slots, codes, 1, 4, SAMPLER) for config in (toy.model.config, twice)]
    assert both[1].bytes - both[0].bytes == cache


def test_only_guidance_makes_a_second_row_per_prompt(toy: Generator) -> None:
    rows = [len(model_of(toy, 3, replace(SAMPLER, guidance=strength)).starts) for strength in (1.0, 2.0)]
    assert rows == [1, 2]


def test_what_is_left_out_of_the_cache_is_what_is_masked(toy: Generator, watched: Watched) -> None:
    """With nothing masked, leaving masked places out changes nothing; otherwise only the visible ones' keys are there."""
    bare = replace(SAMPLER, history=0.0)
    whole = toy("a red circle", frames=13, sampler=bare)
    assert torch.equal(toy("a red circle", frames=13, sampler=replace(bare, only_visible=True)), whole)

    half = replace(SAMPLER, history=0.5)
    full, sparse = model_of(toy, 3, half), model_of(toy, 3, replace(half, only_visible=True))
    codes = torch.randint(0, 64, (1, 16), generator=torch.Generator().manual_seed(3))
    full.commit(0, codes)
    sparse.commit(0, codes)
    visible = (~watched.histories[-1].flatten()).nonzero()[:, 0]
    slots = [0, 1, 2, *(3 + visible).tolist(), full.grid.frame_length - 1]
    assert len(visible) == 10
    there = full.cache.keys[:, :, :, full.prefix : full.cache.length][:, :, :, slots]
    assert torch.equal(sparse.cache.keys[:, :, :, sparse.prefix : sparse.cache.length], there)


def test_a_pause_of_guidance_makes_no_unconditional_pass(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small passes on a card keep the unconditional rows in steps without guidance, for the sake of one graph."""
    rows: list[int] = []
    run = frame_model.frame_pass
    monkeypatch.setattr(frame_model, "frame_pass", lambda *rest: rows.append(len(rest[2].cos_BLK)) or run(*rest))

    def made() -> tuple[list[Tensor], list[int]]:
        rows.clear()
        record: list[Tensor] = []
        toy(PROMPTS, frames=5, sampler=replace(SAMPLER, steps=4, guidance_until=0.5), record=record)
        return record, rows.copy()

    paused, few = made()
    monkeypatch.setattr(FrameModel, "pausing", property(lambda model: False, lambda model, value: None), raising=False)
    whole, many = made()
    assert few == [6, 6, 3, 3, 6, 6, 6, 3, 3] and set(many) == {6}  # the first frame, its history, the second frame
    assert all(torch.equal(one, other) for one, other in zip(paused, whole, strict=True))


def first_key(toy: Generator, layer: Any, id_: int, position_B: Tensor) -> Tensor:
    """Key [B, kv heads, K] of one id at a text-like position, by the first layer alone."""
    from torch.nn.functional import layer_norm, linear, rms_norm

    from lumos.model.rope import rotate, rotation

    config = toy.model.config
    x = rms_norm(toy.model.embedding[id_].expand(len(position_B), 1, -1), (config.width,), layer.attention_norm, config.norm_eps)
    keys = linear(x, layer.query_key_value).unflatten(-1, (-1, config.head_width))[
        :, :, config.heads : config.heads + config.kv_heads
    ]
    keys = layer_norm(keys, (config.head_width,), layer.key_norm_scale[0], layer.key_norm_bias[0], config.norm_eps).transpose(
        1, 2
    )
    turn = rotation(position_B[:, None, None].expand(-1, 1, 3), toy.model.axis_K, toy.model.inverse_frequency_K)
    return rotate(keys.transpose(1, 2), turn)[:, 0]


def test_settings_are_keywords(toy: Generator) -> None:
    from lumos import Generator as Imported

    assert Imported is Generator
    whole = toy("two", frames=1, sampler=replace(SAMPLER, steps=2, sampler="halton"))
    assert torch.equal(toy("two", frames=1, steps=2, sampler="halton"), whole)
    for wrong, words in (
        ({"stepz": 2}, "unknown field 'stepz'"),
        ({"steps": "2"}, "steps must be"),
        ({"guidance": -1}, "guidance"),
    ):
        with pytest.raises(ValueError, match=words):
            toy("two", frames=1, **wrong)


def test_keyframes_say_what_a_video_leads_to(toy: Generator) -> None:
    def made(keyframes: dict[int, Tensor], frames: int = 9) -> Tensor:
        return toy(PROMPTS[:2], frames=frames, keyframes=keyframes)

    early, late, both = {3: PICTURE}, {8: PICTURE}, {3: PICTURE, 8: -PICTURE}
    videos = [made(each) for each in ({}, early, late, both, dict(reversed(both.items())))]
    assert [[bool(torch.equal(one, other)) for other in videos].count(True) for one in videos] == [1, 1, 1, 2, 2]
    shown = toy.tokenizer.decode(toy.tokenizer.encode(PICTURE[None, :, None]))[0]
    assert torch.equal(videos[2][:, :, -1:], shown.expand(2, -1, -1, -1, -1))  # the last frame is the picture itself
    assert not torch.equal(videos[1][:, :, 3:4], shown.expand(2, -1, -1, -1, -1))
    start = PICTURE[:, None].repeat(1, 5, 1, 1)
    for at, given, words in ((0, None, "after frame 0"), (9, None, "last frame, 8, got 9"), (4, start, "after frame 4")):
        with pytest.raises(ValueError, match=words):
            toy("two", given=given, keyframes={at: PICTURE})
    for wrong in (PICTURE[:, :16], PICTURE[:, None]):
        with pytest.raises(ValueError, match=r"keyframes must have shape \[3, frames, 32, 32\], got .*; resize them"):
            made({8: wrong})


@pytest.mark.parametrize(("frames", "offer"), [(0, 1), (-3, 1), (2, 5), (16, 17)])
def test_impossible_lengths_offer_a_possible_one(toy: Generator, frames: int, offer: int) -> None:
    with pytest.raises(ValueError, match=rf"1 \+ 4k, got {frames}; use {offer}"):
        toy("a red circle", frames=frames)


def test_impossible_sizes_and_prompts(toy: Generator) -> None:
    with pytest.raises(ValueError, match="height and width must be multiples of 32"):
        toy("a red circle", height=40)
    with pytest.raises(ValueError, match="at most 10 text ids"):
        toy("a red circle moves " * 5)
    keys = ([torch.zeros(3, 32, 32)], {"4": torch.zeros(3, 32, 32)})
    for words in ({"sampler": {"steps": 2}}, {"given": "x.png"}, {"height": 0}, *({"keyframes": key} for key in keys)):
        with pytest.raises(ValueError, match="sampler must|must be tensors|must be a dict|number of a frame|multiples of 32"):
            toy("a red circle", frames=5, **words)
    with pytest.raises(ValueError, match="steps must be 1 to the 16 codes"):
        toy("a red circle", sampler=SamplerConfig(steps=17))
    with pytest.raises(ValueError, match="height and width may be at most 2016"):
        toy.cost(1, 9, 2048, 2048, SAMPLER)
    with pytest.raises(ValueError, match="more than the 9 given"):
        toy("a red circle", frames=9, given=torch.zeros(1, 3, 9, 32, 32))  # as a Generator gives one video
    with pytest.raises(ValueError, match=r"must have shape \[3, frames, 32, 32\], got \[2, 3, 9, 32, 32\]"):
        toy("a red circle", frames=9, given=torch.zeros(2, 3, 9, 32, 32))


def test_an_interrupted_stream_gives_its_memory_back_and_can_be_started_again(
    toy: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[weakref.ref[Cache]] = []

    class Counted(Cache):
        def __init__(self, *shape: Any) -> None:
            super().__init__(*shape)
            caches.append(weakref.ref(self))

    monkeypatch.setattr(frame_model, "Cache", Counted)
    stream = toy.stream("a red circle", frames=9)
    first = next(stream)
    assert caches[0]() is not None
    stream.close()
    assert caches[0]() is None

    def stop(done: int, passes: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy("a red circle", frames=9, progress=stop)
    assert caches[1]() is None
    assert torch.equal(next(iter(toy.stream("a red circle", frames=9))), first)


def recorded(toy: Generator, prompts: list[str], seed: int = 1, given: Tensor | None = None) -> tuple[Tensor, Tokens]:
    record: list[Tensor] = []
    video = toy(prompts, frames=17, seed=seed, record=record, given=given)
    return video, toy.tokens(record, prompts, seed, 0 if given is None else 1 + given.shape[1] // 4)


@pytest.mark.parametrize("kept", [1, 5, 13])
@pytest.mark.parametrize("given", [0, 5])
def test_a_branch_with_nothing_changed_is_the_same_video(toy: Generator, kept: int, given: int) -> None:
    pixels = torch.rand(3, given, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1 if given else None
    video, tokens = recorded(toy, PROMPTS, given=pixels)
    assert torch.equal(torch.cat(list(toy.decode(tokens)), dim=2), video)
    if kept >= given:
        assert torch.equal(torch.cat(list(toy.branch(tokens, kept, frames=17)), dim=2), video)


def test_a_branch_keeps_the_start_and_tells_another_end(toy: Generator) -> None:
    video, tokens = recorded(toy, ["a red circle"])
    other = torch.cat(list(toy.branch(tokens, 9, seed=2, frames=17)), dim=2)
    assert torch.equal(other[:, :, :9], video[:, :, :9]) and not torch.equal(other, video)
    endings = torch.cat(list(toy.branch(tokens, 9, ["two blue stars", "two"], frames=13)), dim=2)
    assert endings.shape[:3] == (2, 3, 13) and torch.equal(endings[0, :, :9], endings[1, :, :9])
    assert not torch.equal(endings[0], endings[1])
    for kept, frames, words in ((6, 17, "use 17"), (21, 25, "at most the 17"), (9, 9, "more than the 9")):
        with pytest.raises(ValueError, match=words):
            next(iter(toy.branch(tokens, kept, frames=frames)))
    with pytest.raises(ValueError, match="as many as the 3 videos"):
        next(iter(toy.branch(recorded(toy, PROMPTS)[1], 5, ["two", "two"])))


def test_the_first_frame_may_take_more_steps(toy: Generator, watched: Watched) -> None:
    said: list[tuple[int, int]] = []
    settings = replace(SAMPLER, steps=2, first=2.5)
    toy("a red circle", frames=9, sampler=settings, progress=lambda done, total: said.append((done, total)))
    assert said == [(step, 9) for step in range(1, 10)]  # 5 + 2 + 2
    shown = [int((codes_BN == MASKED).sum()) for codes_BN in watched.shown]
    assert [i for i, masked in enumerate(shown) if masked == 16] == [0, 5, 7]
    image = torch.zeros(3, 1, 32, 32)
    said.clear()
    toy("a red circle", frames=9, sampler=settings, given=image, progress=lambda done, total: said.append((done, total)))
    assert said == [(step, 4) for step in range(1, 5)]  # the first frame is there already


def test_the_examples_of_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    Image.new("RGB", (40, 30), "red").save("heart.png")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.S))
    names: dict[str, Any] = {}
    code = code.replace("from_folder()", 'from_folder(device="cpu")').replace("256", "128").replace("{24:", "{16:")
    exec(code, names)  # noqa: S102 - the page is our own; the random model makes 17 frames of 128x128
    assert Path("red.mp4").stat().st_size and names["video"].shape == (1, 3, 17, 128, 128)
    assert next(names["ends"]).shape == (1, 3, 1, 128, 128)
