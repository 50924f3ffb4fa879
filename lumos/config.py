"""Settings files: JSON -> frozen dataclasses, strictly.

Every field must be there, of its type and inside its range, and nothing else. Whatever is wrong is a ValueError of one line that
names the file, the field and its value.
"""

import dataclasses
import json
import reprlib
import types
import typing
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

C = TypeVar("C")

LARGEST_NUMBER = 2**63  # of a number without a range of its own
LONGEST_LIST = 10_000  # items
LFS_POINTER = b"version https://git-lfs"
PACKAGED = "box"  # name of the weights in the package: a folder of lumos/pretrained


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, both allowed: `width: Annotated[int, Range(1, 4096)]`."""

    least: float
    most: float


Count = Annotated[int, Range(1, 1024)]  # layers, blocks, heads: more would take minutes to build
Size = Annotated[int, Range(1, 2**18)]  # widths and vocabularies
Scale = Annotated[float, Range(1e-30, 1e30)]  # factors above zero
Whole = Annotated[int, Range(1, 10**9)]  # steps, batches, processes
Share = Annotated[float, Range(0, 1)]
SomeShare = Annotated[float, Range(1e-6, 1)]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. FileNotFoundError when there is none, ValueError for anything else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the whole folder again")
    check_not_a_pointer(path)
    return read_object(path.read_bytes(), path)


def read_object(content: str | bytes, where: str | Path) -> dict[str, Any]:
    """A JSON object. ValueError for anything else, and for one, or one inside it, with two values of one name."""
    try:
        values = json.loads(content, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # also bytes that are no text, and brackets without end
        raise ValueError(f"{where} is not readable JSON ({error}); copy or write it again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(values).__name__}")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        ((twice, count),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"a name must stand once in an object, got {reprlib.repr(twice)} {count} times; keep one")
    return values


def check_not_a_pointer(path: Path) -> None:
    """ValueError when a file is what Git LFS leaves in a clone in place of a large file."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{path} is a Git LFS pointer, not the file itself; run git lfs pull")


def read_config(kind: type[C], values: Any, where: str | Path) -> C:
    """Build the (nested) dataclass `kind` from plain JSON values.

    Every field must be there, but those that later versions added (`metadata={"later": True}`). Types: bool, int, float, str,
    Literal, tuple, Mapping, Optional, dataclass, and Annotated: numbers with a Range (an int is taken for a float), names with a
    Literal that only running code can list.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must hold an object with the fields of {kind.__name__}, got {reprlib.repr(values)}")
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ValueError(f"{where} has an unknown field {reprlib.repr(name)}; remove it, known fields: {', '.join(fields)}")
    for name, field in fields.items():
        if name not in values and not field.metadata.get("later"):
            raise ValueError(f"{where} lacks the field {name!r} of {kind.__name__}; add it, or use the file it was saved with")
    arguments = {name: read_value(hints[name], values[name], f"{where}: {name}") for name in fields if name in values}
    try:
        return kind(**arguments)
    except ValueError as error:  # a rule of the dataclass itself, from its __post_init__
        raise ValueError(f"{where}: {error}") from error


def read_value(kind: Any, value: Any, where: str) -> Any:
    """One JSON value as the type of a config's field."""
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return read_config(typing.cast(type, kind), value, where)
    if origin in (typing.Union, types.UnionType):  # of a type and None
        return None if value is None else read_value(choices[0], value, where)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise ValueError(f"{where} must be one of {', '.join(map(str, choices))}, got {reprlib.repr(value)}")
        return value
    if origin is tuple:
        return _read_tuple(choices, value, where)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, got {reprlib.repr(value)}")
        return {name: read_value(choices[1], item, f"{where}[{name!r}]") for name, item in value.items()}
    kind, limits = choices if origin is Annotated else (kind, Range(-LARGEST_NUMBER, LARGEST_NUMBER))
    if typing.get_origin(limits) is Literal:
        return read_value(limits, value, where)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{where} must be of type {kind.__name__}, got {reprlib.repr(value)}")
    if kind in (int, float) and not limits.least <= value <= limits.most:  # also false for NaN
        raise ValueError(f"{where} must be {limits.least:g} to {limits.most:g}, got {reprlib.repr(value)}")
    return kind(value)


def _read_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or len(value) > LONGEST_LIST:
        raise ValueError(f"{where} must be a list of at most {LONGEST_LIST} items, got {reprlib.repr(value)}")
    if kinds[1:] == (Ellipsis,):
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where} must have {len(kinds)} items, got {len(value)}")
    return tuple(read_value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))
