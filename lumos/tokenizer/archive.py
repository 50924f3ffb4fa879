"""The tensors of a TorchScript archive, read as data: a .jit file goes in, parameter and buffer names -> tensors come out.

Such a file is a zip with the module tree in data.pkl, one entry of raw numbers for every tensor, and program code.
Nothing is executed: the code is never opened, and data.pkl is not unpickled but interpreted here, by the few
instructions that build containers, modules as plain records, and tensors. Everything else in it is an error.
"""

import math
import pickletools
import zipfile
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
LISTS = {f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")}
TENSOR = "torch._utils._rebuild_tensor_v2"
TYPED = "torch.jit._pickle.restore_type_tag"  # a container and the name of its type
DICT = "collections.OrderedDict"
MODULES = "__torch__."  # a script module or a class of its code: a record of attributes here
CONSTANTS = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "NONE": lambda: None}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "NEWTRUE", "NEWFALSE"}


def read_archive(path: Path) -> dict[str, Tensor]:
    """Every tensor attribute of the archive's modules by its dotted name, on the CPU, in the type it is stored in.

    Raises FileNotFoundError for a missing file; ValueError for one that is truncated, damaged or no TorchScript archive,
    and for one whose data names any class or function but tensors, containers and its own modules.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; download it")
    try:
        with zipfile.ZipFile(path) as file:
            module = _Reader(path, file).module()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{path} is truncated, damaged or no TorchScript archive ({error}); download it again") from error
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors, path, depth=0)
    return tensors


@dataclass(frozen=True)
class _Name:
    """A class or function that the data names: nothing but its name."""

    text: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    count: int


@dataclass(eq=False)
class _Record:
    attributes: dict[str, Any] = field(default_factory=dict)


class _Reader:
    """One open archive."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self.file = path, file
        entries = file.infolist()
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError(f"{path} must store its entries uncompressed, as torch.jit.save does; download it again")
        roots = [entry.filename[: -len("data.pkl")] for entry in entries if entry.filename.count("/") == 1]
        roots = [root for entry, root in zip(entries, roots, strict=False) if f"{root}data.pkl" in file.NameToInfo]
        if not roots:
            raise ValueError(f"{path} is no TorchScript archive: it holds no data.pkl; give a .jit file")
        self.root = roots[0]
        self.tensors: dict[str, Tensor] = {}

    def module(self) -> _Record:
        """The module at the top of data.pkl."""
        if f"{self.root}byteorder" in self.file.NameToInfo and self.file.read(f"{self.root}byteorder") != b"little":
            raise ValueError(f"{self.path} must hold little-endian numbers; save it again on an ordinary machine")
        try:
            top = self._interpret(self.file.read(f"{self.root}data.pkl"))
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path} is damaged: its data.pkl makes no sense ({error!r}); download it again") from error
        if not isinstance(top, _Record):
            raise ValueError(f"{self.path} must hold a TorchScript module, got a {type(top).__name__}; give a .jit file")
        return top
