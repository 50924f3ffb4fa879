"""Records of the authors' pre-tokenisation (one pickle a sample) -> Parquet shards: codes, text ids, size, rate, source.

The pickles are read as data by an interpreter of their few harmless instructions: dictionaries, lists, text and numbers;
one that names a class or function is refused. Every record must be rebuilt exactly by our own layout, or nothing is written.
"""

import pickletools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumos.data.shards import COSMOS, TOKENS, pack_codes, unpack_codes, write_parquet
from lumos.sequence.layout import Grid, content_ids, pack, unpack
from lumos.sequence.prompt_template import fill_numbers, said_frames
from lumos.sequence.vocabulary import LUMOS, OPEN_FPS, OPEN_FRAMES

FINGERPRINT = COSMOS  # the tokenizer that made the codes
IGNORED_LABEL = -100
GROUP = 64  # records written at once
GROUPS = 64  # in a file
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Record:
    """One sample. `text`: prompt ids, complete; `text_open`: the same with the numbers of frames and of frames a second left
    open, for a part of the video (`sequence/prompt_template.py:fill_numbers`). `frames`: what `text` says."""

    codes_THW: Tensor
    text: tuple[int, ...]
    text_open: tuple[int, ...]
    seconds: int
    fps: int
    frames: int
    source: str
    tokenizer: str = FINGERPRINT


def import_tokens(files: Sequence[Path], out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Write a folder of Parquet shards from pickled records (a folder stands for every .pkl in it) and tell what is in it.

    Raises FileNotFoundError or ValueError, in one line and with nothing written, for a file that holds anything but one
    whole sample of the published form. progress: called with (files done, all).
    """
    paths = _paths(files)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} must be a new or empty folder, got one that holds something; choose another")
    beside = next(folder for folder in out.absolute().parents if folder.is_dir())  # so that a failure leaves no new folder
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=beside))
    partial = temporary / out.name
    partial.mkdir()
    counts = {"videos": 0, "images": 0, "codes": 0}

    def records() -> Iterator[Record]:
        for number, path in enumerate(paths, 1):
            record = read_record(path)
            counts["images" if len(record.codes_THW) == 1 else "videos"] += 1
            counts["codes"] += record.codes_THW.numel()
            if progress:
                progress(number, len(paths))
            yield record

    try:
        stream, schema = records(), _schema()
        for number, first in enumerate(range(0, len(paths), GROUP * GROUPS)):
            last = min(first + GROUP * GROUPS, len(paths))
            groups = ([_row(record) for record in islice(stream, GROUP)] for _ in range(first, last, GROUP))
            write_parquet(partial / f"{number:06}.parquet", schema, groups)
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"shards": str(out), **counts}


def read_record(path: Path) -> Record:
    """One pickled record -> a checked sample. Raises ValueError naming the file and what is wrong with it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the .pkl files of a pre-tokenised data set, or their folder")
    try:
        value = read_plain_pickle(path.read_bytes())
        return _record(value, path.name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_shard(path: Path) -> Iterator[Record]:
    """The records of one Parquet shard, in order."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                yield Record(
                    unpack_codes(row["codes"], row["T"], row["H"], row["W"]),
                    tuple(row["text"]),
                    tuple(row["text_open"]),
                    *(row[name] for name in ("seconds", "fps", "frames", "source", "tokenizer")),
                )


def read_plain_pickle(content: bytes) -> Any:
    """The value of a pickle made of dict, list, str, int and float alone. ValueError for any other instruction.

    Nothing is looked up or called: every instruction that is understood is written out below.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    try:
        for instruction, argument, _ in pickletools.genops(content):
            if instruction.name == "STOP":
                (value,) = stack
                return value
            _execute(instruction.name, argument, stack, marks, memo)
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise ValueError(f"the file must be a whole pickle, it is damaged ({type(error).__name__}); copy it again") from error
    except ValueError as error:
        if isinstance(error, Refused):
            raise
        raise ValueError(f"the file must be a whole pickle, it is not ({error}); copy it again") from error
    raise ValueError("the file must be a whole pickle, it ends too early; copy it again")


class Refused(ValueError):
    """A pickle that is more than data."""


def _execute(name: str, argument: Any, stack: list[Any], marks: list[int], memo: dict[int, Any]) -> None:
    """One instruction of the pickle machine."""
    match name:
        case _ if name in NUMBERS_AND_TEXT and type(argument) in (int, float, str):
            stack.append(argument)
        case "PROTO" | "FRAME":
            pass
        case "MARK":
            marks.append(len(stack))
        case "EMPTY_DICT":
            stack.append({})
        case "EMPTY_LIST":
            stack.append([])
        case "DICT":
            stack.append(_pairs(_since_mark(stack, marks)))
        case "LIST":
            stack.append(_since_mark(stack, marks))
        case "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        case "APPENDS":
            items = _since_mark(stack, marks)
            stack[-1].extend(items)
        case "SETITEM":
            item, key = stack.pop(), stack.pop()
            stack[-1][key] = item
        case "SETITEMS":
            items = _since_mark(stack, marks)
            stack[-1].update(_pairs(items))
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "PUT" | "BINPUT" | "LONG_BINPUT":
            memo[argument] = stack[-1]
        case "GET" | "BINGET" | "LONG_BINGET":
            stack.append(memo[argument])
        case "GLOBAL" | "INST" | "STACK_GLOBAL":
            what = ".".join(map(str, stack[-2:])) if argument is None else str(argument).replace(" ", ".")
            raise Refused(f"{ONLY}, this one names {what:.80}, which could run code; do not open it with anything")
        case _:
            raise Refused(f"{ONLY}, this one holds the instruction {name}; is this another data set?")


ONLY = "a record's pickle must be made of dict, list, str, int and float"
NUMBERS_AND_TEXT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}


def _since_mark(stack: list[Any], marks: list[int]) -> list[Any]:
    start = marks.pop()
    items = stack[start:]
    del stack[start:]
    return items


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _record(value: Any, name: str) -> Record:
    if not isinstance(value, dict) or "token" not in value or not set(value) <= {"token", "label", "id"}:
        found = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"a record must be a dict of token, label and id, got {found:.80}; is this another data set?")
    ids, labels = value["token"], value.get("label")
    _check_ids(ids, LUMOS.size, "token", 0)
    if labels is not None:
        _check_ids(labels, LUMOS.size, "label", IGNORED_LABEL)
        if len(labels) != len(ids) or any(label not in (i, IGNORED_LABEL) for i, label in zip(ids, labels, strict=True)):
            raise ValueError(f"every label must be its token or {IGNORED_LABEL}, they are not; the record is damaged")
    if not isinstance(value.get("id", 0), int | str):
        raise ValueError("id must be a number or a name, it is not; is this another data set?")
    try:
        text, codes_THW, seconds, fps = unpack(LUMOS, ids)
    except (IndexError, ValueError) as error:
        raise ValueError(f"token must be one whole sample of the published form, it is not ({error}); copy it again") from None
    if rebuild(text, codes_THW, seconds, fps) != ids:
        raise ValueError("token must be one whole sample of the published form, but its layout is another; copy it again")
    return _complete(text, codes_THW, seconds, fps, f"{name}:{value.get('id', 0)}")


def rebuild(text: Sequence[int], codes_THW: Tensor, seconds: int, fps: int) -> list[int]:
    """The ids of one sample as our layout writes them."""
    row = [LUMOS.begin, *text, LUMOS.separator]
    grid = Grid(*codes_THW.shape[1:])
    content_BTHW = content_ids(LUMOS, codes_THW[None])
    batch = pack(LUMOS, grid, torch.tensor([row]), torch.tensor([len(row)]), content_BTHW, seconds, fps, tail=True)
    ids: list[int] = batch.ids_BL[0].tolist()
    return ids


def _complete(text: list[int], codes_THW: Tensor, seconds: int, fps: int, source: str) -> Record:
    holes = [i for i in text if i in (OPEN_FRAMES, OPEN_FPS)]
    if sorted(holes) not in ([], [OPEN_FRAMES, OPEN_FPS]):
        raise ValueError(f"the prompt must leave each of its two numbers open once, or none, got {len(holes)}; copy it again")
    beyond = [i for i in text if i >= LUMOS.text_size and i not in holes]
    if beyond:
        raise ValueError(f"text ids must be below {LUMOS.text_size}, got {beyond[0]}; is this another vocabulary?")
    frames = said_frames(len(codes_THW), seconds, fps)
    filled = fill_numbers(text, frames, fps)
    return Record(codes_THW, tuple(filled), tuple(text), seconds, fps, frames, source)


def _check_ids(ids: Any, size: int, name: str, least: int) -> None:
    if not isinstance(ids, list) or not ids or set(map(type, ids)) != {int}:
        raise ValueError(f"{name} must be a list of whole numbers, it is not; is this another data set?")
    low, high = min(ids), max(ids)
    if low < least or high >= size:
        raise ValueError(
            f"{name} must hold ids up to {size - 1}, got {low if low < least else high}; is this another vocabulary?"
        )


def _paths(files: Sequence[Path]) -> list[Path]:
    paths = [path for given in files for path in (sorted(given.rglob("*.pkl")) if given.is_dir() else [given])]
    if not paths:
        raise ValueError("give at least one .pkl file of a pre-tokenised data set, or a folder that holds some; got none")
    return paths


def _schema() -> Any:
    import pyarrow

    number, ids = pyarrow.int32(), pyarrow.list_(pyarrow.int32())
    columns = {"codes": pyarrow.binary(), "T": number, "H": number, "W": number, "text": ids, "text_open": ids}
    columns |= {"seconds": number, "fps": number, "frames": number, "source": pyarrow.string(), "tokenizer": pyarrow.string()}
    # codes: T * H * W numbers of two bytes, little end first
    return pyarrow.schema(list(columns.items()), metadata={"format": TOKENS, "codes": "uint16 little-endian, T H W"})


def _row(record: Record) -> dict[str, Any]:
    names = ("seconds", "fps", "frames", "source", "tokenizer")
    row: dict[str, Any] = {"codes": pack_codes(record.codes_THW), **dict(zip("THW", record.codes_THW.shape, strict=True))}
    row |= {"text": list(record.text), "text_open": list(record.text_open)}
    return row | {name: getattr(record, name) for name in names}
