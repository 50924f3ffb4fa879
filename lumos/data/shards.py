"""Shards: Parquet files of clips, as codes (to train a model) or as pictures (to train a tokenizer, or to be tokenised later).

A row is one clip with its captions, frame rate and source. Any Parquet reader opens them; a shard appears whole or not at all,
and says in its footer which inputs were rejected while it was made. `open_shards` reads sizes only, and checks that the
shards belong together.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lumos.files import whole_file
from lumos.tokenizer.cosmos import CosmosConfig
from lumos.tokenizer.model import VideoTokenizer
from lumos.weights import fingerprint

CODES, PIXELS, TOKENS = "lumos-clips-1", "lumos-pixels-1", "lumos-tokens-1"  # TOKENS: what import-tokens writes
SETTINGS = "prepare.json"
GROUP = 64  # rows read at once
COSMOS = "cosmos-dv4x8x8"  # what import-tokens calls the published tokenizer
Array = np.ndarray[Any, Any]


class Place(NamedTuple):
    """Where a row is: number of the file, of its row group, of the row in it."""

    file: int
    group: int
    row: int


@dataclass(frozen=True)
class ShardIndex:
    """Sizes of every row of a folder of shards, without their contents.

    `sizes_N3`: latent frames, rows, columns of codes (of pictures: frames, height, width). `place_N3`: file, group, row.
    `tokenizer`: its fingerprint, "" for pictures. `digest`: changes with any change of the files.
    """

    folder: str
    files: tuple[str, ...]
    form: str
    tokenizer: str
    fps: float
    sizes_N3: Array
    place_N3: Array
    digest: str

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


def unpack_codes(content: bytes, T: int, H: int, W: int) -> Tensor:
    """The inverse of `pack_codes`: codes_THW int64."""
    return torch.from_numpy(np.frombuffer(content, "<u2").astype(np.int64)).view(T, H, W)


def write_parquet(path: Path, schema: Any, groups: Iterable[Sequence[dict[str, Any]]]) -> None:
    """A Parquet file of row groups: written under another name, flushed to the disk, then put in place. OSError in words."""
    import pyarrow
    import pyarrow.parquet as parquet

    with whole_file(path) as partial, parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
        for rows in groups:
            writer.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema))


def write_shard(
    path: Path, form: str, tokenizer: str, rows: Sequence[dict[str, Any]], rejected: Sequence[dict[str, Any]]
) -> None:
    """One shard of `prepare`, with what it rejected in its footer (so that both appear together)."""
    groups = [rows[first : first + GROUP] for first in range(0, len(rows), GROUP)] or [[]]
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


def rejected_in(path: Path) -> list[dict[str, Any]]:
    """What was rejected while this shard was made."""
    import pyarrow.parquet as parquet

    metadata = parquet.read_schema(path).metadata or {}
    found: list[dict[str, Any]] = json.loads(metadata.get(b"rejected", b"[]"))
    return found


def open_shards(folder: str | Path) -> ShardIndex:
    """The index of a folder of shards: local, or any fsspec URL. Reads sizes alone.

    Raises FileNotFoundError for a folder without shards, ValueError for an unfinished one, or shards that do not fit together.
    """
    files_of, names, settings = _listed(str(folder))
    forms, sizes, places, facts = set(), [], [], set()
    digest = hashlib.sha256()
    for number, name in enumerate(names):
        with files_of.open(name, "rb") as file:
            opened = _parquet(file, name)
            metadata = opened.schema_arrow.metadata or {}
            form = metadata.get(b"format", b"").decode()
            if form not in (CODES, PIXELS, TOKENS):
                raise ValueError(f"{name} must be a shard that lumos wrote, got another Parquet file; give a folder of shards")
            forms.add(form)
            sides = ["F", "height", "width"] if form == PIXELS else ["T", "H", "W"]
            for group in range(opened.num_row_groups):
                table = opened.read_row_group(group, columns=[*sides, "fps", "tokenizer"])
                size_N3 = np.stack([table[side].to_numpy() for side in sides], 1)
                sizes.append(size_N3)
                rows = np.arange(len(size_N3))
                places.append(np.stack([np.full_like(rows, number), np.full_like(rows, group), rows], 1))
                facts |= set(zip(table["tokenizer"].to_pylist(), table["fps"].to_pylist(), strict=True))
                digest.update(size_N3.astype("<i4").tobytes())
    found = np.concatenate(sizes) if sizes else np.zeros((0, 3), np.int64)
    if not len(found):
        raise ValueError(f"{folder} must hold at least one clip, got none; see its rejected.csv")
    tokenizers, rates = {tokenizer for tokenizer, _ in facts}, {fps for _, fps in facts if form != TOKENS}
    for what, values in (("one form", forms), ("one tokenizer", tokenizers), ("one frame rate", rates)):
        if len(values) > 1:
            shown = ", ".join(sorted(map(str, values)))
            raise ValueError(f"the shards in {folder} must have {what}, got {shown}; prepare them again, together")
    planned = settings.get("shards")
    if planned is not None and planned != len(names):
        raise ValueError(f"{folder} must be finished, got {len(names)} of {planned} shards; give the same prepare command again")
    digest.update("".join(sorted(tokenizers)).encode())
    return ShardIndex(
        str(folder),
        tuple(names),
        next(iter(forms)),
        next(iter(tokenizers)),
        float(next(iter(rates), 0.0)),
        found.astype(np.int64),
        np.concatenate(places).astype(np.int64),
        digest.hexdigest()[:16],
    )


class ShardReader:
    """Row groups of shards, the latest kept in memory up to `cache_bytes`; may be used by several threads."""

    def __init__(self, index: ShardIndex, columns: Sequence[str], cache_bytes: int = 2**31) -> None:
        self.index, self.columns, self.cache_bytes = index, list(columns), cache_bytes
        self.files, _, _ = _listed(index.folder)
        self.groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self.footers: dict[int, Any] = {}
        self.bytes = 0
        self.lock = threading.Lock()

    def row(self, number: int) -> dict[str, Any]:
        """Row `number` of the index, with the columns asked for."""
        file, group, row = (int(part) for part in self.index.place_N3[number])
        table = self._group(file, group)
        return {name: table[name][row].as_py() for name in self.columns}

    def _group(self, file: int, group: int) -> Any:
        with self.lock:
            if (file, group) in self.groups:
                self.groups.move_to_end((file, group))
                return self.groups[file, group]
        name = self.index.files[file]
        with self.files.open(name, "rb") as opened:
            parquet_file = _parquet(opened, name, self.footers.get(file))
            self.footers[file] = parquet_file.metadata
            table = parquet_file.read_row_group(group, columns=self.columns).combine_chunks()
        with self.lock:
            if (file, group) not in self.groups:
                self.groups[file, group] = table
                self.bytes += table.nbytes
            while self.bytes > self.cache_bytes and len(self.groups) > 1:
                self.bytes -= self.groups.popitem(last=False)[1].nbytes
        return table


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} when there is none."""
    with suppress(FileNotFoundError):
        document: dict[str, Any] = json.loads(path.read_bytes())
        return document
    return {}


def read_settings(folder: str) -> dict[str, Any]:
    """What `prepare` wrote down of a folder of shards; {} for shards of another origin."""
    return _listed(folder)[2]


def _listed(folder: str) -> tuple[Any, list[str], dict[str, Any]]:
    """(file system, Parquet files in it, settings that made them)."""
    import fsspec

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
    settings = next((name for name in listed if name.endswith(f"/{SETTINGS}")), None)
    return files, names, json.loads(files.cat_file(settings)) if settings else {}


def _parquet(file: Any, name: str, footer: Any = None) -> Any:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(file, metadata=footer)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(
            f"{name} is damaged or is no Parquet file ({error}); delete it and give the prepare command again"
        ) from error
