"""The Cosmos video tokenizer that the published Lumos-1 models use: encoder and decoder between Haar patches and latents.

DV4x8x8 and, as other numbers in the config, DV8x8x8 and DV8x16x16. Written from the description in arXiv 2501.03575;
`published/cosmos.py` reads the released archives.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor, nn
from torch.nn.functional import silu

from lumos.config import Count, Range, Size
from lumos.tokenizer.cosmos_layers import CosmosBlock, CosmosConv, Downsample, FrameNorm, Middle, Upsample
from lumos.tokenizer.layers import PATCH, PATCH_CHANNELS, Memory


@dataclass(frozen=True)
class CosmosConfig:
    """Sizes of the network; the released code calls them by other names."""

    temporal: int = 4  # pixel frames per latent frame, after the first
    spatial: int = 8  # pixels per code, in height and in width
    levels: tuple[Annotated[int, Range(2, 2**16)], ...] = (8, 8, 8, 5, 5, 5)  # of the FSQ, one per code channel
    channels: Size = 128  # width, times each multiplier
    multipliers: tuple[Count, ...] = (2, 4, 4)  # one per resolution, from 1/4 of the pixels' down
    blocks: Count = 2  # residual blocks per resolution
    latent_channels: Size = 16  # between encoder and FSQ
    # Latent frames that the attention over time looks back on, the present included. The released code has no such limit;
    # 64 (253 frames of DV4x8x8) is more than published clips have, and keeps an endless stream's memory bounded.
    window: Annotated[int, Range(1, 2**20)] = 64

    network: ClassVar[str] = "CosmosTokenizer"  # in fingerprints
    at_once: ClassVar[int] = 1  # latent frames of a clip that pass through together: one, the least memory

    def __post_init__(self) -> None:
        if not 1 <= len(self.multipliers) <= 8:
            raise ValueError(f"multipliers must be 1 to 8 numbers, got {len(self.multipliers)}")
        for name, ratio in (("temporal", self.temporal), ("spatial", self.spatial)):
            allowed = [PATCH * 2**downs for downs in range(len(self.multipliers))]
            if ratio not in allowed:
                raise ValueError(f"{name} compression must be one of {allowed} with these multipliers, got {ratio}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, the finest first."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)


DV4X8X8 = CosmosConfig()


class CosmosEncoder(nn.Module):
    """Patches at 1/4 resolution -> latent channels at the latent resolution."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        space_downs, time_downs = _downs(config)
        inputs = (config.channels, *config.widths)
        last = len(config.widths) - 1
        self.conv_in = CosmosConv(PATCH_CHANNELS, config.channels)
        self.down = nn.ModuleList()
        for i, width in enumerate(config.widths):
            downsample = Downsample(width, space=i < space_downs, time=i < time_downs) if i < last else None
            self.down.append(Level(inputs[i], width, config.blocks, downsample=downsample))
        self.mid = Middle(config.widths[-1], config.window)
        self.norm_out = FrameNorm(config.widths[-1])
        self.conv_out = CosmosConv(config.widths[-1], config.latent_channels)

    def forward(self, patches_BTHWC: Tensor, memory: Memory) -> Tensor:
        x = self.conv_in(patches_BTHWC, memory)
        for level in self.down:
            x = level(x, memory)
        return self.conv_out(silu(self.norm_out(self.mid(x, memory))), memory)


class CosmosDecoder(nn.Module):
    """Latent channels at the latent resolution -> patches at 1/4 resolution."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        space_ups, time_ups = _downs(config)
        last = len(config.widths) - 1
        inputs = (*config.widths[1:], config.widths[-1])
        self.conv_in = CosmosConv(config.latent_channels, config.widths[-1])
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
        self.conv_out = CosmosConv(config.widths[0], PATCH_CHANNELS)

    def forward(self, latents_BTHWC: Tensor, memory: Memory) -> Tensor:
        x = self.mid(self.conv_in(latents_BTHWC, memory), memory)
        for level in reversed(self.up):
            x = level(x, memory)
        return self.conv_out(silu(self.norm_out(x)), memory)


class Level(nn.Module):
    """Residual blocks at one resolution, then perhaps a step to the next."""

    def __init__(
        self, inputs: int, width: int, blocks: int, downsample: Downsample | None = None, upsample: Upsample | None = None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(CosmosBlock(width if i else inputs, width) for i in range(blocks))
        self.downsample, self.upsample = downsample, upsample

    def forward(self, features_BTHWC: Tensor, memory: Memory) -> Tensor:
        x = features_BTHWC
        for block in self.block:
            x = block(x, memory)
        for step in (self.downsample, self.upsample):
            x = x if step is None else step(x, memory)
        return x


def _downs(config: CosmosConfig) -> tuple[int, int]:
    """How often space and time are halved after patching."""
    return (config.spatial // PATCH).bit_length() - 1, (config.temporal // PATCH).bit_length() - 1
