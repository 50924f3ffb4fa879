"""A model folder: decoder, text vocabulary and visual tokenizer together, saved and loaded as one.

Folder: config.json and model.safetensors (the decoder), text_tokenizer.json, tokenizer/ (the visual tokenizer, same form).
Nothing else is needed to use it, and nothing in it can run code.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
from torch import Tensor

from lumos.config import Range, Size, read_config
from lumos.diffusion.sampler import SamplerConfig, from_earlier_version
from lumos.model.transformer import ModelConfig, Transformer
from lumos.sequence.prompt_template import PromptReader, check_text
from lumos.sequence.text import WORDS_FILE, TextTokenizer
from lumos.sequence.vocabulary import LUMOS, Vocabulary
from lumos.tokenizer.compression import latent_frames
from lumos.tokenizer.model import VideoTokenizer, load_tokenizer, save_tokenizer
from lumos.weights import CONFIG, FORMAT, check_names, find_weights, load_folder, save_folder

TEXT_FILE = "text_tokenizer.json"


@dataclass(frozen=True)
class VideoConfig:
    """What the model was trained on."""

    height: Size  # pixels
    width: Size  # pixels
    frames: Size  # of a whole clip, 1 + 4k
    fps: Annotated[int, Range(1, 1000)]  # frames per second
    slots: Annotated[int, Range(3, 2**16)]  # ids kept for a prompt with its begin and separator
    window: Size  # latent frames that may see each other
    latest: Annotated[int, Range(0, 2**18)]  # the last latent frame whose position it has met
    template: str = "{caption}"  # the text around a prompt
    # frames per latent frame: its tokenizer's
    temporal: Annotated[int, Range(1, 64)] = field(default=4, metadata={"later": True})
    spatial: Annotated[int, Range(1, 256)] = field(default=8, metadata={"later": True})  # pixels per code: its tokenizer's

    def __post_init__(self) -> None:
        latent_frames(self.frames, self.temporal)  # 1 + 4k, or a ValueError
        if not 1 <= self.window <= self.latest + 1:
            raise ValueError(f"window must be 1 to latest + 1 = {self.latest + 1} latent frames, got {self.window}; change one")
        try:
            self.template.format(width=0, height=0, frames=0, fps=0, caption="")
        except (LookupError, ValueError, AttributeError) as error:
            raise ValueError(f"template may name width, height, frames, fps and caption, got {self.template!r}") from error


@dataclass(frozen=True)
class FolderConfig:
    """Everything in a model folder's config.json."""

    model: ModelConfig
    vocabulary: Vocabulary
    video: VideoConfig
    sampler: SamplerConfig


def prompt_reader(text: TextTokenizer, video: VideoConfig) -> PromptReader:
    """What reads a model's prompts: two of its slots are begin and separator."""
    return PromptReader(text, video.template, video.slots - 2, video.frames, video.fps, video.temporal)


def save_model(
    folder: Path, config: FolderConfig, weights: Mapping[str, Tensor], text: TextTokenizer, tokenizer: VideoTokenizer
) -> None:
    """Write a whole model folder: decoder (bf16), text vocabulary and visual tokenizer. Replaces an existing one at once."""
    tensors = ((name, tensor.to(torch.bfloat16)) for name, tensor in weights.items())
    header = {"kind": "model", "format": FORMAT, "config": asdict(config)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".") as place:
        save_tokenizer(Path(place) / "tokenizer", tokenizer, dtype=torch.bfloat16)
        files = tokenizer_files(Path(place) / "tokenizer")
        words = {WORDS_FILE: "\n".join(sorted(text.words)).encode()} if text.words else {}
        save_folder(folder, header, tensors, {TEXT_FILE: text.tokenizer.to_str().encode(), **words, **files})


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """The files of a tokenizer's folder as they are called inside a model's folder."""
    return {f"tokenizer/{path.name}": path for path in folder.iterdir() if path.is_file()}


def load_model(
    name_or_folder: str | Path, device: str | torch.device = "cpu"
) -> tuple[FolderConfig, Transformer, TextTokenizer, VideoTokenizer]:
    """Everything in a model folder or weights of that name: the decoder on the device in the type it is stored in, the
    tokenizer in float32 on the CPU. FileNotFoundError or ValueError, in one line, for anything but a whole model folder.
    """
    folder = find_weights(name_or_folder, "model")
    text, tokenizer = TextTokenizer.from_file(folder / TEXT_FILE), load_tokenizer(folder / "tokenizer")
    config, model = load_decoder(folder, device)
    if config.vocabulary == LUMOS:
        check_text(text)  # the published file may hold other words besides the ids that the model knows
    elif text.size != config.vocabulary.text_size:
        raise ValueError(f"{folder} is for {config.vocabulary.text_size} text ids, its {TEXT_FILE} has {text.size}; use its own")
    expected = (config.vocabulary.codes, config.video.temporal, config.video.spatial)
    found = (tokenizer.codebook_size, tokenizer.temporal, tokenizer.spatial)
    if found != expected:
        form = "{} codes for {} frames of {n}x{n} pixels"
        rule = f"{folder} needs a tokenizer with {form.format(*expected, n=expected[2])}"
        raise ValueError(f"{rule}, got one with {form.format(*found, n=found[2])}; use its own")
    return config, model, text, tokenizer


def load_decoder(name_or_folder: str | Path, device: str | torch.device = "cpu") -> tuple[FolderConfig, Transformer]:
    """The decoder of a model folder alone: enough to measure its speed, not to read prompts."""
    folder = find_weights(name_or_folder, "model")
    values, tensors = load_folder(folder, "model", device)
    config = read_config(FolderConfig, from_earlier_version(values), folder / CONFIG)
    with torch.device("meta"):
        model = Transformer(config.model)
    check_names(tensors, model.state_dict(), folder)
    model.make_tables(torch.device(device))
    model.load_state_dict(tensors, assign=True)  # no second copy
    return config, model
