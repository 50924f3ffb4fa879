"""Shards: Parquet files of clips, as codes (to train a model) or as pictures (to train a tokenizer, or to be tokenised later).

A row is one clip with its captions, frame rate and source. Any Parquet reader opens them; a shard appears whole or not at all,
and says in its footer which inputs were rejected while it was made. `open_shards` reads sizes only, and checks that the
shards belong together.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lumos.config import read_object
from lumos.files import whole_file
from lumos.media.video import LARGEST_SIDE
from lumos.tokenizer.cosmos import CosmosConfig
from lumos.tokenizer.model import VideoTokenizer
from lumos.weights import fingerprint

CODES, PIXELS, TOKENS = "lumos-clips-1", "lumos-pixels-1", "lumos-tokens-1"  # TOKENS: what import-tokens writes
# the columns that hold a clip: its content and its sides
CONTENT = {CODES: ("codes", "T", "H", "W"), TOKENS: ("codes", "T", "H", "W"), PIXELS: ("picture", "F", "height", "width")}
PREPARED = "prepare.json"  # what `prepare` wrote down of the folder
GROUP_ROWS = 64  # rows written, and read, at once
COSMOS = "cosmos-dv4x8x8"  # what import-tokens calls the published tokenizer
QUALITY = 92  # of the WebP pictures in shards


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
    made_by: str = ""  # folder of the tokenizer, as `prepare` wrote it down
    group_bytes: int = 2**20  # of the largest row group

    def __len__(self) -> int:
        return len(self.sizes_N3)

    @property
    def words(self) -> str:
        """The column of a clip's captions, or of the authors' text ids, two numbers left open."""
        return "text_open" if self.form == TOKENS else "captions"


def check_tokenizer(index: ShardIndex, tokenizer: VideoTokenizer) -> None:
    """ValueError unless `tokenizer` made the codes of these shards."""
    if index.form == PIXELS:
        raise ValueError(f"{index.folder} holds pictures, not codes; tokenise them with lumos prepare")
    is_cosmos = isinstance(tokenizer.config, CosmosConfig) and (tokenizer.temporal, tokenizer.spatial) == (4, 8)
    if index.tokenizer == COSMOS and is_cosmos:
        return
    if (found := fingerprint(tokenizer)) != index.tokenizer:
        raise ValueError(f"{index.folder} must be made with this tokenizer ({found}), got another's ({index.tokenizer})")


def code_type(codebook: int) -> np.dtype[Any]:
    """How codes are stored: in two bytes, or four where the codebook has more than 65,536; little end first."""
    return np.dtype("<u2" if codebook <= 2**16 else "<u4")


def pack_codes(codes_THW: Tensor, codebook: int = 2**16) -> bytes:
    """The bytes of codes, all of which are below `codebook`."""
    assert (codes_THW >= 0).all() and (codes_THW < codebook).all()
    return codes_THW.to("cpu", torch.int64).numpy().astype(code_type(codebook)).tobytes()


def unpack_codes(content: bytes, T: int, H: int, W: int, codebook: int = 2**16) -> Tensor:
    """The inverse of `pack_codes`: codes_THW int64. ValueError for codes that a codebook of that size does not have."""
    if len(content) != (size := code_type(codebook).itemsize * T * H * W):
        raise ValueError(f"a clip of {T}x{H}x{W} codes must take {size} bytes, got {len(content)}; prepare it again")
    codes = np.frombuffer(content, code_type(codebook)).astype(np.int64)
    if codes.max() >= codebook:
        raise ValueError(f"codes must be below {codebook}, got {codes.max()}: the shards are of another tokenizer or damaged")
    return torch.from_numpy(codes).view(T, H, W)


def pack_picture(rgb_FHWC: NDArray[np.uint8]) -> bytes:
    """A clip as one WebP picture, its frames side by side in rows: small."""
    F, H, W, _ = rgb_FHWC.shape
    columns = min(F, LARGEST_SIDE // W)
    rows = math.ceil(F / columns)
    if rows * H > LARGEST_SIDE:
        raise ValueError(f"a clip must fit into {LARGEST_SIDE} pixels a side, got {F} frames of {W}x{H}; use fewer --frames")
    filled = np.concatenate([rgb_FHWC, np.repeat(rgb_FHWC[-1:], rows * columns - F, 0)])
    sheet = filled.reshape(rows, columns, H, W, 3).transpose(0, 2, 1, 3, 4).reshape(rows * H, columns * W, 3)
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, "WEBP", quality=QUALITY, method=4)
    return content.getvalue()


def unpack_picture(content: bytes, F: int, H: int, W: int) -> NDArray[np.uint8]:
    """The inverse of `pack_picture`, but for what WebP loses: rgb_FHWC."""
    with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
        sheet = np.asarray(image.convert("RGB"))
    columns = sheet.shape[1] // W
    tiles = sheet.reshape(-1, H, columns, W, 3).transpose(0, 2, 1, 3, 4).reshape(-1, H, W, 3)
    return np.ascontiguousarray(tiles[:F])


def write_parquet(path: Path, schema: Any, groups: Iterable[Sequence[dict[str, Any]]]) -> None:
    """A Parquet file of row groups with checksums, whole or not at all. OSError in words."""
    import pyarrow
    import pyarrow.parquet as parquet

    options = {"compression": "zstd", "write_page_checksum": True}
    with whole_file(path) as partial, parquet.ParquetWriter(partial, schema, **options) as writer:
        for rows in groups:
            writer.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema))


def write_shard(
    path: Path, form: str, tokenizer: str, rows: Sequence[dict[str, Any]], rejected: Sequence[dict[str, Any]]
) -> None:
    """One shard of `prepare`, with what it rejected in its footer (so that both appear together)."""
    groups = [rows[first : first + GROUP_ROWS] for first in range(0, len(rows), GROUP_ROWS)] or [[]]
    metadata = {"format": form, "tokenizer": tokenizer, "rejected": json.dumps(list(rejected))}
    columns = ["picture", "mirror"] if form == PIXELS else ["codes"]
    columns += [*CONTENT[form][1:], "captions", "fps", "frames", "source", "start", "mirrored", "tokenizer"]
    write_parquet(path, clip_schema(columns).with_metadata(metadata), groups)


def clip_schema(columns: Sequence[str]) -> Any:
    """Columns of shards with their types. `codes`: see `pack_codes`; `picture`: see `pack_picture`."""
    import pyarrow

    types = dict.fromkeys(("T", "H", "W", "F", "height", "width", "frames", "seconds"), pyarrow.int32())
    types |= dict.fromkeys(("codes", "picture"), pyarrow.binary()) | dict.fromkeys(("source", "tokenizer"), pyarrow.string())
    types |= dict.fromkeys(("fps", "start"), pyarrow.float64()) | dict.fromkeys(("mirror", "mirrored"), pyarrow.bool_())
    types |= dict.fromkeys(("text", "text_open"), pyarrow.list_(pyarrow.int32())) | {"captions": pyarrow.list_(pyarrow.string())}
    return pyarrow.schema([(name, types[name]) for name in columns])


def shard_summary(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """(clips in a shard, what was rejected while it was made)."""
    with _parquet(str(path.parent), str(path)) as file:
        return file.metadata.num_rows, json.loads((file.schema_arrow.metadata or {}).get(b"rejected", b"[]"))


def open_shards(folder: str | Path) -> ShardIndex:
    """The index of a folder of shards: local, or any fsspec URL. Reads sizes alone.

    Raises FileNotFoundError for a folder without shards, ValueError for an unfinished one, or shards that do not fit together.
    """
    folder = str(folder)
    names, settings = _listed(folder)
    found: dict[str, set[Any]] = {"form": set(), "tokenizer": set(), "frame rate": set()}
    sizes, places, group_bytes = [], [], 1
    for number, name in enumerate(names):
        with _parquet(folder, name) as file:
            form = (file.schema_arrow.metadata or {}).get(b"format", b"").decode("ascii", "replace")
            if form not in CONTENT:
                raise ValueError(f"{name} must be a shard that lumos wrote, got another Parquet file; give a folder of shards")
            found["form"].add(form)
            sides = [*CONTENT[form][1:], "frames"]
            for group in range(file.num_row_groups):
                table = _columns(file, name, group, [*sides, "fps", "tokenizer"])
                sizes.append(np.stack([table[side].to_numpy() for side in sides], 1).astype(np.int64))
                if (sizes[-1] < 1).any():
                    raise ValueError(f"{name} must hold clips of at least 1x1x1, got {sizes[-1].min(0)[:3].tolist()}")
                rows = np.arange(len(sizes[-1]))
                places.append(np.stack([np.full_like(rows, number), np.full_like(rows, group), rows], 1))
                group_bytes = max(group_bytes, file.metadata.row_group(group).total_byte_size)
                found["tokenizer"].update(table["tokenizer"].to_pylist())
                found["frame rate"].update(table["fps"].to_pylist() if form != TOKENS else [])
    if not sum(map(len, places)):
        raise ValueError(f"{folder} must hold at least one clip, got none; see its rejected.csv")
    for what, values in found.items():
        if len(values) > 1:
            shown = ", ".join(sorted(map(str, values)))
            raise ValueError(f"the shards in {folder} must have one {what}, got {shown}; prepare them again, together")
    planned = settings.get("shards", len(names))
    if planned != len(names):
        raise ValueError(f"{folder} must be finished, got {len(names)} of {planned} shards; give the same prepare command again")
    size_N4, (form,), (tokenizer,) = np.concatenate(sizes), found["form"], found["tokenizer"]
    digest = hashlib.sha256(size_N4[:, :3].astype("<i4").tobytes() + tokenizer.encode()).hexdigest()[:16]
    fps, made_by = float(next(iter(found["frame rate"]), 0.0)), str(settings.get("name") or "")
    arrays = (size_N4[:, :3], np.concatenate(places), digest, size_N4[:, 3])
    return ShardIndex(folder, tuple(names), form, tokenizer, fps, *arrays, made_by, group_bytes)


class ShardReader:
    """Row groups of shards, the latest kept in memory up to `cache_bytes`; may be used by several threads."""

    def __init__(self, index: ShardIndex, columns: Sequence[str], cache_bytes: int = 2**31, codebook: int = 2**16) -> None:
        self.index, self.codebook, self.unpacked = index, codebook, "clip" in columns
        # "clip" stands for the content: codes_THW int64, all below `codebook`, or rgb_FHWC uint8
        self.columns = [part for name in columns for part in (CONTENT[index.form] if name == "clip" else (name,))]
        self.group = lru_cache(max(1, cache_bytes // index.group_bytes))(self._read)
        self.footers: dict[int, Any] = {}

    def row(self, number: int) -> dict[str, Any]:
        """Row `number` of the index, with the columns asked for. ValueError for codes that the codebook does not have."""
        file, group, place = self.index.place_N3[number].tolist()
        table = self.group(file, group)
        row = {name: table[name][place].as_py() for name in self.columns}
        if self.unpacked:
            content, F, H, W = (row.pop(name) for name in CONTENT[self.index.form])
            try:
                pixels = self.index.form == PIXELS
                row["clip"] = unpack_picture(content, F, H, W) if pixels else unpack_codes(content, F, H, W, self.codebook)
            except ValueError as error:
                raise ValueError(f"{self.index.files[file]}: {error}") from error
        return row

    def _read(self, file: int, group: int) -> Any:
        with _parquet(self.index.folder, self.index.files[file], self.footers.get(file)) as opened:
            self.footers[file] = opened.metadata
            return _columns(opened, self.index.files[file], group, self.columns)


def _listed(folder: str) -> tuple[list[str], dict[str, Any]]:
    """(Parquet files in a folder; settings that made them)."""
    files, where = fsspec.core.url_to_fs(folder)
    listed = files.ls(where, detail=False) if files.isdir(where) else []
    names = sorted(name for name in listed if re.search(r"(^|/)[^./][^/]*\.parquet$", name))
    if not names:
        raise FileNotFoundError(f"{folder} must be a folder of shards (.parquet), got none; make one with lumos prepare")
    written = next((name for name in listed if name.endswith(f"/{PREPARED}")), None)
    settings = read_object(files.cat_file(written), written) if written else {}
    if not isinstance(settings.get("shards", 0), int):
        raise ValueError(f"{written} must be what lumos prepare wrote, got shards = {settings['shards']!r:.40}; prepare it again")
    return names, settings


@contextmanager
def _parquet(folder: str, name: str, footer: Any = None) -> Iterator[Any]:
    """An open shard; ValueError where it is damaged.

    Arrow itself opens local files: its threads may outlive Python, so what they free must hold no Python objects.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    files, _ = fsspec.core.url_to_fs(folder)
    options = {"pre_buffer": False, "page_checksum_verification": True, "metadata": footer}
    try:
        with parquet.ParquetFile(name, filesystem=None if "local" in files.protocol else files, **options) as file:
            yield file
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{name} is damaged or is no Parquet file ({problem}); delete it and prepare it again") from error


def _columns(file: Any, name: str, group: int, columns: Sequence[str]) -> Any:
    """Columns of a row group as a table; ValueError where one is missing, of another type, or has empty fields."""
    import pyarrow

    read = file.read_row_group(group, columns=list(columns), use_threads=False)
    try:
        table = read.select(columns).cast(clip_schema(columns)).combine_chunks()
        if empty := [column for column in columns if table[column].null_count]:
            raise ValueError(f"empty fields in {empty[0]}")
    except (pyarrow.ArrowException, KeyError, ValueError) as error:
        raise ValueError(f"{name} must have {', '.join(columns)} as lumos writes them ({error}); prepare it again") from error
    return table
