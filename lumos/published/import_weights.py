"""A released Lumos-1 checkpoint (a Hugging Face folder) -> a model folder; likewise the Cosmos tokenizer.

Config, names, shapes and types are checked against each other before anything is written; then tensors are read, joined and
written bit by bit. Only JSON and safetensors are read here: nothing in a checkpoint can run code.
"""

from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from lumos.diffusion.sampler import SamplerConfig
from lumos.model_folder import TEXT_FILE, FolderConfig, VideoConfig, tokenizer_files
from lumos.published.cosmos import holds_archives, import_cosmos
from lumos.published.official import FLOATS, from_official, official_shapes, read_checkpoint
from lumos.sequence.prompt_template import SIZES, TEMPLATE, check_text, crops
from lumos.sequence.text import TextTokenizer
from lumos.sequence.vocabulary import LUMOS
from lumos.weights import FORMAT, check_finite, find_weights, opened, save_folder


def import_weights(
    source: Path,
    out: Path,
    text: Path | None = None,
    cosmos: Path | None = None,
    size: tuple[int, int] = SIZES[-1],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a model folder from a released checkpoint, its numbers unchanged; tells what was written.

    text: the published text_tokenizer.json (also found in `source`); cosmos: a folder with the tokenizer's .jit archives,
    or one imported before. Without them the folder holds the decoder alone and the two can be added by another import.
    size: (width, height) that the model makes unless asked otherwise. progress: called with (tensors begun, all).
    A `source` that holds the tokenizer's archives becomes a tokenizer folder.

    Raises FileNotFoundError or ValueError, in one line and with nothing written, for anything but a whole checkpoint.
    """
    if source.resolve() == out.resolve():
        raise ValueError(f"the folder to write must be another one than the checkpoint, got {out} for both; choose a new one")
    if holds_archives(source):
        if text or cosmos:
            raise ValueError(f"{source} is a Cosmos tokenizer, which takes no other files, got {text or cosmos}; leave it out")
        import_cosmos(source, out)
        return {"weights": str(out), "kind": "tokenizer"}
    if not any(size in crops(*reference) for reference in SIZES):
        usual = " or ".join(f"{width}x{height}" for width, height in SIZES)
        raise ValueError(f"size must be one that the models were trained on, got {size[0]}x{size[1]}; use {usual}")
    config, stored = read_checkpoint(source)
    files: dict[str, bytes | Path] = {}
    if text is not None or (source / TEXT_FILE).is_file():
        files[TEXT_FILE] = text or source / TEXT_FILE
        check_text(TextTokenizer.from_file(text or source / TEXT_FILE))
    # 25 frames are the 24 of the published models (7 latent frames). The released code keeps the whole past in view and lets
    # positions grow, so window and positions reach as far as the authors' data does: 7 seconds, 22 latent frames.
    video = VideoConfig(size[1], size[0], frames=25, fps=12, slots=512, window=22, latest=21, template=TEMPLATE)
    folder = FolderConfig(config, LUMOS, video, SamplerConfig(steps=50, guidance=15.0, history=0.7, sampler="released"))
    done = count(1)

    def read(name: str) -> Tensor:
        if progress:
            progress(next(done), len(stored))
        return _read_tensor(name, stored[name].file)

    with TemporaryDirectory() as place:
        if cosmos is not None and holds_archives(cosmos):
            import_cosmos(cosmos, Path(place) / "tokenizer")
            cosmos = Path(place) / "tokenizer"
        if cosmos is not None:
            files |= tokenizer_files(find_weights(cosmos, "tokenizer"))
        header = {"kind": "model", "format": FORMAT, "config": asdict(folder)}
        save_folder(out, header, from_official(config, read), files)
    return {
        "weights": str(out),
        "kind": "model",
        "parameters": sum(torch.Size(shape).numel() for shape in official_shapes(config).values()),
        "dtype": FLOATS[stored["lm_head.weight"].dtype],
        "size": f"{size[0]}x{size[1]}",
        "has": ["decoder", *(["text_tokenizer"] if TEXT_FILE in files else []), *(["tokenizer"] if cosmos else [])],
    }


def _read_tensor(name: str, path: Path) -> Tensor:
    with opened(path) as file:  # anew for every tensor: what is mapped into memory is given back when the tensor is
        tensor: Tensor = file.get_tensor(name)
    check_finite(tensor, f"{path}: {name}")
    return tensor
