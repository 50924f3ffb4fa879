"""The tokenizer: causal, the same in a stream as in one piece, an image is a video of one frame, bad input is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lumos.tokenizer.compression import check_sides, latent_frames, pixel_frames
from lumos.tokenizer.layers import haar, inverse_haar
from lumos.tokenizer.model import TokenizerConfig, VideoTokenizer, load_tokenizer, save_tokenizer

SMALL = TokenizerConfig(
    levels=(7, 5, 5), encoder_widths=(16, 24), encoder_blocks=(1, 2), decoder_widths=(16, 24), decoder_blocks=(2, 1)
)


THREE = TokenizerConfig((8,) * 8, (16, 24, 32), (1, 2, 1), (16, 24, 32), (2, 1, 1))  # 4x16x16, and 16.8 M codes


@pytest.fixture(scope="module", params=[SMALL, THREE], ids=["4x8x8", "4x16x16"])
def tokenizer(request: pytest.FixtureRequest) -> VideoTokenizer:
    return made(request.param)


@pytest.fixture(scope="module")
def small() -> VideoTokenizer:
    return made(SMALL)


def made(config: TokenizerConfig) -> VideoTokenizer:
    tokenizer = VideoTokenizer(config)
    tokenizer.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokenizer.encoder.out.weight *= 10  # so that codes differ from place to place
    return tokenizer.eval()


def clip(frames: int, height: int = 32, width: int = 48, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def test_haar_and_back_is_the_identity() -> None:
    video = clip(8)
    bands = haar(video)
    assert bands.shape == (2, 24, 4, 16, 24)
    torch.testing.assert_close(inverse_haar(bands), video, rtol=0, atol=1e-6)


def test_haar_bands_are_in_the_order_time_height_width() -> None:
    video = torch.zeros(1, 3, 2, 2, 2)
    video[0, 1, 0], video[0, 1, 1] = 1.0, -1.0  # the second channel changes over time only
    bands = haar(video).flatten()
    assert bands.nonzero().flatten().tolist() == [4 * 3 + 1]
    torch.testing.assert_close(haar(clip(2))[:, :3], torch.nn.functional.avg_pool3d(clip(2), 2))


def test_shapes_and_ranges(tokenizer: VideoTokenizer) -> None:
    pixels = clip(9)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (2, 3, 32 // tokenizer.spatial, 48 // tokenizer.spatial) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < tokenizer.codebook_size
    assert codes.unique().numel() > 20
    again = tokenizer.decode(codes)
    assert again.shape == pixels.shape and again.dtype == torch.float32
    assert again.abs().max() <= 1
    reconstruction, same_codes = tokenizer(pixels)
    assert torch.equal(same_codes, codes)
    torch.testing.assert_close(reconstruction.clamp(-1, 1), again, rtol=0, atol=1e-5)
    size = (tokenizer.temporal, tokenizer.spatial, tokenizer.codebook_size)
    assert size == ((4, 8, 175) if tokenizer.config == SMALL else (4, 16, 8**8))


@pytest.mark.parametrize("frame", [1, 4, 5, 8])
def test_a_changed_frame_leaves_earlier_latent_frames_bitwise_equal(tokenizer: VideoTokenizer, frame: int) -> None:
    pixels = clip(9)
    changed = pixels.clone()
    changed[:, :, frame] = -changed[:, :, frame]
    latent = (frame + 3) // 4
    before, after = tokenizer.encode(pixels), tokenizer.encode(changed)
    assert torch.equal(before[:, :latent], after[:, :latent])
    assert not torch.equal(before[:, latent], after[:, latent])


@pytest.mark.parametrize("latent", [1, 2])
def test_a_changed_latent_frame_leaves_earlier_pixels_bitwise_equal(tokenizer: VideoTokenizer, latent: int) -> None:
    codes = tokenizer.encode(clip(9))
    changed = codes.clone()
    changed[:, latent] = (changed[:, latent] + 1) % tokenizer.codebook_size
    before, after = tokenizer.decode(codes), tokenizer.decode(changed)
    first = 1 + 4 * (latent - 1)
    assert torch.equal(before[:, :, :first], after[:, :, :first])
    assert not torch.equal(before[:, :, first], after[:, :, first])


def test_an_image_is_a_video_of_one_frame(tokenizer: VideoTokenizer) -> None:
    pixels = clip(9)
    image_codes = tokenizer.encode(pixels[:, :, :1])
    codes = tokenizer.encode(pixels)
    assert torch.equal(image_codes, codes[:, :1])
    torch.testing.assert_close(tokenizer.decode(image_codes), tokenizer.decode(codes)[:, :, :1], rtol=0, atol=1e-5)


def test_streaming_decode_equals_whole_decode(tokenizer: VideoTokenizer) -> None:
    codes = tokenizer.encode(clip(17))
    state = tokenizer.start_stream()
    parts, sizes = [], []
    for t in range(codes.shape[1]):
        parts.append(tokenizer.decode_next(codes[:, t], state))
        sizes.append(sum(tensor.numel() for tensor in state.memory.values()))
    assert [part.shape[2] for part in parts] == [1, 4, 4, 4, 4]
    torch.testing.assert_close(torch.cat(parts, dim=2), tokenizer.decode(codes), rtol=0, atol=1e-5)
    assert len(set(sizes)) == 1, "a stream's memory must not grow"


def test_streaming_encode_equals_whole_encode(tokenizer: VideoTokenizer) -> None:
    pixels = clip(13)
    state = tokenizer.start_stream()
    parts = [tokenizer.encode_next(pixels[:, :, start:stop], state) for start, stop in ((0, 1), (1, 5), (5, 9), (9, 13))]
    assert torch.equal(torch.stack(parts, dim=1), tokenizer.encode(pixels))


def test_two_streams_do_not_disturb_each_other(tokenizer: VideoTokenizer) -> None:
    codes = tokenizer.encode(clip(9))
    alone, one, other = tokenizer.start_stream(), tokenizer.start_stream(), tokenizer.start_stream()
    for t in range(3):
        expected = tokenizer.decode_next(codes[:, t], alone)
        assert torch.equal(tokenizer.decode_next(codes[:, t], one), expected)
        tokenizer.decode_next(codes[:, 2 - t], other)


def test_rows_of_a_batch_are_independent(tokenizer: VideoTokenizer) -> None:
    pixels = clip(5)
    assert torch.equal(tokenizer.encode(pixels[1:]), tokenizer.encode(pixels)[1:])


def test_saving_and_loading_is_the_identity(tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "a", tokenizer)
    loaded = load_tokenizer(tmp_path / "a")
    assert loaded.config == tokenizer.config and not loaded.training
    codes = tokenizer.encode(clip(5))
    assert torch.equal(loaded.encode(clip(5)), codes)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))


def test_bf16_weights_are_half_as_large_and_nearly_the_same(tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "a", tokenizer)
    save_tokenizer(tmp_path / "b", tokenizer, torch.bfloat16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in "ab"]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load_tokenizer(tmp_path / "b")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    codes = tokenizer.encode(clip(5))
    assert 0 < (loaded.decode(codes) - tokenizer.decode(codes)).abs().mean() < 0.01


def test_weights_of_another_config_are_refused(small: VideoTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "a", small)
    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace('"encoder_blocks": [\n      1', '"encoder_blocks": [\n      3'))
    with pytest.raises(ValueError, match="lacks encoder.fine"):
        load_tokenizer(tmp_path / "a")


def test_default_size_and_codebook() -> None:
    tokenizer = VideoTokenizer(TokenizerConfig())
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (tokenizer.encoder, tokenizer.decoder))
    assert 4e6 < encoder + decoder < 6.5e6 and decoder > 2 * encoder
    assert 4000 <= tokenizer.codebook_size <= 4500


def test_widths_and_blocks_of_other_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equally many, 2 to 6, got \[3, 2, 2, 2\]"):
        TokenizerConfig(encoder_widths=(8, 8, 8))


def test_latent_frames_and_sides_of_other_compressions() -> None:
    assert [latent_frames(frames, 8) for frames in (1, 9, 17)] == [1, 2, 3]
    assert [pixel_frames(count, 8) for count in range(4)] == [0, 1, 9, 17]
    check_sides(16, 48, 16)
    for height, width in ((16, 40), (0, 16), (8, 16)):
        with pytest.raises(ValueError, match="multiples of 16"):
            check_sides(height, width, 16)


@pytest.mark.parametrize(
    "pixels, words",
    [
        (torch.zeros(1, 3, 16, 32, 32), r"frames must be 1 \+ 4k, got 16; use 17"),
        (torch.zeros(1, 3, 0, 32, 32), "got 0; use 1"),
        (torch.zeros(1, 3, 5, 36, 32), "multiples of 8, got 36x32; use 32x32"),
        (torch.zeros(1, 3, 5, 32, 3), "multiples of 8, got 32x3; use 32x8"),
        (torch.zeros(1, 4, 5, 32, 32), "pixels must have shape B, 3, F, H, W"),
        (torch.zeros(3, 5, 32, 32), "pixels must have shape B, 3, F, H, W"),
    ],
)
def test_bad_pixels_are_refused(small: VideoTokenizer, pixels: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small.encode(pixels)


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


def test_a_stream_takes_one_frame_then_four(tokenizer: VideoTokenizer) -> None:
    state = tokenizer.start_stream()
    with pytest.raises(ValueError, match="give 1"):
        tokenizer.encode_next(clip(5), state)
    tokenizer.encode_next(clip(1), state)
    with pytest.raises(ValueError, match="give 4"):
        tokenizer.encode_next(clip(1), state)
