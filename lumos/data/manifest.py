"""A list of videos and captions -> entries to prepare, every row checked before the work starts.

Reads csv, tsv, jsonl and parquet tables; a folder of videos and images, with captions in metadata.csv (as Hugging Face's
folders have), in side files (clip.txt, one caption per line; clip.json) or else in the files' names; and a folder of picture
shards that `lumos prepare` made.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lumos.files import text_lines
from lumos.media.source import one_line, readable_file

MAX_CAPTION = 10_000  # characters
LATEST = 1e6  # seconds, eleven days
VIDEOS = """.mp4 .m4v .mov .mkv .webm .avi .gif .mpg .mpeg .ts .mts .m2ts .m2t .vob .flv .f4v .ogv .asf .wmv .y4m .3gp .3g2
            .mxf .dv .ivf"""
IMAGES = ".png .apng .jpg .jpeg .jpe .jfif .mpo .webp .bmp .tif .tiff .avif .avifs"
# What folders also hold, and cannot be read: each is a row of its own, so that rejected.csv names it.
OTHERS = """.heic .heics .heif .hif .jxl .jp2 .psd .svg .ico .tga .exr .hdr .dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .raw .rm .rmvb
            .wtv .swf .braw .r3d"""
NAMED = frozenset(f"{VIDEOS} {IMAGES} {OTHERS}".split())
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
OTHER_NAMES = {"file_name": "path", "text": "caption"}  # Hugging Face's names of columns -> ours
COLUMNS = ("path", "caption", "captions", "start", "end", "mirror")
YES, NO = ("true", "yes", "1"), ("false", "no", "0", "", "none")
URL = re.compile(r"([a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
Values = Mapping[str, Any]  # column -> what a row holds there


@dataclass(frozen=True)
class Entry:
    """One input of `prepare`."""

    row: int  # from 1; a table's header is not counted
    path: str
    captions: tuple[str, ...] = ()
    start: float | None = None  # seconds of the part meant, on the file's timeline; None = all of it
    end: float | None = None
    mirror: bool = False  # its captions stay true in a mirror
    stored: int = -1  # row of a picture shard at `path`, -1 for a file of its own
    problem: str = ""  # why it cannot be used, "" for a good one


def read_manifest(path: str | Path) -> list[Entry]:
    """All rows of a manifest in order, bad ones with their `problem`. Relative paths count from the manifest's own folder.

    Raises FileNotFoundError or ValueError for a manifest that cannot be read at all, or has no row.
    """
    path = Path(path)
    if path.is_dir():
        found = _folder(path)
        if not found:
            raise ValueError(f"{path} must hold videos or images (.mp4, .png, ...), got none; give another folder")
        return found
    if not path.exists():
        raise FileNotFoundError(f"there is no manifest {path}; give a {', '.join(TABLES)} file or a folder of videos")
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"a manifest must be a {', '.join(TABLES)} file or a folder of videos, got {path.name}; convert it")
    entries = [_entry(row, values, path.parent) for row, values in enumerate(_rows(path), 1)]
    if not entries:
        raise ValueError(f"{path} must hold at least one row below its header, got none; write one")
    return _without_doubles(entries)


def is_url(path: str) -> bool:
    """Whether a path is one for fsspec: scheme://..., also after simplecache:: and the like."""
    return URL.match(path) is not None


def _without_doubles(entries: list[Entry]) -> list[Entry]:
    seen: dict[tuple[str, float | None, float | None], int] = {}
    for number, entry in enumerate(entries):
        if not entry.problem and (first := seen.setdefault((entry.path, entry.start, entry.end), entry.row)) != entry.row:
            problem = f"the same clip as row {first}; remove one, or put both captions into one row"
            entries[number] = replace(entry, problem=problem)
    return entries


def _entry(row: int, values: Values, beside: Path) -> Entry:
    values = {**{ours: values[theirs] for theirs, ours in OTHER_NAMES.items() if theirs in values}, **values}
    path = values.get("path")
    entry = Entry(row, path.strip() if isinstance(path, str) else "")
    try:
        if not entry.path:
            raise ValueError(f"path must be a file or URL, got {_shown(path)}")
        _check_unicode(entry.path, "path")
        local = beside.absolute() / entry.path
        if os.path.lexists(local) or not is_url(entry.path):
            entry = replace(entry, path=str(local))
        captions = _captions(values)
        start, end = (_seconds(values.get(name), name) for name in ("start", "end"))
        entry = replace(entry, captions=captions, start=start, end=end, mirror=_yes(values.get("mirror")))
        if start is not None and end is not None and end <= start:
            raise ValueError(f"end must be after start, got {start:g} to {end:g} s")
        if not is_url(entry.path):
            readable_file(entry.path)
    except (ValueError, OSError) as error:
        return replace(entry, path=entry.path.encode("utf-8", "backslashreplace").decode(), problem=one_line(error))
    return entry


def _captions(values: Values) -> tuple[str, ...]:
    """One caption or several, from `caption` and `captions`: text, lists of text, JSON lists; None stands for nothing."""
    given: list[Any] = []
    for name in ("caption", "captions"):
        value = values.get(name)
        if name == "captions" and isinstance(value, str) and value:
            value = _json_list(value)
        given += value if isinstance(value, list | tuple) else [value]
    captions = []
    for caption in given:
        if not isinstance(caption, str | None):
            raise ValueError(f"caption must be text, got {_shown(caption)}")
        _check_unicode(caption or "", "caption")
        captions.append(" ".join((caption or "").split()))
    captions = list(dict.fromkeys(filter(None, captions)))
    if not captions:
        raise ValueError("caption must say what the video shows, got an empty one; write a sentence")
    if (longest := max(map(len, captions))) > MAX_CAPTION:
        raise ValueError(f"a caption must have at most {MAX_CAPTION} characters, got {longest}; shorten it")
    return tuple(captions)


def _check_unicode(text: str, name: str) -> None:
    """ValueError for half a character, which is what a file's name of another encoding looks like; no file could hold it."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name} must be text in Unicode, got {text!r:.60}; rename it")


def _json_list(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise ValueError(f'captions must be a JSON list such as ["a cat", "a cat sleeps"], got {text[:40]!r}; or use caption')
    return found


def _seconds(given: Any, name: str) -> float | None:
    """A moment in a video; None for an empty field, which tables with missing numbers hold as NaN."""
    if given is None or given == "" or given != given:
        return None
    try:
        seconds = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds <= LATEST:
        raise ValueError(f"{name} must be seconds, 0 to {LATEST:g}, got {_shown(given)}")
    return seconds


def _yes(given: Any) -> bool:
    word = "" if given is None or given != given else str(given).strip().lower()
    if word not in YES + NO:
        raise ValueError(f"mirror must be true or false, got {_shown(given)}")
    return word in YES


def _shown(given: Any) -> str:
    """A wrong value in words."""
    if given is None or isinstance(given, bool | dict | list):
        return {"NoneType": "nothing", "bool": str(given).lower(), "dict": "an object", "list": "a list"}[type(given).__name__]
    return "NaN" if given != given else repr(given)[:60]


def _rows(path: Path) -> Iterator[Values]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet_rows(path)
        return
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} must be text in UTF-8, got other bytes in line {line}; save it as UTF-8") from error
    if kind == ".jsonl":
        yield from _json_rows(path, text)
        return
    csv.field_size_limit(2**27)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ",", strict=True)
        _check_columns(path, [name.strip() for name in reader.fieldnames or []])
        for values in reader:
            if None in values:  # more fields than the header has
                raise ValueError(
                    f"{path} has too many fields in line {reader.line_num}, more than its header; quote captions that hold commas"
                )
            yield {name.strip(): value for name, value in values.items()}
    except csv.Error as error:
        raise ValueError(f"{path} must be a {kind[1:]} table, got a broken line ({error})") from error


def _json_rows(path: Path, text: str) -> Iterator[Values]:
    first = True
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold one JSON object per line, got something else in line {number}")
        if first:
            _check_columns(path, list(values))
        first = False
        yield values


def _parquet_rows(path: Path) -> Iterator[Values]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(path, names)
            for batch in file.iter_batches(columns=[name for name in names if name in {*COLUMNS, *OTHER_NAMES}]):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} must be a Parquet table, got something else ({error}); write it again") from error


def _check_columns(path: Path, names: list[str]) -> None:
    known = {OTHER_NAMES.get(name, name) for name in names}
    if "path" not in known or not {"caption", "captions"} & known:
        found = ", ".join(map(str, names))[:80] or "none"
        raise ValueError(
            f"{path} must have the columns path and caption (or captions; also start, end, mirror), got {found}; rename them"
        )


def _folder(folder: Path) -> list[Entry]:
    """Entries of all pictures and videos in a folder and those below it, also behind links, in the order of their names."""
    found: list[Path] = []
    places: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in places:  # links may lead round in a circle
            folders.clear()
            continue
        places.add(real)
        # Names that begin with a dot are the system's: "._a.mp4" is no video but what macOS notes about one.
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found += [Path(place, name) for name in names if name[0] != "."]
    found.sort()
    tables = [path for path in found if path.stem == "metadata" and path.suffix.lower() in TABLES]
    if not tables and any(path.suffix == ".parquet" and path.parent == folder for path in found):
        return _stored(folder)
    rows = [(values, table.parent) for table in tables for values in _rows(table)]
    entries = [_entry(row, values, beside) for row, (values, beside) in enumerate(rows, 1)]
    listed = {entry.path for entry in entries}
    for path in found:
        if path.suffix.lower() in NAMED and str(path.absolute()) not in listed:
            entry = _from_side_file(len(entries) + 1, path)
            if tables:
                entry = replace(entry, problem=f"{tables[0]} must have a row for every file, got none for {path.name}; add it")
            entries.append(entry)
    return _without_doubles(entries)


def _from_side_file(row: int, path: Path) -> Entry:
    """A file with the captions beside it, or else in its name: clip_a_red_car_0003 is "clip a red car"."""
    text, document = path.with_suffix(".txt"), path.with_suffix(".json")
    name = re.sub(r"[-_]+", " ", re.sub(r"[-_ ]+\d+$", "", path.stem))
    values: Values = {"caption": name}
    try:
        if document.is_file():
            values = json.loads(document.read_text("utf-8-sig"))
            if not isinstance(values, dict):
                raise ValueError("no JSON object")
        elif text.is_file():
            values = {"captions": text_lines(text)}
    except (ValueError, OSError, RecursionError) as error:
        side = document if document.is_file() else text
        problem = f"{side} must hold captions as UTF-8 text, one per line, or a JSON object ({error})"
        return Entry(row, str(path.absolute()), problem=problem)
    others = {name: value for name, value in values.items() if name not in ("path", "file_name")}
    return _entry(row, {**others, "path": path.name}, path.parent)


def _stored(folder: Path) -> list[Entry]:
    from lumos.data.shards import PIXELS, ShardReader, open_shards

    index = open_shards(folder)
    if index.form != PIXELS:
        raise ValueError(f"{folder} holds codes already; give videos, or shards made with --pixels")
    reader = ShardReader(index, ["captions", "mirror"])
    entries = []
    for number, (file, _, _) in enumerate(index.place_N3.tolist()):
        row = reader.row(number)
        path, captions = index.files[file], tuple(row["captions"])
        entries.append(Entry(number + 1, path, captions, mirror=bool(row["mirror"]), stored=number))
    return entries
