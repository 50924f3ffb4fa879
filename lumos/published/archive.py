"""The tensors of a TorchScript archive, read as data: a .jit file goes in, parameter and buffer names -> tensors come out.

Such a file is a zip with the module tree in data.pkl, one entry of raw numbers for every tensor, and program code. The code is
never opened, and in data.pkl only containers, modules (as plain records) and tensors may occur.
"""

import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lumos.config import check_not_a_pointer
from lumos.published.pickles import DataUnpickler, RefusedPickle, read_pickle

# what zipfile, struct and torch raise for damaged files, not all of it on purpose
DAMAGE = (zipfile.BadZipFile, struct.error, EOFError, OSError, RuntimeError, LookupError, TypeError, ValueError, OverflowError)


def read_archive(path: Path) -> dict[str, Tensor]:
    """Every tensor attribute of the archive's modules by its dotted name, on the CPU, in the type it is stored in.

    Raises FileNotFoundError for a missing file; ValueError for one that is truncated, damaged or no TorchScript archive,
    and for one whose data names any class or function but tensors, containers and its own modules.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; download it")
    check_not_a_pointer(path)
    try:
        with zipfile.ZipFile(path) as file:
            return _tensors(file, path.stat().st_size)
    except RefusedPickle as error:
        raise ValueError(f"{path} may hold tensors, containers and its own modules, but {error}; do not use it") from None
    except DAMAGE as error:
        raise ValueError(f"{path} is truncated, damaged or no TorchScript archive ({error}); download it again") from error


def _tensors(file: zipfile.ZipFile, size: int) -> dict[str, Tensor]:
    roots = [name.removesuffix("data.pkl") for name in file.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise ValueError(f"it must hold one data.pkl, got {len(roots)}")
    entries = {entry.filename.removeprefix(roots[0]): entry for entry in file.infolist()}
    wanted = [entry for name, entry in entries.items() if name in ("data.pkl", "byteorder") or name.startswith("data/")]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in wanted) or sum(entry.file_size for entry in wanted) > size:
        raise ValueError("it must store its numbers uncompressed and once")  # a small file could fill the memory
    if "byteorder" in entries and file.read(entries["byteorder"]) != b"little":
        raise ValueError("it must hold little-endian numbers")
    top = read_pickle(file.read(entries["data.pkl"]), _ModuleUnpickler)
    if not isinstance(top, _Module):
        raise ValueError(f"it must hold a module, got {type(top).__name__}")
    contents: dict[str, bytearray] = {}  # bytearrays, because torch warns of memory that it must not write to
    tensors: dict[str, Tensor] = {}
    for name, ((key, dtype, count), offset, shape, stride) in _named_views(top):
        if key not in contents:
            contents[key] = bytearray(file.read(entries[f"data/{key}"]))
        if len(contents[key]) != count * dtype.itemsize:
            raise ValueError(f"data/{key} has {len(contents[key])} bytes")
        numbers = torch.frombuffer(contents[key], dtype=dtype) if count else torch.empty(0, dtype=dtype)
        tensors[name] = torch.as_strided(numbers, shape, stride, offset)  # an error beyond the storage's end
    if not tensors:
        raise ValueError("it holds no tensors with names; is it frozen?")
    return tensors


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    length: int


class _View(NamedTuple):
    """A tensor, not read yet."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Module:
    """A module or an object of the archive's own code: its attributes and nothing else."""

    __slots__ = ("attributes",)

    def __setstate__(self, attributes: Any) -> None:
        self.attributes = attributes if isinstance(attributes, dict) else {}


class _Function:
    """What may be called; unlike a plain function, a pickle cannot change it."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run

    def __call__(self, *arguments: Any) -> Any:
        return self.run(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise TypeError("a function has no state")


def _view(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _View:
    if type(storage) is not _Storage or type(size) is not tuple or type(stride) is not tuple:
        raise TypeError("no description of a tensor")
    return _View(storage, offset, size, stride)


STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Bool")
ITSELF = _Function(lambda value, *rest: value)  # a list, a container with the name of its type, a device
KNOWN: dict[str, Any] = {f"torch.{name}Storage": getattr(torch, name.lower()) for name in STORAGES}
KNOWN |= {"torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8}
KNOWN |= {f"torch.jit._pickle.build_{kind}list": ITSELF for kind in ("int", "double", "bool", "tensor")}
KNOWN |= {"torch.jit._pickle.restore_type_tag": ITSELF, "torch.device": ITSELF}
KNOWN |= {"torch._utils._rebuild_tensor_v2": _Function(_view), "collections.OrderedDict": _Function(dict)}


class _ModuleUnpickler(DataUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):  # script modules and classes of the archive's own code
            return _Module
        return KNOWN.get(f"{module}.{name}") or super().find_class(module, name)

    def persistent_load(self, reference: Any) -> _Storage:
        word, dtype, key, _, count = reference
        if word != "storage" or type(dtype) is not torch.dtype or type(key) is not str or type(count) is not int or count < 0:
            raise TypeError("no description of a tensor's numbers")
        return _Storage(key, dtype, count)


def _named_views(top: _Module) -> Iterator[tuple[str, _View]]:
    """Every module is visited once, so that a made-up tree that contains itself ends too."""
    seen, waiting = {id(top)}, [("", top)]
    while waiting:
        prefix, module = waiting.pop()
        for name, value in getattr(module, "attributes", {}).items():
            if isinstance(value, _View):
                yield f"{prefix}{name:s}", value
            elif isinstance(value, _Module) and id(value) not in seen:
                seen.add(id(value))
                waiting.append((f"{prefix}{name:s}.", value))
