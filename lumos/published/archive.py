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
from lumos.published.pickles import RefusedPickle, read_pickle

INSTRUCTIONS = """PROTO STOP MARK NONE NEWTRUE NEWFALSE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE BININT BININT1 BININT2 LONG1
BINFLOAT BINUNICODE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL
BINPERSID NEWOBJ REDUCE BUILD"""
# what zipfile, struct and torch raise for damaged files, not all of it on purpose
DAMAGE = (zipfile.BadZipFile, struct.error, EOFError, OSError, RuntimeError, LookupError, TypeError, ValueError, OverflowError)


def read_archive(path: Path) -> dict[str, Tensor]:
    """Every tensor attribute of the archive's modules by its dotted name, on the CPU, in the type it is stored in.

    Raises FileNotFoundError for a missing file; ValueError for one that is truncated, damaged or no TorchScript archive,
    and for one whose data names any class or function but tensors, containers and its own modules.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; download it")
    with path.open("rb") as start:
        check_not_a_pointer(path, start.read(64))
    try:
        with zipfile.ZipFile(path) as file:
            return _Archive(file, path.stat().st_size).tensors()
    except RefusedPickle as error:
        raise ValueError(f"{path} may hold tensors, containers and its own modules, but {error}; do not use it") from None
    except DAMAGE as error:
        raise ValueError(f"{path} is truncated, damaged or no TorchScript archive ({error}); download it again") from error


class _Archive:
    """One open archive. Everything wrong in it is an exception among DAMAGE."""

    def __init__(self, file: zipfile.ZipFile, size: int) -> None:
        self.file, self.bytes_left = file, size
        self.numbers: dict[_Storage, Tensor] = {}
        data = [name for name in file.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(data) != 1:
            raise ValueError(f"it must hold one data.pkl, got {len(data)}")
        self.root = data[0].removesuffix("data.pkl")

    def tensors(self) -> dict[str, Tensor]:
        if f"{self.root}byteorder" in self.file.namelist() and self._read("byteorder") != b"little":
            raise ValueError("it must hold little-endian numbers")
        top = read_pickle(self._read("data.pkl"), set(INSTRUCTIONS.split()), _find, _storage)
        if not isinstance(top, _Module):
            raise ValueError(f"it must hold a module, got {type(top).__name__}")
        tensors = {name: self._tensor(view) for name, view in _named_views(top)}
        if not tensors:
            raise ValueError("it holds no tensors with names; is it frozen?")
        return tensors

    def _tensor(self, view: "_View") -> Tensor:
        storage, offset, size, stride = view
        if storage not in self.numbers:
            content = self._read(f"data/{storage.key}")
            if len(content) != storage.length * storage.dtype.itemsize:
                raise ValueError(f"data/{storage.key} has {len(content)} bytes")
            # a bytearray, because torch warns of memory that it must not write to
            empty = torch.empty(0, dtype=storage.dtype)
            self.numbers[storage] = torch.frombuffer(bytearray(content), dtype=storage.dtype) if content else empty
        return torch.as_strided(self.numbers[storage], size, stride, offset)  # an error beyond the storage's end

    def _read(self, name: str) -> bytes:
        entry = self.file.getinfo(f"{self.root}{name}")
        self.bytes_left -= entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or self.bytes_left < 0:  # a small file could fill the memory
            raise ValueError(f"it must store {name} uncompressed and once")
        return self.file.read(entry)


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

    def __init__(self) -> None:
        raise TypeError("a module cannot be called")

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


def _storage(reference: Any) -> _Storage:
    word, dtype, key, _, count = reference
    if word != "storage" or type(dtype) is not torch.dtype or type(key) is not str or type(count) is not int or count < 0:
        raise TypeError("no description of a tensor's numbers")
    return _Storage(key, dtype, count)


STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Bool")
ITSELF = _Function(lambda value, *rest: value)  # a list, a container with the name of its type, a device
KNOWN: dict[str, Any] = {f"torch.{name}Storage": getattr(torch, name.lower()) for name in STORAGES}
KNOWN |= {"torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8}
KNOWN |= {f"torch.jit._pickle.build_{kind}list": ITSELF for kind in ("int", "double", "bool", "tensor")}
KNOWN |= {"torch.jit._pickle.restore_type_tag": ITSELF, "torch.device": ITSELF}
KNOWN |= {"torch._utils._rebuild_tensor_v2": _Function(_view), "collections.OrderedDict": _Function(dict)}


def _find(name: str) -> Any:
    if name.startswith("__torch__."):  # script modules and classes of the archive's own code
        return _Module
    if name not in KNOWN:
        raise RefusedPickle(f"names {name:.80}, which could run code")
    return KNOWN[name]


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
