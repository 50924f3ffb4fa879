"""The Cosmos video tokenizer that the published Lumos-1 models use: pixels_BCFHW in [-1, 1] <-> codes_BTHW.

1 + 4k frames become 1 + k latent frames of an 8th of the height and width (DV4x8x8; other compressions are other numbers
in the config). Clips pass through in pieces, like a stream, so that memory does not depend on their length. Written from
the description in arXiv 2501.03575; lumos/published/cosmos.py reads the released
archives.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from lumos.tokenizer.cosmos_layers import Conv, Downsample, FrameNorm, Memory, Middle, ResidualBlock, Upsample
from lumos.tokenizer.fsq import FSQ
from lumos.tokenizer.layers import StreamState, haar, initialise
from lumos.tokenizer.model import PATCH, PATCH_CHANNELS, unpatch
from lumos.weights import FORMAT, save_folder

AT_ONCE = 1  # latent frames that pass through together when whole clips are encoded and decoded: the least memory


@dataclass(frozen=True)
class CosmosConfig:
    """Pixels a latent frame and a code stand for, widths (channels times each multiplier), residual blocks a level.

    window: latent frames that the attention over time looks back on, the present included. The released code has no such
    limit; 64 (253 frames of DV4x8x8) is more than published clips have, and keeps an endless stream's memory bounded.
    """

    temporal: int = 4
    spatial: int = 8
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    channels: int = 128
    multipliers: tuple[int, ...] = (2, 4, 4)
    blocks: int = 2
    latent_channels: int = 16
    window: int = 64

    def __post_init__(self) -> None:
        for name, ratio in (("temporal", self.temporal), ("spatial", self.spatial)):
            allowed = [PATCH * 2**downs for downs in range(len(self.multipliers))]
            if ratio not in allowed:
                raise ValueError(f"{name} compression must be one of {allowed} with these multipliers, got {ratio}; correct it")
        if min(self.channels, self.blocks, self.latent_channels, self.window, *self.multipliers) < 1:
            raise ValueError(
                f"channels, multipliers, blocks, latent_channels and window must be at least 1, got {self}; correct it"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, the finest first."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)


DV4X8X8 = CosmosConfig()
DV8X8X8 = CosmosConfig(temporal=8)
DV8X16X16 = CosmosConfig(temporal=8, spatial=16)


class CosmosTokenizer(nn.Module):
    """Encoder, FSQ and decoder, like `VideoTokenizer`. Weights are unset until they are loaded or `initialise`d.

    Computes in the parameters' type, or in bf16 under the caller's torch.autocast; Haar, norms and FSQ in float32.
    """

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Linear(config.latent_channels, len(config.levels))
        self.fsq = FSQ(config.levels)
        self.post_quant_conv = nn.Linear(len(config.levels), config.latent_channels)
        self.decoder = Decoder(config)

    @property
    def codebook_size(self) -> int:
        return self.fsq.codebook_size

    @property
    def temporal(self) -> int:
        """Pixel frames a latent frame, after the first."""
        return self.config.temporal

    @property
    def spatial(self) -> int:
        """Pixels a code, in height and in width."""
        return self.config.spatial

    def initialise(self, generator: torch.Generator) -> None:
        """Fresh weights, see `layers.initialise`."""
        initialise(self, generator)

    @torch.no_grad()
    def encode(self, pixels_BCFHW: Tensor, at_once: int = AT_ONCE) -> Tensor:
        """Pixels in [-1, 1], 1 + 4k frames, sides in multiples of 8 (DV4x8x8) -> codes_BTHW int64, 1 + k latent frames.

        at_once: latent frames that pass through together; it changes time and memory, not the result.
        """
        self._check_pixels(pixels_BCFHW)
        frames = pixels_BCFHW.shape[2]
        if frames % self.temporal != 1:
            better = 1 + self.temporal * -(-max(frames - 1, 0) // self.temporal)
            raise ValueError(f"frames must be 1 + {self.temporal}k for this tokenizer, got {frames}; use {better}")
        state, parts = self.start_stream(), []
        for start, stop in _pieces(1 + frames // self.temporal, at_once):
            piece_BCFHW = pixels_BCFHW[:, :, self._frames_before(start) : self._frames_before(stop)]
            parts.append(self.fsq(self.latents(piece_BCFHW, state))[1])
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def decode(self, codes_BTHW: Tensor, at_once: int = AT_ONCE) -> Tensor:
        """Codes -> pixels_BCFHW float32 in [-1, 1]. Raises ValueError for codes out of range. `at_once`: see `encode`."""
        if codes_BTHW.ndim != 4 or not codes_BTHW.shape[1]:
            raise ValueError(
                f"codes must have 4 dimensions B, T, H, W and T > 0, got shape {list(codes_BTHW.shape)}; give a video"
            )
        batch, latent_frames, rows, columns = codes_BTHW.shape
        frames = self._frames_before(latent_frames)
        pixels_BCFHW = torch.empty(batch, 3, frames, rows * self.spatial, columns * self.spatial, device=codes_BTHW.device)
        state = self.start_stream()
        for start, stop in _pieces(latent_frames, at_once):
            part_BCFHW = self.pixels(self.fsq.values(codes_BTHW[:, start:stop]), state).clamp(-1, 1)
            pixels_BCFHW[:, :, self._frames_before(start) : self._frames_before(stop)] = part_BCFHW
        return pixels_BCFHW

    def start_stream(self) -> StreamState:
        """A fresh state for `decode_next` or `encode_next` (one stream each, any batch).

        It holds two feature frames for every convolution over time, and up to config.window - 1 at the latent resolution
        for the attention over time: it grows with that many latent frames and stays at that.
        """
        return StreamState()

    @torch.no_grad()
    def decode_next(self, codes_BHW: Tensor, state: StreamState) -> Tensor:
        """The next latent frame -> its pixels_BCFHW: 1 frame for a stream's first, `temporal` for each later one."""
        if codes_BHW.ndim != 3:
            raise ValueError(
                f"codes of a latent frame must have 3 dimensions B, H, W, got shape {list(codes_BHW.shape)}; give one"
            )
        return self.pixels(self.fsq.values(codes_BHW[:, None]), state).clamp(-1, 1)

    @torch.no_grad()
    def encode_next(self, pixels_BCFHW: Tensor, state: StreamState) -> Tensor:
        """The next 1 frame (of a stream's start) or `temporal` frames (afterwards) -> codes_BHW of one latent frame."""
        self._check_pixels(pixels_BCFHW)
        frames, expected = pixels_BCFHW.shape[2], self.temporal if state.started else 1
        if frames != expected:
            raise ValueError(f"a stream is encoded 1 frame first, then {self.temporal} at a time, got {frames}; give {expected}")
        return self.fsq(self.latents(pixels_BCFHW, state))[1][:, 0]

    def latents(self, pixels_BCFHW: Tensor, state: StreamState) -> Tensor:
        """The next frames of a stream -> the channels [B, T, H, W, D] that the FSQ rounds."""
        patches_BTHWC = patch(pixels_BCFHW, first=not state.started).to(self.quant_conv.weight.dtype)
        latents_BTHWD = self.quant_conv(self.encoder(patches_BTHWC, state.memory))
        state.started = True
        return latents_BTHWD

    def pixels(self, values_BTHWD: Tensor, state: StreamState) -> Tensor:
        """The FSQ's values of a stream's next latent frames -> pixels_BCFHW float32, not clamped."""
        latents_BTHWC = self.post_quant_conv(values_BTHWD.to(self.post_quant_conv.weight.dtype))
        pixels_BCFHW = unpatch(self.decoder(latents_BTHWC, state.memory), first=not state.started)
        state.started = True
        return pixels_BCFHW

    def _frames_before(self, latent_frame: int) -> int:
        return 1 + self.temporal * (latent_frame - 1) if latent_frame else 0

    def _check_pixels(self, pixels_BCFHW: Tensor) -> None:
        if pixels_BCFHW.ndim != 5 or pixels_BCFHW.shape[1] != 3:
            raise ValueError(f"pixels must have shape B, 3, F, H, W, got {list(pixels_BCFHW.shape)}; give RGB clips")
        height, width = pixels_BCFHW.shape[3:]
        if height % self.spatial or width % self.spatial or not height or not width:
            nearest = [max(self.spatial, round(side / self.spatial) * self.spatial) for side in (height, width)]
            raise ValueError(
                f"height and width must be multiples of {self.spatial}, got {height}x{width}; use {nearest[0]}x{nearest[1]}"
            )


class Encoder(nn.Module):
    """Patches at 1/4 resolution -> latent channels at the latent resolution."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        space_downs, time_downs = _downs(config)
        inputs = (config.channels, *config.widths)
        last = len(config.widths) - 1
        self.conv_in = Conv(PATCH_CHANNELS, config.channels)
        self.down = nn.ModuleList()
        for i, width in enumerate(config.widths):
            downsample = Downsample(width, space=i < space_downs, time=i < time_downs) if i < last else None
            self.down.append(Level(inputs[i], width, config.blocks, downsample=downsample))
        self.mid = Middle(config.widths[-1], config.window)
        self.norm_out = FrameNorm(config.widths[-1])
        self.conv_out = Conv(config.widths[-1], config.latent_channels)

    def forward(self, patches_BTHWC: Tensor, memory: Memory) -> Tensor:
        x = self.conv_in(patches_BTHWC, memory)
        for level in self.down:
            x = level(x, memory)
        return self.conv_out(silu(self.norm_out(self.mid(x, memory))), memory)


class Decoder(nn.Module):
    """Latent channels at the latent resolution -> patches at 1/4 resolution."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        space_ups, time_ups = _downs(config)
        last = len(config.widths) - 1
        inputs = (*config.widths[1:], config.widths[-1])
        self.conv_in = Conv(config.latent_channels, config.widths[-1])
        self.mid = Middle(config.widths[-1], config.window)
        levels = []
        for i, width in enumerate(config.widths):
            depth = last - i  # the released numbers count from the finest level, its rule from the deepest
            time = 0 < depth < time_ups + 1
            space = time or (depth < space_ups and space_ups > time_ups)
            upsample = Upsample(width, space, time) if i > 0 else None
            levels.append(Level(inputs[i], width, config.blocks + 1, upsample=upsample))
        self.up = nn.ModuleList(levels)
        self.norm_out = FrameNorm(config.widths[0])
        self.conv_out = Conv(config.widths[0], PATCH_CHANNELS)

    def forward(self, latents_BTHWC: Tensor, memory: Memory) -> Tensor:
        x = self.mid(self.conv_in(latents_BTHWC, memory), memory)
        for level in reversed(self.up):
            x = level(x, memory)
        return self.conv_out(silu(self.norm_out(x)), memory)


class Level(nn.Module):
    """Residual blocks at one resolution, then perhaps a step to the next."""

    def __init__(
        self,
        inputs: int,
        width: int,
        blocks: int,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(width if i else inputs, width) for i in range(blocks))
        self.downsample, self.upsample = downsample, upsample

    def forward(self, features_BTHWC: Tensor, memory: Memory) -> Tensor:
        x = features_BTHWC
        for block in self.block:
            x = block(x, memory)
        for step in (self.downsample, self.upsample):
            x = x if step is None else step(x, memory)
        return x


def patch(pixels_BCFHW: Tensor, first: bool) -> Tensor:
    """Pixels -> patches_BTHWC of two Haar levels; `first` when they start a video, whose first frame stands for four."""
    if first:
        pixels_BCFHW = torch.cat((pixels_BCFHW[:, :, :1].expand(-1, -1, PATCH - 1, -1, -1), pixels_BCFHW), dim=2)
    return haar(haar(pixels_BCFHW)).permute(0, 2, 3, 4, 1)


def save_cosmos(folder: Path, tokenizer: CosmosTokenizer, dtype: torch.dtype = torch.float32) -> None:
    """Write a weights folder, the parameters stored as `dtype` (torch.bfloat16 halves it)."""
    save_folder(folder, header_of(tokenizer.config), {name: tensor.to(dtype) for name, tensor in tokenizer.state_dict().items()})


def header_of(config: CosmosConfig) -> dict[str, Any]:
    return {"kind": "tokenizer", "format": FORMAT, "config": {"cosmos": asdict(config)}}


def _downs(config: CosmosConfig) -> tuple[int, int]:
    """How often space and time are halved after patching."""
    return (config.spatial // PATCH).bit_length() - 1, (config.temporal // PATCH).bit_length() - 1


def _pieces(count: int, size: int) -> list[tuple[int, int]]:
    if size < 1:
        raise ValueError(f"latent frames at once must be at least 1, got {size}; use {AT_ONCE}")
    return [(start, min(start + size, count)) for start in range(0, count, size)]
