from collections.abc import Iterator

import pytest
import torch

from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.prompts import benchmark, one_object
from lumos.generate import Generator
from lumos.model.transformer import ModelConfig, Transformer
from lumos.model_folder import FolderConfig, VideoConfig
from lumos.sequence.text import train_text_tokenizer
from lumos.sequence.vocabulary import small_vocabulary
from lumos.tokenizer.model import TokenizerConfig, VideoTokenizer


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads that wait for each other would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def random_model() -> Generator:
    """A model of 128x128 videos that knows nothing, as small as can be."""
    tokenizer = VideoTokenizer(TokenizerConfig((4, 4, 4), (8, 8), (1, 1), (8, 8), (1, 1)))
    tokenizer.initialise(torch.Generator().manual_seed(0))
    text = train_text_tokenizer([prompt.text for prompt in (*benchmark(), *one_object(8))], 200)
    vocabulary = small_vocabulary(text.size, tokenizer.codebook_size)
    shape = ModelConfig(vocabulary.size, layers=1, width=32, heads=1, kv_heads=1, head_width=32, ffn=32)
    model = Transformer(shape)
    model.initialise(torch.Generator().manual_seed(1))
    video = VideoConfig(height=128, width=128, frames=17, fps=8, slots=64, window=5, latest=8)
    config = FolderConfig(shape, vocabulary, video, SamplerConfig(steps=1, guidance=1.0))
    return Generator(config, model.requires_grad_(False), text, tokenizer, torch.device("cpu"), torch.float32)
