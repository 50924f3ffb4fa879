"""Records of the authors' pre-tokenisation (one pickle per sample) -> Parquet shards: codes, text ids, size, rate, source.

The pickles are read as data: dictionaries, lists, text and numbers; one that names a class or function is refused. Every record
must be rebuilt exactly by our own layout, or nothing is written.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumos.data.shards import COSMOS, GROUP_ROWS, TOKENS, clip_schema, pack_codes, write_parquet
from lumos.files import partial_of
from lumos.published.pickles import RefusedPickle, read_pickle
from lumos.sequence.layout import Grid, content_ids, pack, unpack
from lumos.sequence.prompt_template import fill_numbers, said_frames
from lumos.sequence.vocabulary import LUMOS, OPEN_FPS, OPEN_FRAMES

IGNORED = -100  # a label that training skips
GROUPS = 64  # in a file
COLUMNS = ("codes", "T", "H", "W", "text", "text_open", "seconds", "fps", "frames", "source", "tokenizer")


def import_tokens(files: Sequence[Path], out: Path, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Write a folder of Parquet shards from pickled records (a folder stands for every .pkl in it) and tell what is in it.

    Raises FileNotFoundError or ValueError, in one line and with nothing written, for a file that holds anything but one
    whole sample of the published form. progress: called with (files done, all).
    """
    paths = [path for given in files for path in (sorted(given.rglob("*.pkl")) if given.is_dir() else [given])]
    if not paths:
        raise ValueError("give at least one .pkl file of a pre-tokenised data set, or a folder that holds some; got none")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} must be a new or empty folder, got one that holds something; choose another")
    beside = next(folder for folder in out.absolute().parents if folder.is_dir())  # so that a failure leaves no new folder
    partial = partial_of(beside / out.name)
    partial.mkdir()
    counts = {"videos": 0, "images": 0, "codes": 0}

    def rows() -> Iterator[dict[str, Any]]:
        for number, path in enumerate(paths, 1):
            row = read_record(path)
            counts["images" if row["T"] == 1 else "videos"] += 1
            counts["codes"] += row["T"] * row["H"] * row["W"]
            if progress:
                progress(number, len(paths))
            yield row

    try:
        stream, schema = rows(), clip_schema(COLUMNS).with_metadata({"format": TOKENS})
        groups = iter(lambda: list(islice(stream, GROUP_ROWS)), [])
        for number in range(-(-len(paths) // (GROUP_ROWS * GROUPS))):
            write_parquet(partial / f"{number:06}.parquet", schema, islice(groups, GROUPS))
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"shards": str(out), **counts}


def read_record(path: Path) -> dict[str, Any]:
    """One pickled record -> a row of a shard. Raises ValueError naming the file and what is wrong with it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the .pkl files of a pre-tokenised data set, or their folder")
    try:
        return _as_row(read_pickle(path.read_bytes()), path.name)
    except RefusedPickle as error:
        raise ValueError(f"{path} must be made of dict, list, str, int and float, but it {error}; do not open it") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _as_row(record: Any, file: str) -> dict[str, Any]:
    if not isinstance(record, dict) or "token" not in record or not set(record) <= {"token", "label", "id"}:
        found = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"a record must be a dict of token, label and id, got {found:.80}; is this another data set?")
    ids, number = record["token"], record.get("id", 0)
    labels = ids if record.get("label") is None else record["label"]
    if not isinstance(ids, list) or set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= LUMOS.size:
        raise ValueError(f"token must be a list of ids, 0 to {LUMOS.size - 1}, it is not; is this another data set?")
    if not isinstance(labels, list) or [i if label == IGNORED else label for label, i in zip_longest(labels, ids)] != ids:
        raise ValueError(f"label must be a list of each token or {IGNORED}, it is not; the record is damaged")
    if not isinstance(number, int | str):
        raise ValueError("id must be a number or a name, it is not; is this another data set?")
    try:
        text, codes_THW, seconds, fps = unpack(LUMOS, ids)
    except (IndexError, ValueError) as error:
        raise ValueError(f"token must be one whole sample of the published form, it is not ({error})") from None
    if rebuild(text, codes_THW, seconds, fps) != ids:
        raise ValueError("token must be one whole sample of the published form, but its layout is another")
    holes = sorted(i for i in text if i in (OPEN_FRAMES, OPEN_FPS))
    if holes not in ([], [OPEN_FRAMES, OPEN_FPS]):
        raise ValueError(f"the prompt must leave each of its two numbers open once, or none, got {len(holes)}")
    if beyond := [i for i in text if i >= LUMOS.text_size and i not in holes]:
        raise ValueError(f"text ids must be below {LUMOS.text_size}, got {beyond[0]}; is this another vocabulary?")
    frames = said_frames(len(codes_THW), seconds, fps)
    row = {"codes": pack_codes(codes_THW), **dict(zip("THW", codes_THW.shape, strict=True)), "text_open": text}
    row |= {"text": fill_numbers(text, frames, fps), "seconds": seconds, "fps": fps, "frames": frames}
    return row | {"source": f"{file}:{number}", "tokenizer": COSMOS}


def rebuild(text: Sequence[int], codes_THW: Tensor, seconds: int, fps: int) -> list[int]:
    """The ids of one sample as our layout writes them."""
    row = [LUMOS.begin, *text, LUMOS.separator]
    grid, content_BTHW = Grid(*codes_THW.shape[1:]), content_ids(LUMOS, codes_THW[None])
    batch = pack(LUMOS, grid, torch.tensor([row]), torch.tensor([len(row)]), content_BTHW, seconds, fps, tail=True)
    ids: list[int] = batch.ids_BL[0].tolist()
    return ids
