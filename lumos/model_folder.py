"""A model folder: decoder, text vocabulary and visual tokenizer together, saved and loaded as one.

Folder: config.json and model.safetensors (the decoder), text_tokenizer.json, tokenizer/ (the visual tokenizer, same form).
Nothing else is needed to use it, and nothing in it can run code.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from lumos.diffusion.sampler import SamplerConfig
from lumos.model.transformer import ModelConfig, Transformer
from lumos.sequence.prompt_template import check_text
from lumos.sequence.text import TextTokenizer
from lumos.sequence.vocabulary import LUMOS, Vocabulary
from lumos.tokenizer.cosmos import CosmosTokenizer, save_cosmos
from lumos.tokenizer.load import load_any_tokenizer
from lumos.tokenizer.model import VideoTokenizer, save_tokenizer
from lumos.weights import FORMAT, check_names, find_weights, load_folder, read_config, save_folder

TEXT_FILE = "text_tokenizer.json"


@dataclass(frozen=True)
class VideoConfig:
    """What the model was trained on: pixels, frames and their rate; `slots`, ids kept for a prompt with its begin and separator;
    `window`, latent frames that may see each other; `latest`, the last latent frame whose position it has met."""

    height: int
    width: int
    frames: int
    fps: int
    slots: int
    window: int
    latest: int
    template: str = "{caption}"

    def __post_init__(self) -> None:
        if not 1 <= self.window <= self.latest + 1:
            raise ValueError(f"window must be 1 to latest + 1 = {self.latest + 1} latent frames, got {self.window}; change one")


@dataclass(frozen=True)
class FolderConfig:
    """Everything in a model folder's config.json."""

    model: ModelConfig
    vocabulary: Vocabulary
    video: VideoConfig
    sampler: SamplerConfig


def save_model(
    folder: Path,
    config: FolderConfig,
    weights: Mapping[str, Tensor],
    text: TextTokenizer,
    tokenizer: VideoTokenizer | CosmosTokenizer,
) -> None:
    """Write a whole model folder: decoder (bf16), text vocabulary and visual tokenizer. Replaces an existing one at once."""
    tensors = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in weights.items()}
    files = {TEXT_FILE: text.tokenizer.to_str().encode()}
    with TemporaryDirectory() as place:
        if isinstance(tokenizer, CosmosTokenizer):
            save_cosmos(Path(place) / "tokenizer", tokenizer, dtype=torch.bfloat16)
        else:
            save_tokenizer(Path(place) / "tokenizer", tokenizer, dtype=torch.bfloat16)
        files |= {f"tokenizer/{path.name}": path.read_bytes() for path in (Path(place) / "tokenizer").iterdir()}
    save_folder(folder, {"kind": "model", "format": FORMAT, "config": asdict(config)}, tensors, files)


def load_model(name_or_folder: str | Path) -> tuple[FolderConfig, Transformer, TextTokenizer, VideoTokenizer | CosmosTokenizer]:
    """Everything in a model folder (or weights that come with the package, by name), on the CPU, in the stored type.

    Raises FileNotFoundError or ValueError, in one line, for anything that is not a whole model folder.
    """
    folder = find_weights(name_or_folder, "model")
    text, tokenizer = TextTokenizer.from_file(folder / TEXT_FILE), load_any_tokenizer(folder / "tokenizer")
    config, model = load_decoder(folder)
    if config.vocabulary == LUMOS:
        check_text(text)  # the published file may hold other words besides the ids that the model knows
    elif text.size != config.vocabulary.text_size:
        raise ValueError(
            f"{folder} is a model for {config.vocabulary.text_size} text ids, but its text tokenizer has {text.size}; "
            "use the one it was trained with"
        )
    if tokenizer.codebook_size != config.vocabulary.codes:
        raise ValueError(
            f"{folder} is a model for {config.vocabulary.codes} codes, but its tokenizer has {tokenizer.codebook_size}; "
            "use the one it was trained with"
        )
    return config, model, text, tokenizer


def load_decoder(name_or_folder: str | Path) -> tuple[FolderConfig, Transformer]:
    """The decoder of a model folder alone, on the CPU, in the type it is stored in: enough to measure its speed, not to read
    prompts."""
    folder = find_weights(name_or_folder, "model")
    document, tensors = load_folder(folder, "model")
    config = read_config(FolderConfig, document["config"], folder / "config.json")
    with torch.device("meta"):
        model = Transformer(config.model)
    check_names(tensors, model.state_dict(), folder)
    model.make_tables(torch.device("cpu"))
    model.load_state_dict(tensors, assign=True)  # no second copy: a large model is moved to its device as it is
    return config, model
