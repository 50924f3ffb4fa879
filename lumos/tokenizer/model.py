"""The causal video tokenizer: pixels_BCFHW in [-1, 1] <-> codes_BTHW, 4x8x8 smaller (or 4x16x16, with one more width).

1 + 4k frames become 1 + k latent frames, and an image is a video of one frame. Like Cosmos (arXiv 2501.03575), which the
paper uses: Haar patches, factorised causal convolutions, FSQ; smaller, without attention, and with most of its parameters
in the decoder. One code path serves whole clips and streams: a stream only adds a memory for the convolutions over time.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from lumos.tokenizer.fsq import FSQ
from lumos.tokenizer.layers import Down, Norm, ResidualBlock, SpaceConv, StreamState, Up, haar, initialise, inverse_haar
from lumos.weights import FORMAT, check_names, load_folder, read_config, save_folder

PATCH = 4  # two Haar levels: 4x4x4 pixels of 3 channels become one place of 192
PATCH_CHANNELS = 3 * PATCH**3


@dataclass(frozen=True)
class TokenizerConfig:
    """Widths and numbers of residual blocks, one for each resolution from 1/4 of the pixels' down: 1/4, 1/8, 1/16, ...

    Two of each make 4x8x8 codes, three make 4x16x16. `levels` are the FSQ's, one per code channel.
    """

    levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    encoder_widths: tuple[int, ...] = (96, 160)
    encoder_blocks: tuple[int, ...] = (2, 3)
    decoder_widths: tuple[int, ...] = (128, 224)
    decoder_blocks: tuple[int, ...] = (5, 4)

    def __post_init__(self) -> None:
        parts = (self.encoder_widths, self.encoder_blocks, self.decoder_widths, self.decoder_blocks)
        lengths = [len(part) for part in parts]
        if min(lengths) < 2 or len(set(lengths)) > 1:
            raise ValueError(f"widths and blocks must be equally many, at least 2, got {lengths}; give one for each resolution")


class VideoTokenizer(nn.Module):
    """Encoder, FSQ and decoder. Computes in the parameters' type, or in bf16 under the caller's torch.autocast."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.fsq = FSQ(config.levels)
        self.decoder = Decoder(config)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it

    @property
    def codebook_size(self) -> int:
        return self.fsq.codebook_size

    @property
    def temporal(self) -> int:
        """Pixel frames a latent frame, after the first."""
        return PATCH

    @property
    def spatial(self) -> int:
        """Pixels a code, in height and in width."""
        return PATCH * 2 ** (len(self.config.encoder_widths) - 1)

    def initialise(self, generator: torch.Generator) -> None:
        """Fresh weights, see `layers.initialise`."""
        initialise(self, generator)

    def forward(self, pixels_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
        """Encode and decode, for training: (reconstruction_BCFHW float32, not clamped; codes_BTHW)."""
        values_BTHWD, codes_BTHW = self.fsq(self.encoder(self._patch(pixels_BCFHW), None))
        return unpatch(self.decoder(values_BTHWD, None), first=True), codes_BTHW

    @torch.no_grad()
    def encode(self, pixels_BCFHW: Tensor) -> Tensor:
        """Pixels in [-1, 1], 1 + 4k frames, sides in multiples of `spatial` -> codes_BTHW int64, 1 + k latent frames."""
        return self.fsq(self.encoder(self._patch(pixels_BCFHW), None))[1]

    @torch.no_grad()
    def decode(self, codes_BTHW: Tensor) -> Tensor:
        """Codes -> pixels_BCFHW float32 in [-1, 1]. Raises ValueError for codes out of range."""
        if codes_BTHW.ndim != 4:
            raise ValueError(f"codes must have 4 dimensions B, T, H, W, got shape {list(codes_BTHW.shape)}; add the missing ones")
        return unpatch(self.decoder(self.fsq.values(codes_BTHW), None), first=True).clamp(-1, 1)

    def start_stream(self) -> StreamState:
        """A fresh state for `decode_next` or `encode_next` (one stream each, any batch)."""
        return StreamState()

    @torch.no_grad()
    def decode_next(self, codes_BHW: Tensor, state: StreamState) -> Tensor:
        """The next latent frame -> its pixels_BCFHW: 1 frame for a stream's first, 4 for each later one."""
        if codes_BHW.ndim != 3:
            raise ValueError(
                f"codes of a latent frame must have 3 dimensions B, H, W, got shape {list(codes_BHW.shape)}; give one"
            )
        values_BTHWD = self.fsq.values(codes_BHW[:, None])
        pixels_BCFHW = unpatch(self.decoder(values_BTHWD, state.memory), first=not state.started)
        state.started = True
        return pixels_BCFHW.clamp(-1, 1)

    @torch.no_grad()
    def encode_next(self, pixels_BCFHW: Tensor, state: StreamState) -> Tensor:
        """The next 1 frame (of a stream's start) or 4 frames (afterwards) -> codes_BHW of one latent frame."""
        frames, expected = pixels_BCFHW.shape[2], PATCH if state.started else 1
        if frames != expected:
            raise ValueError(f"a stream is encoded 1 frame first, then {PATCH} at a time, got {frames}; give {expected}")
        _check_pixels(pixels_BCFHW, self.spatial)
        patches_BTHWC = _haar_patches(pixels_BCFHW if state.started else _repeat_first(pixels_BCFHW))
        codes_BTHW = self.fsq(self.encoder(patches_BTHWC, state.memory))[1]
        state.started = True
        return codes_BTHW[:, 0]

    def _patch(self, pixels_BCFHW: Tensor) -> Tensor:
        _check_pixels(pixels_BCFHW, self.spatial)
        frames = pixels_BCFHW.shape[2]
        if frames % PATCH != 1:
            raise ValueError(
                f"frames must be 1 + {PATCH}k for this tokenizer, got {frames}; use {1 + PATCH * -(-max(frames - 1, 0) // PATCH)}"
            )
        return _haar_patches(_repeat_first(pixels_BCFHW))


class Encoder(nn.Module):
    """Patches at 1/4 resolution -> the FSQ's channels at the codes'."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths, counts = config.encoder_widths, config.encoder_blocks
        self.conv_in = SpaceConv(PATCH_CHANNELS, widths[0])
        self.fine = nn.ModuleList(_blocks(widths[0], counts[0]))
        self.down = Down(widths[0], widths[1])
        self.coarse = nn.ModuleList(_blocks(widths[1], counts[1]))
        self.coarser = nn.ModuleList()
        for i in range(2, len(widths)):
            self.coarser.extend((Down(widths[i - 1], widths[i]), *_blocks(widths[i], counts[i])))
        self.norm_out = Norm(widths[-1])
        self.out = nn.Linear(widths[-1], len(config.levels))

    def forward(self, patches_BTHWC: Tensor, memory: dict[nn.Module, Tensor] | None) -> Tensor:
        x = self.conv_in(patches_BTHWC)
        x = _through((*self.fine, self.down, *self.coarse, *self.coarser), x, memory)
        return self.out(silu(self.norm_out(x)))


class Decoder(nn.Module):
    """The FSQ's values at the codes' resolution -> patches at 1/4."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths, counts = config.decoder_widths, config.decoder_blocks
        self.conv_in = SpaceConv(len(config.levels), widths[-1])
        self.coarser = nn.ModuleList()
        for i in range(len(widths) - 1, 1, -1):
            self.coarser.extend((*_blocks(widths[i], counts[i]), Up(widths[i], widths[i - 1])))
        self.coarse = nn.ModuleList(_blocks(widths[1], counts[1]))
        self.up = Up(widths[1], widths[0])
        self.fine = nn.ModuleList(_blocks(widths[0], counts[0]))
        self.norm_out = Norm(widths[0])
        # the last convolution sees 3x3 patches: without that overlap, the borders of the 4x4 patches show
        self.conv_out = SpaceConv(widths[0], PATCH_CHANNELS)

    def forward(self, values_BTHWD: Tensor, memory: dict[nn.Module, Tensor] | None) -> Tensor:
        x = self.conv_in(values_BTHWD)
        x = _through((*self.coarser, *self.coarse, self.up, *self.fine), x, memory)
        return self.conv_out(silu(self.norm_out(x)))


def _blocks(width: int, count: int) -> list[ResidualBlock]:
    return [ResidualBlock(width) for _ in range(count)]


def _through(layers: Iterable[nn.Module], features_BTHWC: Tensor, memory: dict[nn.Module, Tensor] | None) -> Tensor:
    for layer in layers:
        over_time = isinstance(layer, ResidualBlock)
        features_BTHWC = layer(features_BTHWC, memory) if over_time else layer(features_BTHWC)
    return features_BTHWC


def unpatch(patches_BTHWC: Tensor, first: bool) -> Tensor:
    """Patches -> pixels_BCFHW; `first` when they start with a video's first latent frame, which stands for one frame."""
    pixels_BCFHW = inverse_haar(inverse_haar(patches_BTHWC.float().permute(0, 4, 1, 2, 3)))
    return pixels_BCFHW[:, :, PATCH - 1 :] if first else pixels_BCFHW


def save_tokenizer(folder: Path, tokenizer: VideoTokenizer, dtype: torch.dtype = torch.float32) -> None:
    """Write a weights folder, the parameters stored as `dtype` (torch.bfloat16 halves it)."""
    header = {"kind": "tokenizer", "format": FORMAT, "config": asdict(tokenizer.config)}
    save_folder(folder, header, {name: tensor.to(dtype) for name, tensor in tokenizer.state_dict().items()})


def load_tokenizer(folder: Path) -> VideoTokenizer:
    """Read a weights folder: a float32 tokenizer on the CPU, in eval mode. Raises ValueError for a damaged or foreign folder."""
    header, tensors = load_folder(folder, "tokenizer")
    tokenizer = VideoTokenizer(read_config(TokenizerConfig, header["config"], folder / "config.json"))
    check_names(tensors, tokenizer.state_dict(), folder)
    tokenizer.load_state_dict(tensors)
    return tokenizer.eval()


def _check_pixels(pixels_BCFHW: Tensor, spatial: int) -> None:
    if pixels_BCFHW.ndim != 5 or pixels_BCFHW.shape[1] != 3:
        raise ValueError(f"pixels must have shape B, 3, F, H, W, got {list(pixels_BCFHW.shape)}; give RGB clips")
    height, width = pixels_BCFHW.shape[3:]
    if height % spatial or width % spatial or not height or not width:
        nearest = [max(spatial, round(side / spatial) * spatial) for side in (height, width)]
        raise ValueError(f"height and width must be multiples of {spatial}, got {height}x{width}; use {nearest[0]}x{nearest[1]}")


def _repeat_first(pixels_BCFHW: Tensor) -> Tensor:
    return torch.cat((pixels_BCFHW[:, :, :1].expand(-1, -1, PATCH - 1, -1, -1), pixels_BCFHW), dim=2)


def _haar_patches(pixels_BCFHW: Tensor) -> Tensor:
    return haar(haar(pixels_BCFHW)).permute(0, 2, 3, 4, 1)
