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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lumos.config import read_json, read_object
from lumos.data.shards import PIXELS, PREPARED, ShardReader, open_shards
from lumos.files import text_of
from lumos.media.source import one_line, readable_file

MAX_CAPTION = 10_000  # characters
LATEST = 1e6  # seconds, eleven days
VIDEOS = """.mp4 .m4v .mov .mkv .webm .avi .gif .mpg .mpeg .ts .mts .m2ts .m2t .vob .flv .f4v .ogv .asf .wmv .y4m .3gp .3g2
            .mxf .dv .ivf .qt .m1v .m2v .mpe .mpv .ogm .ogg .divx .mk3d .mj2 .nut .h264 .264 .hevc .265 .amv .mod .tod .trp .tp
            .insv .lrv"""
IMAGES = ".png .apng .jpg .jpeg .jpe .jfif .mpo .webp .bmp .tif .tiff .avif .avifs"
# What folders also hold, and cannot be read: each is a row of its own, so that rejected.csv names it.
OTHERS = """.heic .heics .heif .hif .jxl .jp2 .psd .svg .ico .tga .exr .hdr .dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .raw .rm .rmvb
            .wtv .swf .braw .r3d .dib .pbm .pgm .ppm .pnm .j2k .jpx .jxr .pcx .xcf .wmf .emf .eps .dcr .srw .gifv"""
NAMED = frozenset(f"{VIDEOS} {IMAGES} {OTHERS}".split())
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
OTHER_NAMES = {"file_name": "path", "text": "caption"}  # Hugging Face's names of columns -> ours
COLUMNS = ("path", "caption", "captions", "start", "end", "mirror")
YES, NO = ("true", "yes", "1", "1.0"), ("false", "no", "0", "0.0", "", "none")  # tables with gaps hold 1.0 for 1
# What programs write for nothing, or for a list, into a column of text: nobody's words.
NO_WORDS = re.compile(r"nan|none|null|<na>|n/a|[\[{]\s*([\"'].*)?[\]}]", re.IGNORECASE | re.DOTALL)
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
        entries, rule = _folder(path), "videos or images (.mp4, .png, ...), got none; give another folder"
    elif not path.exists():
        raise FileNotFoundError(f"there is no manifest {path}; give a {', '.join(TABLES)} file or a folder of videos")
    elif path.suffix.lower() not in TABLES:
        raise ValueError(f"a manifest must be a {', '.join(TABLES)} file or a folder of videos, got {path.name}; convert it")
    else:
        entries = [_entry(row, values, path.parent) for row, values in enumerate(_rows(path), 1)]
        rule = "at least one row below its header, got none; write one"
    if not entries:
        raise ValueError(f"{path} must hold {rule}")
    seen: dict[tuple[str, float | None, float | None, int], int] = {}
    for number, entry in enumerate(entries):
        key = (_place(entry.path), entry.start, entry.end, entry.stored)
        if not entry.problem and (first := seen.setdefault(key, entry.row)) != entry.row:
            entries[number] = replace(entry, problem=f"the same clip as row {first}; remove one, or put both captions in one row")
    return entries


def is_url(path: str) -> bool:
    """Whether a path is one for fsspec: scheme://..., also after simplecache:: and the like."""
    return URL.match(path) is not None


def _entry(row: int, values: Values, beside: Path) -> Entry:
    both = [f"{ours} and {theirs}" for theirs, ours in OTHER_NAMES.items() if values.get(ours) and values.get(theirs)]
    values = {
        **values,
        **{ours: values[theirs] for theirs, ours in OTHER_NAMES.items() if not values.get(ours) and theirs in values},
    }
    path = values.get("path")
    entry = Entry(row, path if isinstance(path, str) else "")
    try:
        if both:
            raise ValueError(f"one of {both[0]} must hold it, got both; keep one")
        if not os.path.lexists(beside / entry.path):  # a name may begin or end with a space
            entry = replace(entry, path=entry.path.strip())
        if not entry.path:
            raise ValueError(f"path must be a file or URL, got {_shown(path)}; fill it in")
        _check_unicode(entry.path, "path")
        local = beside.absolute() / entry.path
        if os.path.lexists(local) or not is_url(entry.path):
            entry = replace(entry, path=str(local))
        captions = _captions(values)
        start, end = (_seconds(values.get(name), name) for name in ("start", "end"))
        entry = replace(entry, captions=captions, start=start, end=end, mirror=_yes(values.get("mirror")))
        if start is not None and end is not None and end <= start:
            raise ValueError(f"end must be after start, got {start:g} to {end:g} s; exchange them")
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
            value = None
            with suppress(ValueError, RecursionError):
                value = json.loads(values[name])
            if not isinstance(value, list):
                rule = 'captions must be a JSON list such as ["a cat", "a cat sleeps"]'
                raise ValueError(f"{rule}, got {values[name][:40]!r}; or use caption")
        given += value if isinstance(value, list | tuple) else [value]
    captions: dict[str, None] = {}
    for caption in given:
        if not isinstance(caption, str | None):
            raise ValueError(f"caption must be text, got {_shown(caption)}; write a sentence")
        if NO_WORDS.fullmatch((caption or "").strip()):
            raise ValueError(f"caption must be text, got {_shown(caption)}; write a sentence, or name a column of lists captions")
        _check_unicode(caption or "", "caption")
        captions[" ".join((caption or "").split())] = None
    captions.pop("", None)
    if not captions:
        raise ValueError("caption must say what the video shows, got an empty one; write a sentence")
    if (longest := max(map(len, captions))) > MAX_CAPTION:
        raise ValueError(f"a caption must have at most {MAX_CAPTION} characters, got {longest}; shorten it")
    return tuple(captions)


def _check_unicode(text: str, name: str) -> None:
    """ValueError for half a character, which is what a file's name of another encoding looks like; no file could hold it."""
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{name} must be text in Unicode, got {text!r:.60}; rename it")


def _seconds(given: Any, name: str) -> float | None:
    """A moment in a video; None for an empty field, which tables with missing numbers hold as NaN."""
    if given is None or given == "" or given != given:
        return None
    try:
        seconds = math.nan if isinstance(given, bool) or "_" in str(given) else float(given)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds <= LATEST:
        raise ValueError(f"{name} must be seconds, 0 to {LATEST:g}, got {_shown(given)}; leave it empty for all")
    return seconds


def _yes(given: Any) -> bool:
    word = "" if given is None or given != given else str(given).strip().lower()
    if word not in YES + NO:
        raise ValueError(f"mirror must be true or false, got {_shown(given)}; leave it empty for false")
    return word in YES


def _shown(given: Any) -> str:
    """A wrong value in words."""
    words = {type(None): "nothing", bool: str(given).lower(), dict: "an object", list: "a list"}
    return "NaN" if given != given else words.get(type(given), repr(given)[:60])


def _rows(path: Path) -> list[Values]:
    """The rows of a table. ValueError for a broken one, or one without the columns that a manifest has."""
    kind = path.suffix.lower()
    rows = _parquet_rows(path) if kind == ".parquet" else _json_rows(path) if kind == ".jsonl" else _csv_rows(path, kind)
    given = dict.fromkeys(name for row in rows for name in row)
    names = {OTHER_NAMES.get(name, name) for name in given} if rows else {"path", "caption"}
    if "path" not in names or not {"caption", "captions"} & names:
        rule = "must have the columns path and caption (or captions; also start, end, mirror)"
        raise ValueError(f"{path} {rule}, got {', '.join(given)[:80] or 'none'}; rename them, with commas between them in a .csv")
    return rows


def _check_once(path: Path, names: list[str]) -> None:
    """ValueError for two columns of one name, of which only one would be read."""
    for name in {*COLUMNS, *OTHER_NAMES}:
        if names.count(name) > 1:
            raise ValueError(f"{path} must have one column {name}, got {names.count(name)}; rename one")


def _csv_rows(path: Path, kind: str) -> list[Values]:
    csv.field_size_limit(2**27)
    reader = csv.DictReader(io.StringIO(text_of(path), newline=""), delimiter="\t" if kind == ".tsv" else ",", strict=True)
    rows: list[Values] = []
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        _check_once(path, reader.fieldnames)
        for row in reader:
            if None in row:
                raise ValueError(f"{path} has too many fields in line {reader.line_num}; quote captions that hold commas")
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"{path} must be a {kind[1:]} table, got a broken line ({error}); close its quotes") from error
    return rows


def _json_rows(path: Path) -> list[Values]:
    lines = enumerate(text_of(path).split("\n"), 1)
    return [read_object(line, f"{path}, line {number},") for number, line in lines if line.strip()]


def _parquet_rows(path: Path) -> list[Values]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            known = [name for name in file.schema_arrow.names if name in {*COLUMNS, *OTHER_NAMES}]
            _check_once(path, known)
            rows: list[Values] = file.read(columns=known).to_pylist()
            return rows
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} must be a Parquet table, got something else ({error}); write it again") from error


def _folder(folder: Path) -> list[Entry]:
    """Entries of all pictures and videos in a folder and those below it, also behind links, in the order of their names."""
    found: list[Path] = []
    places: set[str] = set()
    closed: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=closed.append, followlinks=True):
        # Links may lead round in a circle; and contact sheets of shards are nobody's pictures.
        if (real := os.path.realpath(place)) in places or (PREPARED in names and Path(place) != folder):
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
    listed = {_place(entry.path) for entry in entries}
    for path in found:
        if path.suffix.strip().lower() in NAMED and _place(path) not in listed:
            row, problem = len(entries) + 1, ""
            try:
                entry = _entry(row, {**_beside(path), "path": path.name}, path.parent)
            except (ValueError, OSError) as error:
                entry = Entry(row, str(path.absolute()), problem=one_line(error))
            if tables:
                problem = f"{tables[0]} must have a row for every file, got none for {path.name}; add it"
            entries.append(replace(entry, problem=problem or entry.problem))
    return entries + [Entry(n, error.filename, problem=one_line(error)) for n, error in enumerate(closed, len(entries) + 1)]


def _place(path: str | Path) -> str:
    """One name for a file: the links and dots of its folders resolved, not the link that it may be itself."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def _beside(path: Path) -> Values:
    """The captions beside a file, or else in its name: clip_a_red_car_0003 is "clip a red car"."""
    text, document = (max(path.with_suffix(end), path.with_suffix(end.upper()), key=Path.is_file) for end in (".txt", ".json"))
    if document.is_file():
        values = read_json(document)
        values.pop("file_name", None)
        return values
    if text.is_file():
        return {"captions": text_of(text).split("\n")}
    return {"caption": re.sub(r"[-_]+", " ", re.sub(r"[-_ ]+\d+$", "", path.stem))}


def _stored(folder: Path) -> list[Entry]:
    """The clips of picture shards."""
    index = open_shards(folder)
    if index.form != PIXELS:
        raise ValueError(f"{folder} holds codes already; give videos, or shards made with --pixels")
    reader = ShardReader(index, ["captions", "mirror"])
    files = [index.files[file] for file in index.place_N3[:, 0]]
    rows = enumerate(map(reader.row, range(len(index))))
    return [Entry(n + 1, files[n], tuple(row["captions"]), mirror=row["mirror"], stored=n) for n, row in rows]
