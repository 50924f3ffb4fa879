"""Small tokenizers of both networks, with weights that make codes and pixels differ from place to place."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from lumos.tokenizer.cosmos import CosmosConfig
from lumos.tokenizer.model import TokenizerConfig, VideoTokenizer

OURS = TokenizerConfig((7, 5, 5), (16, 24), (1, 2), (16, 24), (2, 1))
COSMOS = CosmosConfig(levels=(8, 5, 5), channels=8, multipliers=(1, 2, 2), blocks=1, latent_channels=4)
CONFIGS = {
    "ours 4x8x8": OURS,
    "ours 4x16x16": TokenizerConfig((8,) * 8, (16, 24, 32), (1, 2, 1), (16, 24, 32), (2, 1, 1)),  # 16.8 M codes
    "cosmos 4x8x8": COSMOS,
    "cosmos 8x8x8": replace(COSMOS, temporal=8),
    "cosmos 8x16x16": replace(COSMOS, temporal=8, spatial=16),
}


def randomise(module: nn.Module) -> nn.Module:
    """Weights that keep variances, and norms and biases that are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            bound = (3 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.3
            parameter.uniform_(-bound, bound, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return module.eval()


def made(config: TokenizerConfig | CosmosConfig) -> VideoTokenizer:
    tokenizer = VideoTokenizer(config)
    if isinstance(config, CosmosConfig):
        randomise(tokenizer)
    else:
        tokenizer.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        if isinstance(config, CosmosConfig):
            tokenizer.quant_conv.weight *= 3
            tokenizer.decoder.conv_out.time.weight *= 0.04  # pixels that mostly need no clamping
        else:
            tokenizer.encoder.out.weight *= 10
    return tokenizer.eval()


def clip(tokenizer: VideoTokenizer, latent_frames: int, rows: int = 2, columns: int = 3, batch: int = 2) -> Tensor:
    frames = 1 + tokenizer.temporal * (latent_frames - 1)
    generator = torch.Generator().manual_seed(latent_frames)
    return torch.rand(batch, 3, frames, rows * tokenizer.spatial, columns * tokenizer.spatial, generator=generator) * 2 - 1


def some_codes(tokenizer: VideoTokenizer, latent_frames: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(latent_frames)
    return torch.randint(tokenizer.codebook_size, (batch, latent_frames, 2, 3), generator=generator)
