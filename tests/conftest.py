"""What all tests share: no network, repeatable property tests."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from lumos.config import PACKAGED
from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.prompts import benchmark, one_object
from lumos.generate import Generator
from lumos.model.transformer import ModelConfig, Transformer
from lumos.model_folder import FolderConfig, VideoConfig
from lumos.sequence.text import train_text_tokenizer
from lumos.sequence.vocabulary import small_vocabulary
from tests.toy_model import save_generator, toy_generator, toy_tokenizer

# the same examples every time, no files left behind, no clock
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, max_examples=25)
settings.load_profile("repeatable")
# small tensors: threads that wait for each other would take most of the time
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for another machine fails; processes of one machine may talk to each other."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("localhost", "127.0.0.1", "::1"):
            raise RuntimeError(f"a test tried to reach {host}; tests need no network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture(scope="session")
def random_model() -> Generator:
    """A model of 128x128 videos that knows nothing, as small as can be."""
    tokenizer = toy_tokenizer((4, 4, 4))
    captions = [prompt.text for prompt in (*benchmark(), *one_object(8))]
    text = train_text_tokenizer([*captions, "a dog and a fox on the beach"], 200)
    vocabulary = small_vocabulary(text.size, tokenizer.codebook_size)
    shape = ModelConfig(vocabulary.size, layers=1, width=32, heads=1, kv_heads=1, head_width=32, ffn=32)
    model = Transformer(shape)
    model.initialise(torch.Generator().manual_seed(1))
    video = VideoConfig(height=128, width=128, frames=17, fps=8, slots=64, window=5, latest=8)
    config = FolderConfig(shape, vocabulary, video, SamplerConfig(steps=1, guidance=1.0))
    return Generator(config, model.requires_grad_(False), text, tokenizer, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session", autouse=True)
def small_weights(random_folder: Path) -> Iterator[None]:
    """The weights in the package are small random ones, but for what other processes load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lumos.weights.PRETRAINED", random_folder.parent)
        yield


@pytest.fixture(scope="session")
def random_folder(random_model: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_generator(tmp_path_factory.mktemp("weights") / PACKAGED, random_model)


@pytest.fixture(scope="session")
def toy() -> Generator:
    return toy_generator(slots=12)


@pytest.fixture(scope="session")
def sub_toy() -> Generator:
    """Its 16 codes are two sub-codes of 4 each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lumos.sequence.vocabulary.MOST_ROWS", 8)
        return toy_generator(slots=40, levels=(4, 4))
