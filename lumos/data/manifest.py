"""A list of videos and captions -> entries to prepare, every row checked before the work starts.

Read are csv, tsv, jsonl and parquet tables; a folder of videos and images, with captions in side files (clip.txt, a caption a
line; clip.json) or else in the files' names; and a folder of picture shards that `lumos prepare` made.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_CAPTION = 10_000  # characters
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".flv", ".ogv", ".asf", ".wmv", ".y4m")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
COLUMNS = ("path", "caption", "captions", "start", "end", "mirror")
YES, NO = ("true", "yes", "1"), ("false", "no", "0", "", "none")


@dataclass(frozen=True)
class Entry:
    """One input: `row` counts from 1 (the header is not counted). `start`, `end`: seconds of the part meant, None = all of it.

    `mirror`: its captions stay true in a mirror. `stored`: row of a picture shard at `path`, -1 for a file of its own.
    `problem`: why it cannot be used, "" for a good one.
    """

    row: int
    path: str
    captions: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    mirror: bool = False
    stored: int = -1
    problem: str = ""


def read_manifest(path: str | Path) -> list[Entry]:
    """All rows of a manifest in order, bad ones with their `problem`. Relative paths count from the manifest's own folder.

    Raises FileNotFoundError or ValueError for a manifest that cannot be read at all, or has no row.
    """
    path = Path(path)
    if path.is_dir():
        found = _folder(path)
        if not found:
            raise ValueError(f"{path} must hold videos or images ({', '.join(VIDEOS[:4])}, ...), got none; give another folder")
        return found
    if not path.exists():
        raise FileNotFoundError(f"there is no manifest {path}; give a {', '.join(TABLES)} file or a folder of videos")
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"a manifest must be a {', '.join(TABLES)} file or a folder of videos, got {path.name}; convert it")
    entries: list[Entry] = []
    seen: dict[tuple[str, float | None, float | None], int] = {}
    for row, values in enumerate(_rows(path), 1):
        entry = _entry(row, values, path.parent)
        key = (entry.path, entry.start, entry.end)
        if not entry.problem and key in seen:
            entry = _bad(entry, f"the same clip as row {seen[key]}; remove one, or put both captions into one row")
        elif not entry.problem:
            seen[key] = row
        entries.append(entry)
    if not entries:
        raise ValueError(f"{path} must hold at least one row below its header, got none; write one")
    return entries


def is_url(path: str) -> bool:
    """Whether a path is one for fsspec."""
    return "://" in path or "::" in path


def _entry(row: int, values: Mapping[str, Any], beside: Path) -> Entry:
    path = str(values.get("path") or "").strip()
    entry = Entry(row, path)
    if not path:
        return _bad(entry, "path must not be empty; write the video's path or URL")
    try:
        captions = _captions(values)
        start, end = _seconds(values, "start"), _seconds(values, "end")
        mirror = _yes(values.get("mirror"))
    except ValueError as error:
        return _bad(entry, str(error))
    if start is not None and end is not None and end <= start:
        return _bad(entry, f"end must be after start, got {start:g} to {end:g} s; correct one")
    if not is_url(path):
        path = os.path.abspath(beside / path)
    return _checked(Entry(row, path, captions, start, end, mirror))


def _checked(entry: Entry) -> Entry:
    """The entry with what a look at its file tells."""
    if is_url(entry.path):
        return entry
    path = Path(entry.path)
    try:
        if path.is_dir():
            return _bad(entry, f"{path} is a folder; name a file in it")
        if path.stat().st_size == 0:
            return _bad(entry, f"{path} is empty (0 bytes); copy it again")
        with open(path, "rb"):
            return entry
    except FileNotFoundError:
        return _bad(entry, f"there is no file {path}; check the path")
    except OSError as error:
        return _bad(entry, f"cannot read {path}: {error.strerror}; check its permissions")


def _captions(values: Mapping[str, Any]) -> tuple[str, ...]:
    given = values.get("captions")
    several = given if isinstance(given, list | tuple) else _json_list(str(given)) if given else []
    if values.get("caption") is not None:
        several = [values["caption"], *several]
    captions = [" ".join(str(caption).split()) for caption in several if caption is not None]
    captions = list(dict.fromkeys(caption for caption in captions if caption))
    if not captions:
        raise ValueError("caption must say what the video shows, got an empty one; write a sentence")
    long = max(map(len, captions))
    if long > MAX_CAPTION:
        raise ValueError(f"a caption must have at most {MAX_CAPTION} characters, got {long}; shorten it")
    return tuple(captions)


def _json_list(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError(f'captions must be a JSON list such as ["a cat", "a cat sleeps"], got {text[:40]!r}; or use caption')
    return found


def _seconds(values: Mapping[str, Any], name: str) -> float | None:
    given = values.get(name)
    if given is None or given == "" or given != given:
        return None
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{name} must be seconds, 0 or more, got {given!r}; correct it")
    return seconds


def _yes(given: Any) -> bool:
    word = str("" if given is None else given).strip().lower()
    if word not in YES + NO:
        raise ValueError(f"mirror must be true or false, got {given!r}; correct it")
    return word in YES


def _bad(entry: Entry, problem: str) -> Entry:
    return Entry(entry.row, entry.path, entry.captions, entry.start, entry.end, problem=problem)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
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
        raise ValueError(f"{path} must be a {kind[1:]} table, got a broken line ({error}); correct it") from error


def _json_rows(path: Path, text: str) -> Iterator[Mapping[str, Any]]:
    first = True
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold one JSON object a line, got something else in line {number}; correct it")
        if first:
            _check_columns(path, list(values))
        first = False
        yield values


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} must be a Parquet table, got something else ({error}); write it again") from error


def _check_columns(path: Path, names: list[str]) -> None:
    if "path" not in names or not {"caption", "captions"} & set(names):
        found = ", ".join(map(str, names))[:80] or "none"
        raise ValueError(
            f"{path} must have the columns path and caption (or captions; also start, end, mirror), got {found}; rename them"
        )


def _folder(folder: Path) -> list[Entry]:
    shards = sorted(folder.glob("*.parquet"))
    if shards:
        return _stored(folder)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS + IMAGES and path.is_file())
    return [_from_side_file(row, path) for row, path in enumerate(found, 1)]


def _from_side_file(row: int, path: Path) -> Entry:
    entry = Entry(row, os.path.abspath(path))
    text, document = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        if document.is_file():
            values = json.loads(document.read_text("utf-8"))
            if not isinstance(values, dict):
                raise ValueError("no JSON object")
            return _entry(row, {**values, "path": path.name}, path.parent)
        if text.is_file():
            return _entry(row, {"path": path.name, "captions": text.read_text("utf-8").splitlines() or [""]}, path.parent)
    except (ValueError, OSError) as error:
        side = document if document.is_file() else text
        return _bad(entry, f"{side} must hold captions as UTF-8 text, a line each, or a JSON object ({error}); correct it")
    name = re.sub(r"[-_ ]+\d+$", "", path.stem)  # clip_a_red_car_0003
    return _entry(row, {"path": path.name, "caption": re.sub(r"[-_]+", " ", name)}, path.parent)


def _stored(folder: Path) -> list[Entry]:
    from lumos.data.shards import PIXELS, ShardReader, open_shards

    index = open_shards(folder)
    if index.form != PIXELS:
        raise ValueError(f"{folder} holds codes already; give videos, or shards made with --pixels")
    reader = ShardReader(index, ["captions", "mirror"])
    entries = []
    for number, (file, _, _) in enumerate(index.place_N3.tolist()):
        values = reader.row(number)
        entries.append(
            Entry(number + 1, index.files[file], tuple(values["captions"]), mirror=bool(values["mirror"]), stored=number)
        )
    return entries
