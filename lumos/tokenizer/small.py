"""Our own small tokenizer: encoder and decoder between Haar patches_BTHWC and the channels of the FSQ.

Like Cosmos (arXiv 2501.03575): factorised causal convolutions at 1/4 of the pixels' resolution and below; smaller, without
attention, and with most of its parameters in the decoder.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor, nn
from torch.nn.functional import silu

from lumos.config import Count, Range, Size
from lumos.tokenizer.layers import PATCH, PATCH_CHANNELS, Down, Memory, Norm, ResidualBlock, SpaceConv, Up


@dataclass(frozen=True)
class TokenizerConfig:
    """Widths and blocks for every resolution from 1/4 of the pixels' down: two of each make 4x8x8 codes, three 4x16x16."""

    levels: tuple[Annotated[int, Range(2, 2**16)], ...] = (7, 5, 5, 5, 5)  # of the FSQ, one per code channel
    encoder_widths: tuple[Size, ...] = (96, 160)  # channels
    encoder_blocks: tuple[Count, ...] = (2, 3)  # residual blocks
    decoder_widths: tuple[Size, ...] = (128, 224)  # channels, as of the encoder
    decoder_blocks: tuple[Count, ...] = (5, 4)  # residual blocks, as of the encoder

    network: ClassVar[str] = "VideoTokenizer"  # in fingerprints
    at_once: ClassVar[int] = 2**30  # latent frames of a clip that pass through together: all, the fastest

    def __post_init__(self) -> None:
        parts = (self.encoder_widths, self.encoder_blocks, self.decoder_widths, self.decoder_blocks)
        lengths = [len(part) for part in parts]
        if not 2 <= min(lengths) == max(lengths) <= 6:
            raise ValueError(f"widths and blocks must be equally many, 2 to 6, got {lengths}; give one for each resolution")

    @property
    def temporal(self) -> int:
        return PATCH

    @property
    def spatial(self) -> int:
        return PATCH * 2 ** (len(self.encoder_widths) - 1)


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

    def forward(self, patches_BTHWC: Tensor, memory: Memory) -> Tensor:
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

    def forward(self, values_BTHWD: Tensor, memory: Memory) -> Tensor:
        x = self.conv_in(values_BTHWD)
        x = _through((*self.coarser, *self.coarse, self.up, *self.fine), x, memory)
        return self.conv_out(silu(self.norm_out(x)))


def _blocks(width: int, count: int) -> list[ResidualBlock]:
    return [ResidualBlock(width) for _ in range(count)]


def _through(layers: Iterable[nn.Module], features_BTHWC: Tensor, memory: Memory) -> Tensor:
    for layer in layers:
        over_time = isinstance(layer, ResidualBlock)
        features_BTHWC = layer(features_BTHWC, memory) if over_time else layer(features_BTHWC)
    return features_BTHWC
