"""Records of the authors' pre-tokenisation (one pickle a sample) -> Parquet shards: codes, text ids, size, rate, source.

The pickles are read as data: dictionaries, lists, text and numbers; one that names a class or function is refused. Every record
must be rebuilt exactly by our own layout, or nothing is written.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumos.data.shards import COSMOS, TOKENS, pack_codes, write_parquet
from lumos.files import partial_of
from lumos.published.pickles import RefusedPickle, read_pickle
from lumos.sequence.layout import Grid, content_ids, pack, unpack
from lumos.sequence.prompt_template import fill_numbers, said_frames
from lumos.sequence.vocabulary import LUMOS, OPEN_FPS, OPEN_FRAMES

FINGERPRINT = COSMOS  # the tokenizer that made the codes
DATA = """PROTO FRAME STOP MARK EMPTY_DICT EMPTY_LIST DICT LIST APPEND APPENDS SETITEM SETITEMS MEMOIZE PUT BINPUT LONG_BINPUT
GET BINGET LONG_BINGET INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE
BINUNICODE8"""
IGNORED_LABEL = -100
GROUP = 64  # records written at once
GROUPS = 64  # in a file


@dataclass(frozen=True)
class Sample:
    """One record, checked."""

    codes_THW: Tensor
    text: tuple[int, ...]  # prompt ids, complete
    text_open: tuple[int, ...]  # the same with the numbers of frames and of frames per second left open, for a part of the video
    seconds: int
    fps: int
    frames: int  # what `text` says
    source: str  # file and id
    tokenizer: str = FINGERPRINT


def import_tokens(files: Sequence[Path], out: Path, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Write a folder of Parquet shards from pickled records (a folder stands for every .pkl in it) and tell what is in it.

    Raises FileNotFoundError or ValueError, in one line and with nothing written, for a file that holds anything but one
    whole sample of the published form. progress: called with (files done, all).
    """
    paths = _paths(files)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} must be a new or empty folder, got one that holds something; choose another")
    beside = next(folder for folder in out.absolute().parents if folder.is_dir())  # so that a failure leaves no new folder
    partial = partial_of(beside / out.name)
    partial.mkdir()
    counts = {"videos": 0, "images": 0, "codes": 0}

    def records() -> Iterator[Sample]:
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
            groups = ([_as_row(record) for record in islice(stream, GROUP)] for _ in range(first, last, GROUP))
            write_parquet(partial / f"{number:06}.parquet", schema, groups)
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"shards": str(out), **counts}


def read_record(path: Path) -> Sample:
    """One pickled record -> a checked sample. Raises ValueError naming the file and what is wrong with it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the .pkl files of a pre-tokenised data set, or their folder")
    try:
        return _record(read_pickle(path.read_bytes(), set(DATA.split())), path.name)
    except RefusedPickle as error:
        raise ValueError(f"{path} must be made of dict, list, str, int and float, but it {error}; do not open it") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _record(value: Any, name: str) -> Sample:
    if not isinstance(value, dict) or "token" not in value or not set(value) <= {"token", "label", "id"}:
        found = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"a record must be a dict of token, label and id, got {found:.80}; is this another data set?")
    ids, labels, number = value["token"], value.get("label"), value.get("id", 0)
    _check_ids(ids, "token", 0)
    if labels is not None:
        _check_ids(labels, "label", IGNORED_LABEL)
        if len(labels) != len(ids) or any(label not in (i, IGNORED_LABEL) for i, label in zip(ids, labels, strict=True)):
            raise ValueError(f"every label must be its token or {IGNORED_LABEL}, they are not; the record is damaged")
    if not isinstance(number, int | str):
        raise ValueError("id must be a number or a name, it is not; is this another data set?")
    try:
        text, codes_THW, seconds, fps = unpack(LUMOS, ids)
    except (IndexError, ValueError) as error:
        raise ValueError(f"token must be one whole sample of the published form, it is not ({error})") from None
    if rebuild(text, codes_THW, seconds, fps) != ids:
        raise ValueError("token must be one whole sample of the published form, but its layout is another")
    holes = [i for i in text if i in (OPEN_FRAMES, OPEN_FPS)]
    if sorted(holes) not in ([], [OPEN_FRAMES, OPEN_FPS]):
        raise ValueError(f"the prompt must leave each of its two numbers open once, or none, got {len(holes)}")
    beyond = [i for i in text if i >= LUMOS.text_size and i not in holes]
    if beyond:
        raise ValueError(f"text ids must be below {LUMOS.text_size}, got {beyond[0]}; is this another vocabulary?")
    frames = said_frames(len(codes_THW), seconds, fps)
    return Sample(codes_THW, tuple(fill_numbers(text, frames, fps)), tuple(text), seconds, fps, frames, f"{name}:{number}")


def rebuild(text: Sequence[int], codes_THW: Tensor, seconds: int, fps: int) -> list[int]:
    """The ids of one sample as our layout writes them."""
    row = [LUMOS.begin, *text, LUMOS.separator]
    grid = Grid(*codes_THW.shape[1:])
    content_BTHW = content_ids(LUMOS, codes_THW[None])
    batch = pack(LUMOS, grid, torch.tensor([row]), torch.tensor([len(row)]), content_BTHW, seconds, fps, tail=True)
    ids: list[int] = batch.ids_BL[0].tolist()
    return ids


def _check_ids(ids: Any, name: str, least: int) -> None:
    if not isinstance(ids, list) or not ids or set(map(type, ids)) != {int}:
        raise ValueError(f"{name} must be a list of whole numbers, it is not; is this another data set?")
    wrong = next((i for i in ids if not least <= i < LUMOS.size), None)
    if wrong is not None:
        raise ValueError(f"{name} must hold ids up to {LUMOS.size - 1}, got {wrong}; is this another vocabulary?")


def _paths(files: Sequence[Path]) -> list[Path]:
    paths = [path for given in files for path in (sorted(given.rglob("*.pkl")) if given.is_dir() else [given])]
    if not paths:
        raise ValueError("give at least one .pkl file of a pre-tokenised data set, or a folder that holds some; got none")
    return paths


def _schema() -> Any:
    import pyarrow

    number, ids, word = pyarrow.int32(), pyarrow.list_(pyarrow.int32()), pyarrow.string()
    columns = {"codes": pyarrow.binary(), "T": number, "H": number, "W": number, "text": ids, "text_open": ids}
    columns |= {"seconds": number, "fps": number, "frames": number, "source": word, "tokenizer": word}
    # codes: T * H * W numbers of two bytes, little end first
    return pyarrow.schema(list(columns.items()), metadata={"format": TOKENS, "codes": "uint16 little-endian, T H W"})


def _as_row(sample: Sample) -> dict[str, Any]:
    row = {name: value for name, value in vars(sample).items() if name != "codes_THW"}
    return row | {"codes": pack_codes(sample.codes_THW), **dict(zip("THW", sample.codes_THW.shape, strict=True))}
