"""A folder with config.json and model.safetensors is a model (or a tokenizer): save it, find it, load it.

In go a config as plain JSON values and named tensors; out come the same, checked. Saving is whole or nothing, loading
tells what is wrong with a damaged folder in one line, and nothing in a folder can run code: JSON and safetensors only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lumos.files import flush

T = TypeVar("T")
Kind = Literal["model", "tokenizer"]

FORMAT = 1
CONFIG = "config.json"
TENSORS = "model.safetensors"
PRETRAINED = Path(__file__).parent / "pretrained"
# types a weights file may hold, as safetensors calls them
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclasses.dataclass(frozen=True)
class Deferred:
    """A tensor that is read when its turn to be written has come, so that a large model is never in memory as a whole."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def find_weights(name_or_folder: str | Path, kind: Kind) -> Path:
    """The folder of a weights name (`tiny`) or the folder itself, checked to hold the asked kind.

    Asked for a tokenizer, a model's folder stands for the tokenizer inside it. Raises FileNotFoundError for a name or
    folder that does not exist, and ValueError for a folder that is no model or of the other kind.
    """
    text = str(name_or_folder)
    folder = PRETRAINED / text if text in pretrained_names() else Path(text)
    if not folder.exists():
        known = ", ".join(pretrained_names()) or "none in this installation"
        raise FileNotFoundError(
            f"no weights named {text!r} and no such folder; use one of {known}, or a folder that holds {CONFIG} and {TENSORS}"
        )
    if kind == "tokenizer" and _read_json(folder).get("kind") == "model":
        folder = folder / "tokenizer"
    _check_header(_read_json(folder), kind, folder)
    return folder


def pretrained_names() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))


def save_folder(
    folder: Path, config: dict[str, Any], tensors: Mapping[str, Tensor | Deferred], files: Mapping[str, bytes | Path] = {}
) -> None:
    """Write config.json, model.safetensors and `files` (relative path -> content, or a file to copy): whole or nothing.

    All of it is written to a hidden sibling, flushed to the disk, then renamed into place, so that a kill at any moment
    leaves the old folder or the new one. An existing folder is replaced when it holds nothing but files that are
    written again and weights folders of their own (a model's tokenizer/), which stay; otherwise FileExistsError.
    Tensors may live on any device, and are written one by one. Raises OSError when the disk is full.
    """
    contents: dict[str, bytes | Path | None] = {CONFIG: _json_bytes(config), TENSORS: None}
    for name, file in files.items():
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or name in contents:
            raise ValueError(f"a file of a weights folder needs a relative path of its own, got {name!r}; rename it")
        contents[inside.as_posix()] = file
    folder = Path(os.path.abspath(folder))
    recover(folder)
    kept = [path for path in _inner_folders(folder) if not any(name.startswith(f"{path.name}/") for name in contents)]
    _check_replaceable(folder, set(contents), kept)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    previous = folder.with_name(f".{folder.name}.previous")
    for leftover in (partial, previous):  # of a save that was killed: deleted unless something else lies in it
        _check_replaceable(leftover, set(contents), _inner_folders(leftover))
        _remove(leftover)
    try:
        partial.mkdir()
        for name, content in contents.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                _write_tensors(path, tensors)
            elif isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_bytes(content)
        for inner in kept:
            shutil.copytree(inner, partial / inner.name)
        _flush_all(partial)
        _put_in_place(partial, folder)
    finally:
        _remove(partial)


def load_folder(folder: Path, kind: Kind | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read config.json and model.safetensors: (config, name -> tensor on the CPU).

    With `kind`, config.json must be exactly {"kind": kind, "format": 1, "config": {...}}. Raises FileNotFoundError for a
    missing folder or file, ValueError for anything unreadable, truncated, edited or of the wrong kind.
    """
    folder = Path(folder)
    recover(folder)
    config = _read_json(folder)
    if kind is not None:
        _check_header(config, kind, folder)
    return config, read_tensors(folder / TENSORS)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, on the CPU; its checksum is verified where `save_folder` wrote one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the whole weights folder again")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            checksum = (file.metadata() or {}).get("sha256")
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or is no safetensors file ({error}); copy or train it again") from error
    if checksum is not None and checksum != _digest(tensors):
        raise ValueError(f"{path} was edited or damaged: its checksum does not match; copy or train it again")
    return tensors


def check_names(tensors: Mapping[str, Tensor], module_state: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise ValueError unless `tensors` has exactly the names and shapes of `module_state` (a state_dict)."""
    missing = [name for name in module_state if name not in tensors]
    unexpected = [name for name in tensors if name not in module_state]
    if missing or unexpected:
        parts = [f"lacks {some_of(missing)}"] if missing else []
        parts += [f"has the unknown {some_of(unexpected)}"] if unexpected else []
        raise ValueError(f"{where} does not fit its config: it {' and '.join(parts)}; use the config it was saved with")
    for name, expected in module_state.items():
        if tensors[name].shape != expected.shape:
            raise ValueError(
                f"{where}: {name} must have shape {list(expected.shape)} by its config, got {list(tensors[name].shape)}; "
                "use the config it was saved with"
            )


def read_config(kind: type[T], values: Mapping[str, Any], where: str | Path) -> T:
    """Build the (nested) dataclass `kind` from plain JSON values, strictly.

    Every field must be there (but those that later versions added, `metadata={"later": True}`), with a value of its type
    (bool, int, float, str, Literal, tuple, Optional, dataclass; an int is taken for a float), and nothing else. Raises
    ValueError naming the field, its value and `where`.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must hold an object with the fields of {kind.__name__}, got {values!r}; see the docs")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    later = [field.name for field in dataclasses.fields(kind) if field.metadata.get("later")]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise ValueError(f"{where} has an unknown field {name!r}; remove it, known fields: {', '.join(names)}")
    for name in names:
        if name not in values and name not in later:
            raise ValueError(f"{where} lacks the field {name!r} of {kind.__name__}; add it, or use the file it was saved with")
    arguments = {name: _read_value(hints[name], values[name], f"{where}: {name}") for name in names if name in values}
    try:
        return kind(**arguments)
    except ValueError as error:  # a rule of the dataclass itself, from its __post_init__
        raise ValueError(f"{where}: {error}") from error


def some_of(names: list[str]) -> str:
    """The first three names and how many more there are, for an error."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def recover(folder: Path) -> None:
    """Put back the old folder when a save was killed between its two renames."""
    previous = folder.with_name(f".{folder.name}.previous")
    if not folder.exists() and (previous / CONFIG).is_file():
        with suppress(FileNotFoundError):  # another process was faster
            previous.rename(folder)


def _read_value(kind: Any, value: Any, where: str) -> Any:
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return read_config(typing.cast(type, kind), value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        kinds = [choice for choice in choices if choice is not type(None)]
        assert len(kinds) == 1, f"{where}: a config field may be one type or None, not {kind}"
        return _read_value(kinds[0], value, where)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise ValueError(f"{where} must be one of {', '.join(map(str, choices))}, got {value!r}; correct it")
        return value
    if origin is tuple:
        return _read_tuple(choices, value, where)
    assert kind in (bool, int, float, str), f"{where}: a config field cannot be of type {kind}"
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} must be of type {kind.__name__}, got {value!r}; correct it")
    return value


def _read_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} must be a list, got {value!r}; correct it")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where} must have {len(kinds)} items, got {len(value)}; correct it")
    return tuple(_read_value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _read_json(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}; check the path")
    path = folder / CONFIG
    if not folder.is_dir() or not path.is_file():
        raise ValueError(f"{folder} is no weights folder: it has no {CONFIG}; give a folder that holds {CONFIG} and {TENSORS}")
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:  # also bytes that are no text
        raise ValueError(f"{path} is not readable JSON ({error}); copy it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}; copy it again")
    return config


def _check_header(config: dict[str, Any], kind: Kind, folder: Path) -> None:
    path = folder / CONFIG
    for name in ("kind", "format", "config"):
        if name not in config:
            raise ValueError(f"{path} lacks the field {name!r}; use a folder that lumos saved")
    for name in config:
        if name not in ("kind", "format", "config"):
            raise ValueError(f"{path} has an unknown field {name!r}; remove it, known fields: kind, format, config")
    if config["kind"] != kind:
        raise ValueError(f"{folder} must hold a {kind}, but its kind is {config['kind']!r}; give the folder of a {kind}")
    if config["format"] != FORMAT:
        raise ValueError(f"{path} must have format {FORMAT}, got {config['format']!r}; use a newer lumos or save it again")


def _inner_folders(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob(f"*/{CONFIG}") if (path.parent / TENSORS).is_file()]


def _check_replaceable(folder: Path, names: set[str], kept: list[Path]) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder; choose another name")
    files = [path for path in folder.rglob("*") if not path.is_dir() and not any(path.is_relative_to(inner) for inner in kept)]
    others = sorted({path.relative_to(folder).as_posix() for path in files} - names)
    if others:
        raise FileExistsError(f"saving to {folder} would delete {some_of(others)} in it; choose another folder")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor | Deferred]) -> None:
    """A safetensors file (length of the header, header in JSON, contents), holding one tensor in memory at a time."""
    places: dict[str, tuple[int, int]] = {}
    size = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):  # keeps every tensor aligned
        end = size + math.prod(tensors[name].shape) * tensors[name].dtype.itemsize
        places[name], size = (size, end), end
    first = len(_tensors_header(tensors, places, "0" * 64))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for name in sorted(tensors):  # the order of `_digest`
            entry = tensors[name]
            tensor = entry.read() if isinstance(entry, Deferred) else entry.detach()
            assert (tensor.dtype, tuple(tensor.shape)) == (entry.dtype, tuple(entry.shape)), f"{name} is not as promised"
            tensor = tensor.cpu().contiguous()
            _add_to(digest, name, tensor)
            file.seek(first + places[name][0])
            file.write(_bytes_of(tensor))
            del tensor  # before the next one is read
        file.seek(0)
        file.write(_tensors_header(tensors, places, digest.hexdigest()))


def _tensors_header(tensors: Mapping[str, Tensor | Deferred], places: Mapping[str, tuple[int, int]], checksum: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "sha256": checksum}}
    for name, place in places.items():
        if tensors[name].dtype not in TYPES:
            raise ValueError(
                f"{name} must have one of the types {', '.join(TYPES.values())}, got {tensors[name].dtype}; convert it"
            )
        header[name] = {"dtype": TYPES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": list(place)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A checksum over names, types, shapes and contents: safetensors itself does not notice a changed number."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        _add_to(digest, name, tensors[name])
    return digest.hexdigest()


def _add_to(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(_bytes_of(tensor))


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _put_in_place(partial: Path, folder: Path) -> None:
    previous = folder.with_name(f".{folder.name}.previous")
    if folder.exists():
        folder.rename(previous)  # a folder with content cannot be renamed over; `recover` undoes this after a kill
    try:
        partial.rename(folder)
    except OSError:
        recover(folder)
        raise
    flush(folder.parent)
    _remove(previous)


def _flush_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _json_bytes(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()
