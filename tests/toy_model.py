"""The smallest model that makes videos: random, of 32x32 pixels and 9 frames."""

from pathlib import Path

import torch

from lumos.diffusion.sampler import SamplerConfig
from lumos.generate import Generator
from lumos.model.transformer import ModelConfig, Transformer
from lumos.model_folder import FolderConfig, VideoConfig, save_model
from lumos.sequence.text import train_text_tokenizer
from lumos.sequence.vocabulary import small_vocabulary
from lumos.tokenizer.model import TokenizerConfig, VideoTokenizer


def toy_tokenizer(levels: tuple[int, ...] = (5, 5), seed: int = 0) -> VideoTokenizer:
    """As small as can be, and untrained."""
    tokenizer = VideoTokenizer(TokenizerConfig(levels, (8, 8), (1, 1), (8, 8), (1, 1)))
    tokenizer.initialise(torch.Generator().manual_seed(seed))
    return tokenizer.eval()


def save_generator(folder: Path, of: Generator) -> Path:
    """The weights folder of a Generator."""
    save_model(folder, of.config, of.model.state_dict(), of.text, of.tokenizer)  # type: ignore[arg-type]
    return folder


def toy_generator(slots: int, levels: tuple[int, ...] = (4, 4, 4), louder: bool = True) -> Generator:
    """A window of 3 latent frames, positions trained up to latent frame 3. louder: than at initialisation, so that choices are
    clear."""
    tokenizer = toy_tokenizer(levels)
    text = train_text_tokenizer(["a red circle moves", "two blue stars"], 80)
    vocabulary = small_vocabulary(text.size, tokenizer.codebook_size)
    shape = ModelConfig(vocabulary.size, 2, 32, heads=2, kv_heads=1, head_width=32, ffn=48, sub_codes=vocabulary.sub_codes)
    model = Transformer(shape)
    model.initialise(torch.Generator().manual_seed(1))
    if louder:
        for parameter in model.parameters():
            parameter.data *= 8 if parameter.ndim == 2 and parameter.shape[0] > 1 else 1
    video = VideoConfig(height=32, width=32, frames=9, fps=8, slots=slots, window=3, latest=3)
    config = FolderConfig(shape, vocabulary, video, SamplerConfig(steps=3, guidance=2.0))
    return Generator(config, model.requires_grad_(False), text, tokenizer, torch.device("cpu"), torch.float32)
