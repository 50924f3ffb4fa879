"""Generation: cached equals uncached, prompts do not disturb each other, frames come as they are done, any length works."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lumos.generate as generate
from lumos.diffusion.sampler import MASKED, SamplerConfig
from lumos.generate import Generator, Job, Request, generate_to_files
from lumos.model.attention import dense
from lumos.model.transformer import ModelConfig, Transformer
from lumos.model_folder import FolderConfig, VideoConfig, save_model
from lumos.sequence.layout import HEADER, Grid, content_ids, content_of, pack, text_batch
from lumos.sequence.text import train_text_tokenizer
from lumos.sequence.vocabulary import small_vocabulary
from lumos.tokenizer.model import TokenizerConfig, VideoTokenizer
from lumos.video import read_video

CPU = torch.device("cpu")
SAMPLER = SamplerConfig(steps=3, guidance=2.0)


@pytest.fixture(scope="module")
def toy() -> Generator:
    """A random model of 32x32 videos, 9 frames, a window of 3 latent frames, positions trained up to latent frame 3."""
    tokenizer = VideoTokenizer(TokenizerConfig((4, 4, 4), (8, 8), (1, 1), (8, 8), (1, 1)))
    tokenizer.initialise(torch.Generator().manual_seed(0))
    text = train_text_tokenizer(["a red circle moves", "two blue stars"], 80)
    vocabulary = small_vocabulary(text.size, tokenizer.codebook_size)
    shape = ModelConfig(vocabulary.size, layers=2, width=32, heads=2, kv_heads=1, head_width=32, ffn=48)
    model = Transformer(shape)
    model.initialise(torch.Generator().manual_seed(1))
    for parameter in model.parameters():  # louder than at initialisation, so that choices are clear
        parameter.data *= 8 if parameter.ndim == 2 and parameter.shape[0] > 1 else 1
    video = VideoConfig(height=32, width=32, frames=9, fps=8, slots=12, window=3, latest=3)
    config = FolderConfig(shape, vocabulary, video, SAMPLER)
    return Generator(config, model.requires_grad_(False), text, tokenizer, CPU, torch.float32)


def test_every_pass_through_the_cache_equals_one_over_the_whole_sequence(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    histories: list[Tensor] = []
    passes: list[tuple[Tensor, Tensor]] = []
    finished: list[Tensor] = []

    def keep_history(*arguments: Any) -> Tensor:
        histories.append(history_mask(*arguments))
        return histories[-1]

    def keep_passes(predict, shape, config, generator, frame):  # type: ignore[no-untyped-def]
        def watched(codes: Tensor) -> Tensor:
            passes.append((codes.clone(), predict(codes)))
            return passes[-1][1]

        finished.append(sample_frame(watched, shape, config, generator, frame))
        return finished[-1]

    history_mask, sample_frame = generate.history_mask, generate.sample_frame
    monkeypatch.setattr(generate, "history_mask", keep_history)
    monkeypatch.setattr(generate, "sample_frame", keep_passes)
    prompts = ["a red circle", "two blue stars moves"]
    toy(prompts, frames=9, sampler=SAMPLER)
    assert len(passes) == 9 and len(histories) == 2

    vocabulary, grid, model = toy.config.vocabulary, Grid(4, 4), toy.model
    texts = [toy.text.encode(prompt) for prompt in prompts]
    for number, (codes, guided) in enumerate(passes):
        frame = number // 3
        frames = [torch.where(histories[t], vocabulary.mask, content_ids(vocabulary, finished[t])) for t in range(frame)]
        now = content_ids(vocabulary, codes)
        frames.append(now.masked_fill(now == vocabulary.first_code + MASKED, vocabulary.mask))
        content = torch.stack(frames, dim=1).repeat(2, 1, 1, 1)
        text, length = text_batch(vocabulary, [*texts, [], []], 12)
        batch = pack(vocabulary, grid, text, length, content, 1, 8)
        hidden = model(batch.ids_BL, batch.position_BL3, dense(batch.block_BL, batch.block_BL))
        logits = model.logits(content_of(grid, hidden, 12, frame + 1)[:, -1, :, :-1].flatten(1, 2), vocabulary.first_code, 64)
        conditional, unconditional = logits.chunk(2)
        torch.testing.assert_close(guided, unconditional + 2 * (conditional - unconditional), rtol=1e-3, atol=1e-3)


def test_a_prompt_gives_the_same_video_alone_and_in_a_batch(toy: Generator) -> None:
    certain = SamplerConfig(steps=3, guidance=2.0, temperature=1e-4, noise=0.0, history=0.0)
    prompts = ["a red circle moves", "two", "blue stars blue stars"]
    together = toy(prompts, frames=9, sampler=certain)
    for prompt, video in zip(prompts, together, strict=True):
        torch.testing.assert_close(toy(prompt, frames=9, sampler=certain)[0], video, rtol=0, atol=1e-3)


def test_frames_come_one_then_four_at_a_time_and_make_up_the_call(toy: Generator) -> None:
    parts = list(toy.stream("a red circle", frames=9, seed=3))
    assert [part.shape[2] for part in parts] == [1, 4, 4]
    assert torch.equal(torch.cat(parts, dim=2), toy("a red circle", frames=9, seed=3))


def test_seeds(toy: Generator) -> None:
    one, again, other = (toy("a red circle", frames=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert float(one.abs().max()) <= 1


@pytest.mark.parametrize("given", [1, 5, 13])
def test_given_frames_are_the_start(toy: Generator, given: int) -> None:
    pixels = torch.rand(3, given, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    video = toy("a red circle", frames=given + 4, given=pixels)
    assert video.shape[2] == given + 4
    whole = toy.tokenizer.decode(toy.tokenizer.encode(pixels[None]))
    torch.testing.assert_close(video[:, :, :given], whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", ["paper", "released"])
def test_any_length_in_constant_memory_with_positions_in_trained_range(toy: Generator, sampler: str) -> None:
    settings = replace(SAMPLER, sampler=sampler, history=0.5)  # type: ignore[arg-type]
    job = Job(toy, ["a red circle"], Grid(4, 4), settings, 41, 0, torch.Generator().manual_seed(0))
    frame_length, layer = job.grid.frame_length, toy.model.layers[0]
    codes_of: list[Tensor] = []
    for number in range(8):
        codes_of.append(job.sample(number, 0, 1, None))
        job.commit(codes_of[-1], number, is_given=False)
        frames = min(number + 1, toy.config.video.window - 1)
        assert job.cache.length == job.prefix + frames * frame_length <= job.cache.capacity
        # The newest cached frame lies one latent frame before the next one, at most at the last trained position. The
        # first layer's keys depend on ids and positions alone, and its frame-start id is never masked: compare that.
        seen_from = min(number + 1, toy.config.video.latest)
        start = HEADER + (seen_from - 1) * frame_length + job.length_B
        cached = job.cache.keys[0, :, :, job.cache.length - frame_length]
        fresh = first_key(toy, layer, toy.config.vocabulary.frame_start, start)
        torch.testing.assert_close(cached, fresh, rtol=1e-3, atol=1e-3)


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
    return rotate(keys, turn)[:, :, 0]


@pytest.mark.parametrize(("frames", "offer"), [(0, 1), (-3, 1), (2, 5), (16, 17)])
def test_impossible_lengths_offer_a_possible_one(toy: Generator, frames: int, offer: int) -> None:
    with pytest.raises(ValueError, match=rf"1 \+ 4k, got {frames}; use {offer}"):
        toy("a red circle", frames=frames)


def test_impossible_sizes_and_prompts(toy: Generator) -> None:
    with pytest.raises(ValueError, match="height must be a multiple of 32"):
        toy("a red circle", height=40)
    with pytest.raises(ValueError, match="at most 10 text ids"):
        toy("a red circle moves " * 5)
    with pytest.raises(ValueError, match="steps must be 1 to the 16 codes"):
        toy("a red circle", sampler=SamplerConfig(steps=17))
    with pytest.raises(ValueError, match="more than the 9 given"):
        toy("a red circle", frames=9, given=torch.zeros(3, 9, 32, 32))


def test_an_interrupted_stream_can_be_started_again(toy: Generator) -> None:
    stream: Iterator[Tensor] = toy.stream("a red circle", frames=9)
    first = next(stream)
    del stream
    assert torch.equal(next(iter(toy.stream("a red circle", frames=9))), first)


def test_a_saved_model_generates_the_same_files(toy: Generator, tmp_path: Path) -> None:
    save_model(tmp_path / "m", toy.config, toy.model.state_dict(), toy.text, toy.tokenizer)
    request = Request(("a red circle", "two blue stars"), tmp_path / "x.mp4", weights=str(tmp_path / "m"), device="cpu")
    seen: list[tuple[int, int]] = []
    made = generate_to_files(request, {"steps": 2}, lambda done, total: seen.append((done, total)))
    assert [Path(name).name for name in made["files"]] == ["x_1.mp4", "x_2.mp4"] and seen == [(n, 6) for n in range(1, 7)]
    clip = read_video(tmp_path / "x_2.mp4", fps=8, height=32, width=32)
    assert clip.pixels_CFHW.shape == (3, 9, 32, 32)
    again = generate_to_files(replace(request, out=tmp_path / "y.mp4"), {"steps": 2})
    assert Path(again["files"][0]).read_bytes() == (tmp_path / "x_1.mp4").read_bytes()
