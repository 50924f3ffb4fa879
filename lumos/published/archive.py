"""The tensors of a TorchScript archive, read as data: a .jit file goes in, parameter and buffer names -> tensors come out.

Such a file is a zip with the module tree in data.pkl, one entry of raw numbers for every tensor, and program code.
Nothing is executed: the code is never opened, and data.pkl is not unpickled but interpreted here, by the few
instructions that build containers, modules (as plain records) and tensors. Everything else in it is an error.
"""

import math
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
MODULES = "__torch__."  # script modules and classes of the archive's own code
TENSOR = "torch._utils._rebuild_tensor_v2"
DICT = "collections.OrderedDict"
# these stand for their first argument: a list, a container and the name of its type, a device's name
PLAIN = {f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")}
PLAIN |= {"torch.jit._pickle.restore_type_tag", "torch.device"}
# what zipfile raises for damaged files, not all of it on purpose
ZIP_ERRORS = (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, struct.error)


def read_archive(path: Path) -> dict[str, Tensor]:
    """Every tensor attribute of the archive's modules by its dotted name, on the CPU, in the type it is stored in.

    Raises FileNotFoundError for a missing file; ValueError for one that is truncated, damaged or no TorchScript archive,
    and for one whose data names any class or function but tensors, containers and its own modules.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; download it")
    try:
        file = zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise _damaged(path, error) from error
    with file:
        tensors = dict(_named_tensors(_Reader(path, file).module()))
    if not tensors:
        raise ValueError(f"{path} holds no tensors with names (a frozen archive?); use the archive as it was published")
    return tensors


@dataclass(frozen=True)
class _Name:
    """A class or function that the data names: its name and nothing else."""

    text: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    count: int


@dataclass(eq=False)
class _Record:
    attributes: dict[Any, Any] = field(default_factory=dict)


class _Reader:
    """One open archive."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self.file = path, file
        self.bytes_left = path.stat().st_size
        self.numbers: dict[_Storage, Tensor] = {}
        data = [name for name in file.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(data) != 1:
            raise ValueError(f"{path} is no TorchScript archive: it must hold one data.pkl, got {len(data)}; give a .jit file")
        self.root = data[0].removesuffix("data.pkl")

    def module(self) -> _Record:
        """The module at the top of data.pkl."""
        if f"{self.root}byteorder" in self.file.namelist() and self._read("byteorder") != b"little":
            raise ValueError(f"{self.path} must hold little-endian numbers; save it again on a machine that writes those")
        try:
            top = self._interpret(self._read("data.pkl"))
        except (IndexError, KeyError, TypeError, OverflowError, RuntimeError) as error:  # instructions that do not fit each other
            raise _damaged(self.path, error) from error
        if not isinstance(top, _Record):
            raise ValueError(f"{self.path} must hold a TorchScript module, got {type(top).__name__}; give a .jit file")
        return top

    def _interpret(self, data: bytes) -> object:
        """Run the instructions of data.pkl on a stack, as the pickle machine would, without its power to call anything."""
        stack: list[Any] = []
        marks: list[int] = []
        memory: dict[int, Any] = {}
        for name, value in self._instructions(data):
            match name:
                case "PROTO":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    marks.append(len(stack))
                case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                    stack.append(_constant(name))
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                    stack.append(value)
                case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                    start = marks.pop() if name == "TUPLE" else len(stack) - int(name[-1])
                    stack.append(tuple(_take(stack, start)))
                case "APPEND" | "APPENDS":
                    items = _take(stack, marks.pop() if name == "APPENDS" else -1)
                    _expect(list, stack[-1]).extend(items)
                case "SETITEM" | "SETITEMS":
                    items = _take(stack, marks.pop() if name == "SETITEMS" else -2)
                    _expect(dict, stack[-1]).update(_pairs(items))
                case "BINPUT" | "LONG_BINPUT":
                    memory[value] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memory[value])
                case "GLOBAL":
                    stack.append(self._allowed(value))
                case "BINPERSID":
                    stack.append(_storage(*_expect(tuple, stack.pop())))
                case "NEWOBJ":
                    stack.append(self._new(*_take(stack, -2)))
                case "REDUCE":
                    stack.append(self._call(*_take(stack, -2)))
                case "BUILD":
                    attributes = stack.pop()
                    _expect(_Record, stack[-1]).attributes = attributes if isinstance(attributes, dict) else {}
                case _:
                    raise ValueError(
                        f"{self.path} must be made by torch.jit.save, got the pickle instruction {name}; do not use it"
                    )
        raise AssertionError("pickletools ends with STOP or raises")

    def _instructions(self, data: bytes) -> Iterator[tuple[str, Any]]:
        try:
            for instruction, value, _ in pickletools.genops(data):
                yield instruction.name, value
        except ValueError as error:
            raise _damaged(self.path, error) from error

    def _allowed(self, text: str) -> _Name:
        name = text.replace(" ", ".", 1)
        if name in DTYPES or name in PLAIN or name in (TENSOR, DICT) or name.startswith(MODULES):
            return _Name(name)
        raise ValueError(f"{self.path} may name tensors, containers and its own modules, but names {name}; do not use it")

    def _new(self, kind: _Name, arguments: tuple[Any, ...]) -> _Record:
        if not _expect(_Name, kind).text.startswith(MODULES) or arguments != ():
            raise TypeError(f"{kind} is no module")
        return _Record()

    def _call(self, function: _Name, arguments: tuple[Any, ...]) -> object:
        name = _expect(_Name, function).text
        if name == TENSOR:
            return self._tensor(*arguments[:4])
        if name == DICT and arguments == ():
            return {}
        if name in PLAIN:
            return arguments[0]
        raise TypeError(f"{name} is no function")

    def _tensor(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        if len(size) != len(stride) or any(type(number) is not int or number < 0 for number in (offset, *size, *stride)):
            raise TypeError("no size of a tensor")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= _expect(_Storage, storage).count:
            raise IndexError(f"a tensor of {storage.count} numbers cannot have size {size}")
        return torch.as_strided(self._numbers(storage), size, stride, offset)

    def _numbers(self, storage: _Storage) -> Tensor:
        if storage not in self.numbers:
            content = self._read(f"data/{storage.key}")
            if len(content) != storage.count * storage.dtype.itemsize:
                raise IndexError(f"{storage} has {len(content)} bytes")
            # a bytearray, because torch warns of memory that it must not write to
            self.numbers[storage] = (
                torch.frombuffer(bytearray(content), dtype=storage.dtype) if content else torch.empty(0, dtype=storage.dtype)
            )
        return self.numbers[storage]

    def _read(self, name: str) -> bytes:
        entry = self.file.getinfo(f"{self.root}{name}")
        self.bytes_left -= entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or self.bytes_left < 0:  # a small file could fill the memory
            raise ValueError(f"{self.path} must store {name} uncompressed and once, as torch.jit.save does; download it again")
        try:
            return self.file.read(entry)
        except ZIP_ERRORS as error:
            raise _damaged(self.path, error) from error


def _constant(instruction: str) -> object:
    match instruction:
        case "EMPTY_DICT":
            return {}
        case "EMPTY_LIST":
            return []
        case "EMPTY_TUPLE":
            return ()
    return {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[instruction]


def _take(stack: list[Any], start: int) -> list[Any]:
    if not -len(stack) <= start <= len(stack):
        raise IndexError("too few values")
    items = stack[start:]
    del stack[start:]
    return items


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    if len(items) % 2 or not all(isinstance(key, str | int | float) for key in items[::2]):
        raise TypeError("no keys with values")
    return list(zip(items[::2], items[1::2], strict=True))


def _expect(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__.strip('_')} is needed, got {type(value).__name__}")
    return value


def _storage(word: str, kind: _Name, key: str, device: str, count: int) -> _Storage:
    if word != "storage" or not isinstance(key, str) or type(count) is not int or count < 0:
        raise TypeError("no description of a tensor's numbers")
    return _Storage(key, DTYPES[_expect(_Name, kind).text], count)


def _named_tensors(top: _Record) -> Iterator[tuple[str, Tensor]]:
    """Every module is visited once, so that a made-up tree that contains itself ends too."""
    seen, waiting = {id(top)}, [("", top)]
    while waiting:
        prefix, record = waiting.pop()
        for name, value in record.attributes.items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            elif isinstance(value, _Record) and id(value) not in seen:
                seen.add(id(value))
                waiting.append((f"{prefix}{name}.", value))


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is truncated, damaged or no TorchScript archive ({error}); download it again")
