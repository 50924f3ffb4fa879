"""Shards: Parquet files of clips, as codes (to train a model) or as pictures (to train a tokenizer, or to be tokenised later).

A row is one clip with its captions, frame rate and source. Any Parquet reader opens them; a shard appears whole or not at all,
and says in its footer which inputs were rejected while it was made. `open_shards` reads sizes only, and checks that the
shards belong together.
"""

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumos.files import whole_file
from lumos.tokenizer.cosmos import CosmosConfig
from lumos.tokenizer.model import VideoTokenizer
from lumos.weights import fingerprint

CODES, PIXELS, TOKENS = "lumos-clips-1", "lumos-pixels-1", "lumos-tokens-1"  # TOKENS: what import-tokens writes
PREPARED = "prepare.json"  # what `prepare` wrote down of the folder
GROUP_ROWS = 64  # rows read at once
COSMOS = "cosmos-dv4x8x8"  # what import-tokens calls the published tokenizer
# What a column must hold, as the beginning of its Arrow type's name.
NUMBER, TEXT, CONTENT = r"u?int", r"(large_)?string", r"(large_)?binary"
TYPES = {**dict.fromkeys(("T", "H", "W", "F", "height", "width", "frames"), NUMBER), "codes": CONTENT, "picture": CONTENT}
TYPES |= {"source": TEXT, "tokenizer": TEXT, "captions": r"(large_)?list<.*string>", "text": r"(large_)?list<.*int\d+>"}
TYPES |= {"fps": "double|float|int", "start": "double|float", "mirror": "bool", "mirrored": "bool"}


@dataclass(frozen=True)
class ShardIndex:
    """Sizes of every row of a folder of shards, without their contents."""

    folder: str
    files: tuple[str, ...]
    form: str
    tokenizer: str  # its fingerprint, "" for pictures
    fps: float
    sizes_N3: NDArray[np.int64]  # latent frames, rows, columns of codes; of pictures: frames, height, width
    place_N3: NDArray[np.int64]  # number of the file, of its row group, of the row in it
    digest: str  # changes with any change of the files
    frames_N: NDArray[np.int64]  # frames of the clip as a video

    def __len__(self) -> int:
        return len(self.sizes_N3)


def check_tokenizer(index: ShardIndex, tokenizer: VideoTokenizer) -> None:
    """ValueError unless `tokenizer` made the codes of these shards."""
    if index.form == PIXELS:
        raise ValueError(
            f"{index.folder} holds pictures, not codes; tokenise them: lumos prepare {index.folder} NEW --tokenizer ..."
        )
    if index.tokenizer == COSMOS and isinstance(tokenizer.config, CosmosConfig):
        return
    found = fingerprint(tokenizer)
    if index.tokenizer != found:
        raise ValueError(
            f"{index.folder} must be made with this tokenizer ({found}), got shards of another one ({index.tokenizer}); "
            "prepare them again with it, or give theirs with --tokenizer"
        )


def pack_codes(codes_THW: Tensor) -> bytes:
    """Codes as numbers of two bytes, little end first."""
    return codes_THW.to("cpu", torch.int64).numpy().astype("<u2").tobytes()


def unpack_codes(content: bytes, T: int, H: int, W: int, codebook: int = 2**16) -> Tensor:
    """The inverse of `pack_codes`: codes_THW int64. ValueError for codes that a codebook of that size does not have."""
    if len(content) != 2 * T * H * W:
        raise ValueError(f"a clip of {T}x{H}x{W} codes must take {2 * T * H * W} bytes, got {len(content)}; prepare it again")
    codes = np.frombuffer(content, "<u2").astype(np.int64)
    if codes.max() >= codebook:
        raise ValueError(f"codes must be below {codebook}, got {codes.max()}: the shards are of another tokenizer or damaged")
    return torch.from_numpy(codes).view(T, H, W)


def write_parquet(path: Path, schema: Any, groups: Iterable[Sequence[dict[str, Any]]]) -> None:
    """A Parquet file of row groups with checksums, whole or not at all. OSError in words."""
    import pyarrow
    import pyarrow.parquet as parquet

    with (
        whole_file(path) as partial,
        parquet.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for rows in groups:
            writer.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema))


def write_shard(
    path: Path, form: str, tokenizer: str, rows: Sequence[dict[str, Any]], rejected: Sequence[dict[str, Any]]
) -> None:
    """One shard of `prepare`, with what it rejected in its footer (so that both appear together)."""
    groups = [rows[first : first + GROUP_ROWS] for first in range(0, len(rows), GROUP_ROWS)] or [[]]
    metadata = {"format": form, "tokenizer": tokenizer, "rejected": json.dumps(list(rejected))}
    write_parquet(path, clip_schema(form).with_metadata(metadata), groups)


def clip_schema(form: str) -> Any:
    """The columns of a shard. `codes`: T * H * W numbers of two bytes. `picture`: the frames side by side in a WebP file."""
    import pyarrow

    number, text = pyarrow.int32(), pyarrow.string()
    columns = {"picture": pyarrow.binary(), "mirror": pyarrow.bool_()} if form == PIXELS else {"codes": pyarrow.binary()}
    sides = ("F", "height", "width") if form == PIXELS else ("T", "H", "W")
    columns |= dict.fromkeys(sides, number)
    columns |= {"captions": pyarrow.list_(text), "fps": pyarrow.float64(), "frames": number, "source": text}
    columns |= {"start": pyarrow.float64(), "mirrored": pyarrow.bool_(), "tokenizer": text}
    return pyarrow.schema(list(columns.items()))


def shard_summary(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """(clips in a shard, what was rejected while it was made)."""
    with _parquet(None, str(path)) as file:
        return file.metadata.num_rows, json.loads((file.schema_arrow.metadata or {}).get(b"rejected", b"[]"))


def open_shards(folder: str | Path) -> ShardIndex:
    """The index of a folder of shards: local, or any fsspec URL. Reads sizes alone.

    Raises FileNotFoundError for a folder without shards, ValueError for an unfinished one, or shards that do not fit together.
    """
    remote, names, settings = _listed(str(folder))
    forms: set[str] = set()
    facts: set[tuple[str, float]] = set()
    sizes, places = [], []
    for number, name in enumerate(names):
        with _parquet(remote, name) as file:
            form = (file.schema_arrow.metadata or {}).get(b"format", b"").decode("ascii", "replace")
            if form not in (CODES, PIXELS, TOKENS):
                raise ValueError(f"{name} must be a shard that lumos wrote, got another Parquet file; give a folder of shards")
            forms.add(form)
            sides = ["F", "height", "width"] if form == PIXELS else ["T", "H", "W"]
            for group in range(file.num_row_groups):
                table = _columns(file, name, group, [*sides, "frames", "fps", "tokenizer"])
                size_N4 = np.stack([table[column].to_numpy() for column in [*sides, "frames"]], 1).astype(np.int64)
                if (size_N4 < 1).any():
                    raise ValueError(f"{name} must hold clips of at least 1x1x1, got {size_N4.min(0)[:3].tolist()}")
                sizes.append(size_N4)
                rows = np.arange(len(size_N4))
                places.append(np.stack([np.full_like(rows, number), np.full_like(rows, group), rows], 1))
                facts |= set(zip(table["tokenizer"].to_pylist(), table["fps"].to_pylist(), strict=True))
    if not sum(map(len, sizes)):
        raise ValueError(f"{folder} must hold at least one clip, got none; see its rejected.csv")
    tokenizers, rates = {tokenizer for tokenizer, _ in facts}, {fps for _, fps in facts if TOKENS not in forms}
    for what, values in (("one form", forms), ("one tokenizer", tokenizers), ("one frame rate", rates)):
        if len(values) > 1:
            shown = ", ".join(sorted(map(str, values)))
            raise ValueError(f"the shards in {folder} must have {what}, got {shown}; prepare them again, together")
    planned = settings.get("shards", len(names))
    if planned != len(names):
        raise ValueError(f"{folder} must be finished, got {len(names)} of {planned} shards; give the same prepare command again")
    sizes_N4 = np.concatenate(sizes)
    digest = hashlib.sha256(b"".join(part[:, :3].astype("<i4").tobytes() for part in sizes))
    digest.update("".join(sorted(tokenizers)).encode())
    return ShardIndex(
        str(folder),
        tuple(names),
        next(iter(forms)),
        next(iter(tokenizers)),
        float(next(iter(rates), 0.0)),
        sizes_N4[:, :3],
        np.concatenate(places).astype(np.int64),
        digest.hexdigest()[:16],
        sizes_N4[:, 3],
    )


class ByteCache:
    """Values that take at most so many bytes, the least used ones forgotten; may be used by several threads."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self.values: OrderedDict[Any, Any] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of a key, made if it is not there; its `nbytes` count."""
        with self.lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key]
        value = make()
        with self.lock:
            if key not in self.values:
                self.values[key] = value
                self.bytes += value.nbytes
            while self.bytes > self.most and len(self.values) > 1:
                self.bytes -= self.values.popitem(last=False)[1].nbytes
        return value


class ShardReader:
    """Row groups of shards, the latest kept in memory up to `cache_bytes`; may be used by several threads."""

    def __init__(self, index: ShardIndex, columns: Sequence[str], cache_bytes: int = 2**31) -> None:
        self.index, self.columns = index, list(columns)
        self.remote = _listed(index.folder)[0]
        self.groups = ByteCache(cache_bytes)
        self.footers: dict[int, Any] = {}

    def row(self, number: int) -> dict[str, Any]:
        """Row `number` of the index, with the columns asked for."""
        file, group, row = self.index.place_N3[number].tolist()
        table = self.groups.get((file, group), lambda: self._read(file, group))
        return {name: table[name][row].as_py() for name in self.columns}

    def _read(self, file: int, group: int) -> Any:
        name = self.index.files[file]
        with _parquet(self.remote, name, self.footers.get(file)) as opened:
            self.footers[file] = opened.metadata
            return _columns(opened, name, group, self.columns)


def read_settings(folder: str) -> dict[str, Any]:
    """What `prepare` wrote down of a folder of shards; {} for shards of another origin."""
    return _listed(folder)[2]


def _listed(folder: str) -> tuple[Any, list[str], dict[str, Any]]:
    """(file system, None for the local one; Parquet files in it; settings that made them)."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        files, where = fsspec.core.url_to_fs(folder)
        listed = files.ls(where, detail=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no folder {folder}; make it with lumos prepare") from error
    except NotADirectoryError as error:
        raise ValueError(f"{folder} must be a folder of shards, got a file; give the folder") from error
    names = sorted(name for name in listed if name.endswith(".parquet") and not name.rpartition("/")[2].startswith("."))
    if not names:
        raise FileNotFoundError(f"{folder} must hold shards (.parquet), got none; make some with lumos prepare")
    written = next((name for name in listed if name.endswith(f"/{PREPARED}")), None)
    try:
        settings = json.loads(files.cat_file(written)) if written else {}
        if not (isinstance(settings, dict) and isinstance(settings.get("shards", 0), int)):
            raise ValueError("no object with the number of shards")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{written} must be what lumos prepare wrote, got something else ({error})") from error
    return None if isinstance(files, LocalFileSystem) else files, names, settings


@contextmanager
def _parquet(remote: Any, name: str, footer: Any = None) -> Iterator[Any]:
    """An open shard; ValueError where it is damaged.

    Arrow itself opens local files: its threads may outlive Python, so what they free must hold no Python objects.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with (
            nullcontext(name) if remote is None else remote.open(name, "rb") as source,
            parquet.ParquetFile(source, metadata=footer, pre_buffer=False, page_checksum_verification=True) as file,
        ):
            yield file
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{name} is damaged or is no Parquet file ({problem}); delete it and prepare it again") from error


def _columns(file: Any, name: str, group: int, columns: Sequence[str]) -> Any:
    """Columns of a row group as a table; ValueError where one is missing, of another type, or has empty fields."""
    schema = file.schema_arrow
    for column in columns:
        found = str(schema.field(column).type) if column in schema.names else "none"
        if not re.match(TYPES[column], found):
            raise ValueError(f"{name} must have a column {column} as lumos writes it, got {found}; prepare it again")
    table = file.read_row_group(group, columns=list(columns), use_threads=False).combine_chunks()
    for column in columns:
        if table[column].null_count:
            raise ValueError(f"{name} must have a {column} in every row, got empty ones; prepare it again")
    return table
