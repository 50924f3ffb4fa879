"""Tokenizers of both networks: causal, the same in a stream as in one piece, an image is a video of one frame, bad input is
refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lumos.tokenizer.compression import check_sides, latent_frames, pixel_frames
from lumos.tokenizer.layers import TimeConv, haar, inverse_haar, unpatch
from lumos.tokenizer.model import TokenizerConfig, VideoTokenizer, load_tokenizer, save_tokenizer
from tests.tokenizer.small import CONFIGS, OURS, clip, made, some_codes


@pytest.fixture(scope="module", params=list(CONFIGS))
def tokenizer(request: pytest.FixtureRequest) -> VideoTokenizer:
    return made(CONFIGS[request.param])


@pytest.fixture(scope="module")
def small() -> VideoTokenizer:
    return made(OURS)


def whole_decode(tokenizer: VideoTokenizer, codes: Tensor) -> Tensor:
    with torch.no_grad():
        latents = tokenizer.post_quant_conv(tokenizer.fsq.values(codes))
        return unpatch(tokenizer.decoder(latents, None), first=True).clamp(-1, 1)  # without any memory: the slow twin


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_haar_and_back_is_the_identity() -> None:
    video = torch.rand(2, 3, 8, 32, 48, generator=torch.Generator().manual_seed(0))
    bands = haar(video)
    assert bands.shape == (2, 24, 4, 16, 24)
    torch.testing.assert_close(inverse_haar(bands), video, rtol=0, atol=1e-6)
    close(bands[:, :3], torch.nn.functional.avg_pool3d(video, 2))


def test_haar_bands_are_in_the_order_time_height_width() -> None:
    video = torch.zeros(1, 3, 2, 2, 2)
    video[0, 1, 0], video[0, 1, 1] = 1.0, -1.0  # the second channel changes over time only
    assert haar(video).flatten().nonzero().flatten().tolist() == [4 * 3 + 1]


@pytest.mark.parametrize("count", [1, 2, 7, 13])
def test_streaming_decode_equals_whole_decode(tokenizer: VideoTokenizer, count: int) -> None:
    codes = some_codes(tokenizer, count)
    whole = whole_decode(tokenizer, codes)
    assert whole.std() > 0.1 and (whole.abs() < 1).float().mean() > 0.2
    state = tokenizer.start_stream()
    parts = [tokenizer.decode_next(codes[:, t], state) for t in range(count)]
    assert [part.shape[2] for part in parts] == [1] + [tokenizer.temporal] * (count - 1)
    close(torch.cat(parts, dim=2), whole)
    for at_once in (None, 1, 3):
        close(tokenizer.decode(codes, at_once), whole)
    late = tokenizer.start_stream()  # that heard no more than what the last pixels depend on
    *_, last = [tokenizer.decode_next(codes[:, t], late) for t in range(max(0, count - 1 - tokenizer.reach), count)]
    close(last, whole[:, :, -last.shape[2] :])


@pytest.mark.parametrize("count", [1, 2, 7])
def test_streaming_encode_equals_whole_encode(tokenizer: VideoTokenizer, count: int) -> None:
    pixels = clip(tokenizer, count)
    pieces = [pixels[:, :, :1], *(piece for piece in pixels[:, :, 1:].split(tokenizer.temporal, dim=2) if piece.shape[2])]
    with torch.no_grad():
        state = tokenizer.start_stream()
        latents = [tokenizer.latents(piece, state) for piece in pieces]
        close(torch.cat(latents, dim=1), tokenizer.latents(pixels, tokenizer.start_stream()))
    codes = tokenizer.encode(pixels)
    for at_once in (1, 3):
        assert torch.equal(tokenizer.encode(pixels, at_once), codes)
    assert torch.equal(tokenizer.encode(pixels[1:]), codes[1:]), "rows of a batch are independent"
    assert torch.equal(tokenizer.encode(pixels[:, :, :1]), codes[:, :1]), "an image is a video of one frame"


def test_saving_and_loading_is_the_identity(tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    for name, dtype in (("a", torch.float32), ("b", torch.bfloat16)):
        save_tokenizer(tmp_path / name, tokenizer, dtype)
    loaded, halved = (load_tokenizer(tmp_path / name) for name in "ab")
    assert loaded.config == halved.config == tokenizer.config and not loaded.training
    codes, pixels = some_codes(tokenizer, 2), clip(tokenizer, 2)
    assert torch.equal(loaded.encode(pixels), tokenizer.encode(pixels))
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    kernels = [parameter for parameter in loaded.parameters() if parameter.ndim == 4]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in "ab"]
    assert sizes[1] < 0.6 * sizes[0] and {parameter.dtype for parameter in halved.parameters()} == {torch.float32}
    assert 0 < (halved.decode(codes) - tokenizer.decode(codes)).abs().mean() < 0.01


def test_default_size_and_codebook() -> None:
    tokenizer = VideoTokenizer(TokenizerConfig())
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (tokenizer.encoder, tokenizer.decoder))
    assert 4e6 < encoder + decoder < 6.5e6 and decoder > 2 * encoder
    assert 4000 <= tokenizer.codebook_size <= 4500
    assert [(made.temporal, made.spatial) for made in (tokenizer, VideoTokenizer(CONFIGS["ours 4x16x16"]))] == [(4, 8), (4, 16)]


def test_widths_and_blocks_of_other_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equally many, 2 to 6, got \[3, 2, 2, 2\]"):
        TokenizerConfig(encoder_widths=(8, 8, 8))
    with pytest.raises(ValueError, match=r"2 to 6, got \[1, 1, 1, 1\]"):
        TokenizerConfig((8, 8), (8,), (1,), (8,), (1,))


def test_latent_frames_and_sides_of_other_compressions() -> None:
    assert [latent_frames(frames, 2) for frames in (1, 3, 5)] == [1, 2, 3]
    for frames, better in ((0, 1), (2, 9)):
        with pytest.raises(ValueError, match=f"frames must be 1 [+] 8k, got {frames}; use {better}$"):
            latent_frames(frames, 8)
    assert [pixel_frames(count, 8) for count in range(4)] == [0, 1, 9, 17]
    check_sides(16, 48, 16)
    for height, width in ((16, 40), (0, 16), (8, 16)):
        with pytest.raises(ValueError, match="multiples of 16"):
            check_sides(height, width, 16)


@pytest.mark.parametrize(
    "shape, words",
    [
        ((1, 3, 16, 32, 32), r"frames must be 1 \+ 4k, got 16; use 17"),
        ((1, 3, 0, 32, 32), "got 0; use 1"),
        ((1, 3, 5, 36, 32), "multiples of 8, got 36x32; use 32x32"),
        ((1, 3, 5, 32, 3), "multiples of 8, got 32x3; use 32x8"),
        ((1, 4, 5, 32, 32), "pixels must have shape B, 3, F, H, W"),
        ((3, 5, 32, 32), "pixels must have shape B, 3, F, H, W"),
    ],
)
def test_bad_pixels_are_refused(small: VideoTokenizer, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small.encode(torch.zeros(shape))


def test_bad_codes_are_refused(small: VideoTokenizer) -> None:
    codes = torch.full((1, 2, 4, 4), small.codebook_size)
    with pytest.raises(ValueError, match=r"0 \.\.\. 174"):
        small.decode(codes)
    with pytest.raises(ValueError, match="0 ... 174"):
        small.decode_next(codes[:, 0], small.start_stream())
    with pytest.raises(ValueError, match="4 dimensions"):
        small.decode(codes[0])
    with pytest.raises(ValueError, match="3 dimensions"):
        small.decode_next(codes, small.start_stream())
    with pytest.raises(ValueError, match="at once must be at least 1, got 0"):
        small.decode(codes * 0, at_once=0)


def test_a_convolution_over_time_tells_the_two_earlier_frames_apart_and_sees_no_later_one() -> None:
    conv = TimeConv(3, 4)
    frames = torch.randn(1, 5, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    swapped, later = frames[:, [1, 0, 2, 3, 4]], frames.clone()
    later[:, 3:] += 1
    assert not torch.allclose(conv(frames, None)[:, 2], conv(swapped, None)[:, 2])
    torch.testing.assert_close(conv(frames, None)[:, :3], conv(later, None)[:, :3])
