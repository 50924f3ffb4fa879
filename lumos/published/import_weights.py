"""A released Lumos-1 checkpoint (a Hugging Face folder) -> a model folder, and back; likewise the Cosmos tokenizer.

Config, names, shapes and types are checked against each other before anything is written; then tensors are read, joined
and written one by one. Only JSON and safetensors are read here: nothing in a checkpoint can run code.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lumos.diffusion.sampler import SamplerConfig
from lumos.model.transformer import ModelConfig
from lumos.model_folder import TEXT_FILE, FolderConfig, VideoConfig
from lumos.published.official import (
    IGNORED_PREFIX,
    config_from_official,
    config_to_official,
    official_names,
    official_shapes,
    to_official,
)
from lumos.sequence.prompt_template import SIZES, TEMPLATE, check_text, crops
from lumos.sequence.text import TextTokenizer
from lumos.sequence.vocabulary import LUMOS
from lumos.weights import CONFIG, FORMAT, TENSORS, TYPES, Deferred, find_weights, load_folder, read_config, save_folder, some_of

INDEX = "model.safetensors.index.json"
ARCHIVES = ("encoder.jit", "decoder.jit", "autoencoder.jit")
FLOATS = {TYPES[dtype]: dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Stored:
    """Where one released tensor lies, and what it is."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]


def import_weights(
    source: Path,
    out: Path,
    text: Path | None = None,
    cosmos: Path | None = None,
    size: tuple[int, int] = SIZES[-1],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a model folder from a released checkpoint, its numbers unchanged; tells what was written.

    text: the published text_tokenizer.json (also found in `source`); cosmos: a folder with the tokenizer's .jit archives,
    or one imported before. Without them the folder holds the decoder alone and the two can be added by another import.
    size: (width, height) that the model makes unless asked otherwise. progress: called with (parameters done, all).
    A `source` that holds the tokenizer's archives becomes a tokenizer folder.

    Raises FileNotFoundError or ValueError, in one line and with nothing written, for anything but a whole checkpoint.
    """
    if source.resolve() == out.resolve():
        raise ValueError(f"the folder to write must be another one than the checkpoint, got {out} for both; choose a new one")
    if _holds_archives(source):
        if text or cosmos:
            raise ValueError(f"{source} is a Cosmos tokenizer, which takes no other files, got {text or cosmos}; leave it out")
        _import_cosmos(source, out)
        return {"weights": str(out), "kind": "tokenizer"}
    _check_size(size)
    config, stored = read_checkpoint(source)
    files = _text_files(source, text)
    tensors = _ours(config, stored, progress)
    folder = FolderConfig(config, LUMOS, _video(size), SamplerConfig(steps=50, guidance=15.0, history=0.7, sampler="released"))
    header = {"kind": "model", "format": FORMAT, "config": asdict(folder)}
    with TemporaryDirectory() as place:
        if cosmos is not None:
            files |= _tokenizer_files(cosmos, Path(place) / "tokenizer")
        save_folder(out, header, tensors, files)
    return {
        "weights": str(out),
        "kind": "model",
        "parameters": sum(torch.Size(tensor.shape).numel() for tensor in tensors.values()),
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        "size": f"{size[0]}x{size[1]}",
        "has": ["decoder", *(["text_tokenizer"] if TEXT_FILE in files else []), *(["tokenizer"] if cosmos else [])],
    }


def export_weights(folder: Path, out: Path) -> None:
    """The decoder of a model folder as a checkpoint of the released form: config.json and model.safetensors."""
    folder = find_weights(folder, "model")
    document, tensors = load_folder(folder, "model")
    config = read_config(FolderConfig, document["config"], folder / CONFIG).model
    save_folder(out, config_to_official(config), dict(to_official(config, tensors.__getitem__)))


def read_checkpoint(source: Path) -> tuple[ModelConfig, dict[str, Stored]]:
    """Config and whereabouts of every tensor of a released checkpoint, all of it checked; no tensor is read."""
    where = source / CONFIG
    config = config_from_official(_json(where), where)
    if config.vocabulary != LUMOS.size:
        raise ValueError(
            f"{where}: vocab_size must be {LUMOS.size} for a Lumos-1 model, got {config.vocabulary}; use its own checkpoint"
        )
    stored = _stored(source)
    layers = len({name.split(".")[2] for name in stored if name.startswith("model.layers.")})
    if config.layers != layers:
        raise ValueError(
            f"{where}: num_hidden_layers is {config.layers}, but the tensors have {layers}; use files that belong together"
        )
    expected = official_shapes(config)
    missing, unknown = [name for name in expected if name not in stored], [name for name in stored if name not in expected]
    if missing or unknown:
        parts = ([f"lacks {some_of(missing)}"] if missing else []) + ([f"has the unknown {some_of(unknown)}"] if unknown else [])
        raise ValueError(f"{source} is no whole Lumos-1 checkpoint: it {' and '.join(parts)}; copy it again, or use another one")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise ValueError(
                f"{source}: {name} must have shape {list(shape)} by {CONFIG}, got {list(stored[name].shape)}; "
                "use files that belong together"
            )
    return config, stored


def _ours(config: ModelConfig, stored: Mapping[str, Stored], progress: Progress | None) -> dict[str, Deferred]:
    """Our parameters, each read from one or several released tensors when its turn comes."""
    names = official_names(config)
    done = 0

    def read(theirs: tuple[str, ...]) -> Tensor:
        nonlocal done
        parts = [_read(name, stored[name]) for name in theirs]
        done += 1
        if progress:
            progress(done, len(names))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    tensors = {}
    for ours, theirs in names.items():
        parts = [stored[name] for name in theirs]
        if len({part.dtype for part in parts}) > 1:
            raise ValueError(f"{', '.join(theirs)} must be of one type to be joined; use a checkpoint of one type")
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        tensors[ours] = Deferred(parts[0].dtype, shape, partial(read, theirs))
    return tensors


def _read(name: str, entry: Stored) -> Tensor:
    # The file is opened anew for every tensor: what is mapped into memory is given back when the tensor is.
    try:
        with safe_open(entry.file, framework="pt", device="cpu") as file:
            tensor: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{entry.file} changed while it was read ({error}); import it again") from error
    return tensor


def _stored(source: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint folder but an ignored tokenizer's, from the headers of its files alone."""
    if (source / TENSORS).is_file():
        return _header(source / TENSORS)
    places = _index(source)
    stored: dict[str, Stored] = {}
    for path in [source / name for name in sorted(set(places.values()))]:
        for name, entry in _header(path).items():
            if places.get(name) != path.name:
                raise ValueError(f"{path} holds {name}, which {INDEX} says is elsewhere; copy the whole checkpoint again")
            stored[name] = entry
    lost = [name for name in places if name not in stored and not name.startswith(IGNORED_PREFIX)]
    if lost:
        raise ValueError(f"{source / places[lost[0]]} lacks {some_of(lost)}, which {INDEX} promises; copy it again")
    return stored


def _index(source: Path) -> dict[str, str]:
    path = source / INDEX
    if not path.is_file():
        others = sorted(file.name for file in source.glob("*") if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        found = f", got {some_of(others)}, which could run code" if others else ""
        raise ValueError(f"{source} must hold {TENSORS}, or {INDEX} and the files it names{found}; copy those of the checkpoint")
    places = _json(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{path} must hold a weight_map from tensor names to file names; copy it again")
    for name in set(places.values()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{path} must name .safetensors files beside it, got {name!r}; copy it again")
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source / name} is missing, which {INDEX} names; copy the whole checkpoint")
    return places


def _header(path: Path) -> dict[str, Stored]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or is no safetensors file ({error}); copy it again") from error
    ours = {name: entry for name, entry in found.items() if not name.startswith(IGNORED_PREFIX)}
    for name, (dtype, _) in ours.items():
        if dtype not in FLOATS:
            raise ValueError(f"{path}: {name} must be of type {', '.join(FLOATS)}, got {dtype}; use the released checkpoint")
    return {name: Stored(path, FLOATS[dtype], shape) for name, (dtype, shape) in ours.items()}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the folder of a released checkpoint, with its {CONFIG}")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}; copy it again")
    return values


def _video(size: tuple[int, int]) -> VideoConfig:
    # 25 frames are the 24 of the published models (7 latent frames). The released code keeps the whole past in view and lets
    # positions grow, so window and positions reach as far as the authors' data does: 7 seconds, 22 latent frames.
    width, height = size
    return VideoConfig(height, width, frames=25, fps=12, slots=512, window=22, latest=21, template=TEMPLATE)


def _check_size(size: tuple[int, int]) -> None:
    if not any(size in crops(*reference) for reference in SIZES):
        usual = " or ".join(f"{width}x{height}" for width, height in SIZES)
        raise ValueError(f"size must be one that the models were trained on, got {size[0]}x{size[1]}; use {usual}")


def _text_files(source: Path, text: Path | None) -> dict[str, bytes | Path]:
    path = text or source / TEXT_FILE
    if text is None and not path.is_file():
        return {}
    check_text(TextTokenizer.from_file(path))
    return {TEXT_FILE: path}


def _tokenizer_files(cosmos: Path, place: Path) -> dict[str, bytes | Path]:
    folder = place
    if _holds_archives(cosmos):
        _import_cosmos(cosmos, place)
    else:
        folder = find_weights(cosmos, "tokenizer")
    return {f"tokenizer/{path.name}": path for path in folder.iterdir() if path.is_file()}


def _holds_archives(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ARCHIVES)


def _import_cosmos(folder: Path, out: Path) -> None:
    from lumos.published.cosmos import import_cosmos

    import_cosmos(folder, out)
