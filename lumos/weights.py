"""A folder with config.json and model.safetensors is a model (or a tokenizer): save it, find it, load it.

In go a config as plain JSON values and named tensors; out come the same, checked. A large model lies in several files with
an index, named as Hugging Face does it. Saving is whole or nothing; nothing in a folder can run code (JSON and safetensors).
"""

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lumos.config import check_not_a_pointer, read_json
from lumos.files import flush, writing

Kind = Literal["model", "tokenizer"]

FORMAT = 1
CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
WEIGHT_FILES = re.compile(r"model(-\d{5})?(-of-\d{5})?\.safetensors(\.index\.json)?")
PRETRAINED = Path(__file__).parent / "pretrained"
FILE_BYTES = 500_000_000  # of the tensors in a file, about
SUMS = "sums"  # metadata: a checksum for each tensor
SCALE = "/scale"  # after a matrix's name: what its rows of 8-bit numbers are multiplied with


class Stored(NamedTuple):
    """Where a tensor lies, and what the header of its file says of it."""

    file: Path
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]


def find_weights(name_or_folder: str | Path, kind: Kind) -> Path:
    """The folder of weights of the package by their name, or the folder itself, checked to hold the asked kind.

    A run's folder stands for the model or tokenizer inside it, and, asked for a tokenizer, so does a model's folder. Raises
    FileNotFoundError for a name or folder that does not exist, and ValueError for a folder that is no model or of the other kind.
    """
    names = sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))
    folder = PRETRAINED / name_or_folder if str(name_or_folder) in names else Path(name_or_folder)
    _recover(folder)
    if not (folder / CONFIG).is_file():
        folder = next((inside for inside in (folder / "model", folder / kind) if (inside / CONFIG).is_file()), folder)
    if not folder.exists():
        raise FileNotFoundError(
            f"no weights named {str(name_or_folder)!r} and no such folder; "
            f"use one of {', '.join(names)}, or a folder that holds {CONFIG} and {TENSORS}"
        )
    if kind == "tokenizer" and (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("kind") == "model":
        folder = folder / "tokenizer"
    _read_header(folder, kind)
    return folder


def save_folder(
    folder: Path,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    files: Mapping[str, bytes | Path] = {},
) -> None:
    """Write config.json, the tensors and `files` (relative path -> content, or a file to copy): whole or nothing.

    All of it is written to a hidden sibling, flushed to the disk, then renamed into place: a kill at any moment leaves the old
    folder or the new one. FileExistsError where a folder holds anything else than files that are written again. `tensors` may
    be an iterator that reads a large model bit by bit.
    """
    folder = Path(os.path.abspath(folder))
    partial, previous = folder.with_name(f".{folder.name}.partial"), _previous(folder)
    _recover(folder)
    for place in (folder, partial, previous):
        _check_replaceable(place, {CONFIG, *files})
    for leftover in (partial, previous):  # of a save that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with writing(folder):
            partial.mkdir(parents=True)
            (partial / CONFIG).write_bytes((json.dumps(config, indent=2, allow_nan=False) + "\n").encode())
            for name, content in files.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, partial / name)
                else:
                    (partial / name).write_bytes(content)
            _write_tensors(partial, tensors.items() if isinstance(tensors, Mapping) else tensors, is_ours="kind" in config)
            for path in (*partial.rglob("*"), partial):
                flush(path)
            if folder.exists():
                folder.rename(previous)  # a folder with content cannot be renamed over; `_recover` undoes this after a kill
            try:
                partial.rename(folder)
            except OSError:  # a reader has put the old one back in between
                folder.rename(previous)
                partial.rename(folder)
            flush(folder.parent)
            shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_folder(folder: Path, kind: Kind, device: str | torch.device = "cpu") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read config.json and the tensors: (the fields of its config, name -> tensor on the device).

    Raises FileNotFoundError for a missing folder or file, ValueError for anything unreadable, damaged or of the wrong kind.
    """
    _recover(folder)
    config, tensors = _read_header(folder, kind), dict[str, Tensor]()
    for path in dict.fromkeys(entry.file for entry in stored_tensors(folder).values()):
        tensors |= read_tensors(path, device)
    for name in [name for name in tensors if name.endswith(SCALE)]:
        scale, matrix = tensors.pop(name), name.removesuffix(SCALE)
        values = tensors.get(matrix)
        if values is None or values.dtype != torch.int8 or scale.shape != values.shape[:1]:
            raise ValueError(f"{folder} must hold 8-bit numbers for each row of {name}, got others or none; copy it again")
        tensors[matrix] = (values.flatten(1) * scale[:, None]).to(torch.bfloat16).view(values.shape)
    return config, tensors


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder, from the headers of model.safetensors or of the files that its index names."""
    index, places = folder / INDEX, None
    if index.is_file() and not (folder / TENSORS).is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ValueError(f"{index} must hold a weight_map from tensor names to file names; copy it again")
    stored: dict[str, Stored] = {}
    for name in sorted(set(map(str, places.values()))) if places else [TENSORS]:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} must name .safetensors files beside it, got {name!r:.80}; copy it again")
        with opened(path := folder / name) as file:
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  # it is no mapping
            stored |= {key: Stored(path, part.get_dtype(), tuple(part.get_shape())) for key, part in parts.items()}
    if places and (differing := differences(list(stored), list(places))):
        raise ValueError(f"{folder} does not fit its {INDEX}: it {differing}; copy the whole folder again")
    return stored


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors of one safetensors file. ValueError for NaN and infinity, and for changed bits where lumos wrote the file."""
    with opened(path, device) as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in sorted(file.keys())}
        sums = (file.metadata() or {}).get(SUMS)
    for number, (name, tensor) in enumerate(tensors.items()):
        if sums is not None and [_checksum(name, tensor)] != sums.split()[number : number + 1]:
            raise ValueError(f"{path}: {name} was edited or damaged, its checksum does not match; copy or train it again")
        check_finite(tensor, f"{path}: {name}")
        if tensor.device.type == "cpu":  # what stays mapped would change, or end the process, when the file is overwritten
            tensors[name] = tensor.clone()
    return tensors


@contextmanager
def opened(path: Path, device: str | torch.device = "cpu") -> Iterator[Any]:
    """An open safetensors file. FileNotFoundError or ValueError for one that cannot be read."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the whole folder again")
    check_not_a_pointer(path)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or is no safetensors file ({error}); copy it again") from error


def check_finite(tensor: Tensor, what: str) -> None:
    """ValueError for NaN or infinite numbers. One pass at the speed of memory: torch.isfinite is forty times slower."""
    if tensor.is_floating_point() and tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise ValueError(f"{what} holds NaN or infinite numbers; use weights of a run that did not diverge")


def check_names(tensors: Mapping[str, Tensor], module_state: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise ValueError unless `tensors` has exactly the names, shapes and kinds of numbers of `module_state` (a state_dict)."""
    if differing := differences(list(tensors), list(module_state)):
        raise ValueError(f"{where} does not fit its config: it {differing}; use the config it was saved with")
    for name, expected in module_state.items():
        found = tensors[name]
        if found.shape != expected.shape:
            raise ValueError(f"{where}: {name} must have shape {list(expected.shape)} by its config, got {list(found.shape)}")
        if expected.is_floating_point() and (not found.is_floating_point() or found.dtype.itemsize < 2):
            raise ValueError(f"{where}: {name} must hold floating point numbers of 16 bits or more, got {found.dtype}")


def differences(found: list[str], expected: list[str]) -> str:
    """What names are missing or unknown, in words; "" when none are. A prefix that a wrapper left on all of them is named."""
    known, wanted = set(found), set(expected)
    missing, unknown = [name for name in expected if name not in known], [name for name in found if name not in wanted]
    wrapped = [name.removesuffix(missing[0]) for name in unknown if missing and name.endswith(f".{missing[0]}")]
    if wrapped:
        return f"has names that begin with {wrapped[0]!r}, which another program put there; remove that prefix"
    parts = [f"lacks {some_of(missing)}"] if missing else []
    return " and ".join(parts + ([f"has the unknown {some_of(unknown)}"] if unknown else []))


def some_of(names: list[str]) -> str:
    """The first three names and how many more there are, for an error."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def fingerprint(*modules: nn.Module) -> str:
    """Tells weights apart: by config and parameters as bfloat16 (a folder saved in that form holds the same weights)."""
    digest = hashlib.sha256()
    for module in modules:
        config: Any = module.config
        digest.update(getattr(config, "network", type(module).__name__).encode())
        digest.update(json.dumps(asdict(config), sort_keys=True).encode())
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], is_ours: bool) -> None:
    """One file, or several with an index. All that is kept in memory is what the next file holds."""
    batch: dict[str, Tensor] = {}
    files: list[list[str]] = []
    total = 0

    def write() -> None:
        files.append(list(batch))
        sums = " ".join(_checksum(name, batch[name]) for name in sorted(batch))
        # one entry alone: safetensors writes several in random order
        save_file(batch, folder / f"model-{len(files):05}.safetensors", {SUMS: sums} if is_ours else {"format": "pt"})
        batch.clear()

    for name, tensor in tensors:
        batch[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        total += batch[name].nbytes
        del tensor  # before the next one is read
        if sum(held.nbytes for held in batch.values()) >= FILE_BYTES:
            write()
    if batch or not files:
        write()
    places: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors" if len(files) > 1 else TENSORS
        (folder / f"model-{number:05}.safetensors").rename(folder / name)
        shutil.copymode(folder / CONFIG, folder / name)  # safetensors makes files that only their owner can read
        places |= dict.fromkeys(names, name)
    if len(files) > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2), "utf-8")


def _checksum(name: str, tensor: Tensor) -> str:
    """Its description and the sum of its 64-bit words: any changed bit shows, at the speed of memory on any device."""
    raw = tensor.reshape(-1).view(torch.uint8)
    whole = len(raw) // 8 * 8
    words = int(raw[:whole].view(torch.int64).sum()) + int(raw[whole:].sum())
    return f"{(words + zlib.crc32(f'{name} {tensor.dtype} {list(tensor.shape)}'.encode())) % 2**64:x}"


def _read_header(folder: Path, kind: Kind) -> dict[str, Any]:
    """The fields of a folder's config, its kind and format checked."""
    path = folder / CONFIG
    if not path.is_file():
        problem = ValueError if folder.exists() else FileNotFoundError
        raise problem(f"{folder} is no weights folder: it has no {CONFIG}; give a folder that holds {CONFIG} and {TENSORS}")
    header = read_json(path)
    config = header.get("config")
    if set(header) != {"kind", "format", "config"} or not isinstance(config, dict):
        raise ValueError(f"{path} must hold kind, format and the fields of config, got {some_of(sorted(header))}")
    if (header["kind"], header["format"]) != (kind, FORMAT):
        found = f"{header['kind']!r:.40} of format {header['format']!r:.40}"
        raise ValueError(f"{folder} must hold a {kind} of format {FORMAT}, got {found}; name another folder")
    return config


def _check_replaceable(folder: Path, names: set[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder; choose another name")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    others = sorted(name for name in found - names if not WEIGHT_FILES.fullmatch(name))
    if others:
        raise FileExistsError(f"saving to {folder} would delete {some_of(others)} in it; choose another folder")


def _recover(folder: Path) -> None:
    """Put back what a save left that was killed between its two renames: the folder, one that it lies in, or one inside it."""
    for path in (folder.parent, folder, folder / "model", folder / "tokenizer"):
        if not path.exists() and (_previous(path) / CONFIG).is_file():
            with suppress(OSError):  # another process was faster, or nothing may be written here
                _previous(path).rename(path)


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")
