"""A manifest in any form gives the same entries; every bad row is named, every unreadable manifest refused."""

import json
import math
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumos.data.manifest import MAX_CAPTION, Entry, is_url, read_manifest


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"not looked into here")
    return tmp_path


def add(folder: Path, **contents: str) -> None:
    """Files by their names, `__` for a dot and `/` as it is."""
    for name, content in contents.items():
        path = folder / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content or "x", "utf-8")


def write(folder: Path, rows: list[dict[str, Any]], kind: str) -> Path:
    path = folder / f"clips.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", "utf-8")
    elif kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        between = "\t" if kind == "tsv" else ","
        lines = [list(rows[0]), *([str(row.get(name, "")).replace('"', '""') for name in rows[0]] for row in rows)]
        path.write_text("\ufeff" + "\r\n".join(between.join(f'"{field}"' for field in line) for line in lines), "utf-8")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_form_gives_the_same_entries(kind: str, clips: Path) -> None:
    several: Any = ["one", " two\n lines ", "one", ""]
    rows = [
        {"path": "a.mp4", "caption": "a cat, asleep", "start": 0.5, "end": 2.0, "mirror": True, "other": 1, "captions": None},
        {"path": str(clips / "b.mp4"), "caption": "ein B\u00e4r", "start": 0, "end": 1, "mirror": False, "captions": several},
    ]
    if kind.endswith("sv"):
        rows[0]["captions"], rows[1]["captions"] = "", json.dumps(several)
    assert read_manifest(write(clips, rows, kind)) == [
        Entry(1, str(clips / "a.mp4"), ("a cat, asleep",), 0.5, 2.0, mirror=True),
        Entry(2, str(clips / "b.mp4"), ("ein B\u00e4r", "one", "two lines"), 0.0, 1.0),
    ]


def test_a_caption_may_be_a_list_and_null_is_nothing(clips: Path) -> None:
    rows = [{"path": "a.mp4", "caption": ["a cat", "a cat sleeps"]}, {"path": "b.mp4", "captions": ["a cat", None]}]
    assert [entry.captions for entry in read_manifest(write(clips, rows, "jsonl"))] == [("a cat", "a cat sleeps"), ("a cat",)]
    missing = [{"path": "a.mp4", "caption": "a", "start": math.nan}, {"path": "b.mp4", "caption": None, "start": 1.0}]
    first, second = read_manifest(write(clips, missing, "parquet"))
    assert (first.start, first.problem) == (None, "") and "caption must say" in second.problem


def test_a_folder_with_side_files_or_file_names(clips: Path) -> None:
    add(clips, a__txt="first\nsecond\n", b__json='{"caption": "from json", "start": 1, "mirror": true, "file_name": "other"}')
    add(clips / "deep", **{"a_red-car_0012.MOV": "", "2024.png": "", "notes.md": "", "C.MP4 ": "", "C.TXT": "loud"})
    entries = read_manifest(clips)
    found = {Path(entry.path).name: entry for entry in entries}
    assert {name: entry.captions for name, entry in found.items()} == {
        "a.mp4": ("first", "second"),
        "b.mp4": ("from json",),
        "a_red-car_0012.MOV": ("a red car",),
        "2024.png": ("2024",),
        "C.MP4 ": ("loud",),
    }
    assert (found["b.mp4"].start, found["b.mp4"].mirror) == (1.0, True)
    assert [entry.row for entry in entries] == [1, 2, 3, 4, 5] and not any(entry.problem for entry in entries)


def test_what_text_editors_and_systems_add_is_no_caption(clips: Path) -> None:
    """Byte-order marks, line ends that are none, companions of macOS."""
    add(
        clips,
        a__txt="\ufeffa red cat\r\nit\u2028sleeps\x0c\x85\n",
        b__json='\ufeff{"caption": "a cat"}',
        **{"._a.mp4": "", ".h/c.mp4": ""},
    )
    first, second = read_manifest(clips)
    assert first.captions == ("a red cat", "it sleeps") and second.captions == ("a cat",)
    assert not first.problem and not second.problem
    add(clips, clips__jsonl='\ufeff{"path": "a.mp4", "caption": "a\u2028b\x85c"}')
    (entry,) = read_manifest(clips / "clips.jsonl")
    assert entry.captions == ("a b c",) and not entry.problem


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_folder_as_hugging_face_lays_it_out(kind: str, clips: Path) -> None:
    add(clips / "train", c__png="")
    rows = [{"file_name": "train/c.png", "text": "a cat"}, {"file_name": "train/../a.mp4", "text": "a dog, asleep"}]
    write(clips, rows, kind).rename(clips / f"metadata.{kind}")
    first, second, third = read_manifest(clips)
    assert (first.path, first.captions) == (str(clips / "train" / "c.png"), ("a cat",))
    assert os.path.samefile(second.path, clips / "a.mp4") and second.captions == ("a dog, asleep",)
    assert Path(third.path).name == "b.mp4" and "must have a row for every file" in third.problem


def test_every_picture_and_video_of_a_folder_is_read_or_named(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also what cannot be read, what lies behind links, and links to nothing; but not what was made of them."""
    names = ["c.heic", "d.3gp", "e.MTS", "f.avif", "g.jfif", "h.psd", "h.qt"]
    add(clips, **dict.fromkeys([*names, "shards/prepare.json", "shards/contact_sheet.png"], ""))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    add(elsewhere, i__mp4="")
    (clips / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(clips)
    (clips / "lost.mp4").symlink_to(clips / "nothing.mp4")
    found = sorted((Path(entry.path).name, entry.problem) for entry in read_manifest(clips))
    assert [name for name, _ in found] == ["a.mp4", "b.mp4", *names, "i.mp4", "lost.mp4"]
    assert [name for name, problem in found if problem] == ["lost.mp4"] and "there is no file" in found[-1][1]


def test_a_folder_that_cannot_be_looked_into_is_named(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clips / "closed").mkdir()
    scan = os.scandir

    def guarded(place: Any) -> Any:
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", guarded)  # tests run as root, whom nothing stops
    assert [entry.problem.partition(": ")[2] for entry in read_manifest(clips)] == ["", "", "Permission denied"]


def test_a_first_row_without_a_caption_is_bad_alone(clips: Path) -> None:
    first, second = read_manifest(write(clips, [{"path": "a.mp4"}, {"path": "b.mp4", "text": "x", "mirror": 1.0}], "jsonl"))
    assert "caption must say" in first.problem and (second.problem, second.mirror) == ("", True)


def test_names_that_look_like_urls_and_paths_through_links(clips: Path) -> None:
    add(clips, **{"clip::1.mp4": "", "s3:/c.mp4": "", "deep/er/x.md": "", "deep/d.mp4": ""})
    (clips / "link").symlink_to(clips / "deep" / "er")
    names = ["clip::1.mp4", "s3://c.mp4", "link/../d.mp4", "gs://bucket/e.mp4", "simplecache::s3://bucket/f.mp4"]
    entries = read_manifest(write(clips, [{"path": name, "caption": "x"} for name in names], "csv"))
    assert not any(entry.problem for entry in entries)
    assert [is_url(entry.path) for entry in entries] == [False, False, False, True, True]  # and those are not fetched yet
    assert all(os.path.samefile(entry.path, clips / name) for entry, name in zip(entries[:2], names, strict=False))


@pytest.mark.parametrize(
    ("text", "document", "words"),
    [(b"caf\xe9", b"[1", ("UTF-8", "readable JSON")), (b"", b"[1]", ("caption must say", "JSON object"))],
)
def test_side_files_that_are_no_captions(text: bytes, document: bytes, words: tuple[str, str], clips: Path) -> None:
    (clips / "a.txt").write_bytes(text)
    (clips / "b.json").write_bytes(document)
    assert all(said in entry.problem for said, entry in zip(words, read_manifest(clips), strict=True))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"path": "no.mp4"}, "there is no file"),
        ({"path": ""}, "path must be a file or URL, got ''"),
        ({"path": 7}, "path must be a file or URL, got 7"),
        ({"path": "."}, "is a folder"),
        ({"path": "empty.mp4"}, "0 bytes"),
        ({"path": "b.mp4", "caption": "again"}, "the same clip as row 1"),
        ({"caption": " \n "}, "caption must say"),
        ({"caption": None}, "caption must say"),
        ({"caption": "x" * 100_000}, f"at most {MAX_CAPTION} characters, got 100000"),
        ({"caption": "\ud800"}, "caption must be text in Unicode"),
        ({"caption": math.nan}, "caption must be text, got NaN"),
        ({"caption": {"en": "a cat"}}, "caption must be text, got an object"),
        ({"caption": True}, "caption must be text, got true"),
        ({"caption": 7}, "caption must be text, got 7"),
        ({"caption": " NaN"}, "caption must be text, got ' NaN'"),
        ({"caption": "None"}, "caption must be text"),
        ({"caption": "['a cat'\n 'a dog']"}, "name a column of lists captions"),
        ({"caption": "{}"}, "caption must be text"),
        ({"caption": "a", "text": "b"}, "one of caption and text must hold it, got both"),
        ({"path": "deep/../b.mp4"}, "the same clip as row 1"),
        ({"start": "1_0"}, "start must be seconds"),
        ({"captions": "{"}, "JSON list"),
        ({"captions": ["a cat", ["b"]]}, "caption must be text, got a list"),
        ({"captions": "[" * 10_000}, "JSON list"),
        ({"start": "soon"}, "start must be seconds"),
        ({"end": -1}, "end must be seconds"),
        ({"start": "nan"}, "start must be seconds"),
        ({"start": 2, "end": 2}, "end must be after start, got 2 to 2"),
        ({"start": 1e308}, "start must be seconds, 0 to 1e+06, got 1e+308"),
        ({"start": 10**400}, "start must be seconds"),
        ({"end": True}, "end must be seconds, 0 to 1e+06, got true"),
        ({"end": [1]}, "end must be seconds"),
        ({"mirror": "perhaps"}, "mirror must be true or false"),
    ],
)
def test_bad_rows_are_named_and_the_others_stay(row: dict[str, Any], words: str, clips: Path) -> None:
    (clips / "empty.mp4").touch()
    (clips / "deep").mkdir()
    good = {"path": "b.mp4", "caption": "fine"}
    rows = [good, {"path": "a.mp4", "caption": "x", **row}, {**good, "start": 3, "caption": "[noise] none is seen [noise]"}]
    first, second, third = read_manifest(write(clips, rows, "jsonl"))
    assert words in second.problem and "\n" not in second.problem
    assert (second.row, first.problem, third.problem) == (2, "", "")


def test_a_file_without_permission(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied", "a.mp4")

    path = write(clips, [{"path": "a.mp4", "caption": "x"}], "jsonl")
    monkeypatch.setattr("lumos.media.source.open", forbidden, raising=False)  # tests run as root, whom nothing stops
    assert "Permission denied" in read_manifest(path)[0].problem


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "at least one row"),
        ("a.csv", b"path,caption\n", "at least one row"),
        ("a.csv", b"file,text\na,b\n", "columns path and caption .*got file, text"),
        ("a.csv", b"path,caption, caption\na.mp4,x,y\n", "one column caption, got 2"),
        ("a.csv", b"path,caption\na.mp4,caf\xe9\n", "UTF-8, got other bytes in line 2"),
        ("a.csv", b"path,caption\na.mp4,a cat, asleep\n", "too many fields in line 2"),
        ("a.csv", b'path,caption\na.mp4,"never closed\n', "broken line"),
        ("a.jsonl", b"", "at least one row"),
        ("a.jsonl", b'{"path": 1, "caption": 2}\n[1]\n{}\n', "line 2"),
        ("a.jsonl", b'{"path": "a.mp4"}\n', "columns path and caption"),
        ("a.parquet", b"PAR1 no", "Parquet table"),
        ("a.mp4", b"x", "must be a .csv"),
        ("a.md", b"x", "must be a .csv"),
    ],
)
def test_manifests_that_cannot_be_read(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_manifest(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_no_manifest_and_no_videos(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no manifest"):
        read_manifest(tmp_path / "no.csv")
    with pytest.raises(ValueError, match="must hold videos"):
        read_manifest(tmp_path)


@given(st.text(), st.text())
def test_any_text_survives_jsonl_or_is_a_problem(path: str, caption: str) -> None:
    with TemporaryDirectory() as folder:
        add(Path(folder), a__jsonl=json.dumps({"path": path, "caption": caption}))
        (entry,) = read_manifest(Path(folder) / "a.jsonl")
        assert entry.problem or entry.captions == (" ".join(caption.split()),)
        assert os.sep in entry.path or entry.problem
