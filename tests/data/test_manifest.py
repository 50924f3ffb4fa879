"""A manifest in any form gives the same entries; every bad row is named, every unreadable manifest refused."""

import json
import math
import os
from pathlib import Path
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


def write(folder: Path, rows: list[dict[str, Any]], kind: str) -> Path:
    path = folder / f"clips.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", "utf-8")
    elif kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        between = "\t" if kind == "tsv" else ","
        names = list(rows[0])
        lines = [between.join(names), *(between.join(f'"{row.get(name, "")}"' for name in names) for row in rows)]
        path.write_text("\ufeff" + "\r\n".join(lines), "utf-8")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_form_gives_the_same_entries(kind: str, clips: Path) -> None:
    rows = [
        {"path": "a.mp4", "caption": "a cat, asleep", "start": 0.5, "end": 2.0, "mirror": True, "other": 1},
        {"path": str(clips / "b.mp4"), "caption": "ein B\u00e4r", "start": 0, "end": 1, "mirror": False, "other": 2},
    ]
    assert read_manifest(write(clips, rows, kind)) == [
        Entry(1, str(clips / "a.mp4"), ("a cat, asleep",), 0.5, 2.0, mirror=True),
        Entry(2, str(clips / "b.mp4"), ("ein B\u00e4r",), 0.0, 1.0),
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_several_captions(kind: str, clips: Path) -> None:
    given: Any = ["one", " two\n lines ", "one", ""]
    rows = [{"path": "a.mp4", "captions": json.dumps(given).replace('"', '""') if kind == "csv" else given}]
    assert read_manifest(write(clips, rows, kind))[0].captions == ("one", "two lines")


def test_a_folder_with_side_files_or_file_names(clips: Path) -> None:
    (clips / "a.txt").write_text("first\nsecond\n", "utf-8")
    (clips / "b.json").write_text('{"caption": "from json", "start": 1, "mirror": true}')
    (clips / "deep").mkdir()
    (clips / "deep" / "a_red-car_0012.MOV").write_bytes(b"x")
    (clips / "deep" / "2024.png").write_bytes(b"x")
    (clips / "deep" / "notes.md").write_bytes(b"x")
    found = {Path(entry.path).name: entry for entry in read_manifest(clips)}
    assert found["a.mp4"].captions == ("first", "second")
    assert (found["b.mp4"].captions, found["b.mp4"].start, found["b.mp4"].mirror) == (("from json",), 1.0, True)
    assert found["a_red-car_0012.MOV"].captions == ("a red car",)
    assert found["2024.png"].captions == ("2024",)
    assert [entry.row for entry in found.values()] == [1, 2, 3, 4] and not any(entry.problem for entry in found.values())


def test_what_text_editors_and_systems_add_is_no_caption(clips: Path) -> None:
    """Byte-order marks, line ends that are none, companions of macOS."""
    (clips / "a.txt").write_bytes("\ufeffa red cat\r\nit\u2028sleeps\x0c\x85\n".encode())
    (clips / "b.json").write_bytes('\ufeff{"caption": "a cat"}'.encode())
    (clips / "._a.mp4").write_bytes(b"Mac OS X")
    (clips / ".hidden").mkdir()
    (clips / ".hidden" / "c.mp4").write_bytes(b"x")
    first, second = read_manifest(clips)
    assert first.captions == ("a red cat", "it sleeps") and second.captions == ("a cat",)
    assert not first.problem and not second.problem
    (clips / "clips.jsonl").write_bytes('\ufeff{"path": "a.mp4", "caption": "a\u2028b\x85c"}'.encode())
    (entry,) = read_manifest(clips / "clips.jsonl")
    assert entry.captions == ("a b c",) and not entry.problem


def test_a_caption_may_be_a_list_and_null_is_nothing(clips: Path) -> None:
    rows = [{"path": "a.mp4", "caption": ["a cat", "a cat sleeps"]}, {"path": "b.mp4", "captions": ["a cat", None]}]
    assert [entry.captions for entry in read_manifest(write(clips, rows, "jsonl"))] == [("a cat", "a cat sleeps"), ("a cat",)]
    missing = [{"path": "a.mp4", "caption": "a", "start": math.nan}, {"path": "b.mp4", "caption": None, "start": 1.0}]
    first, second = read_manifest(write(clips, missing, "parquet"))
    assert (first.start, first.problem) == (None, "") and "caption must say" in second.problem


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_folder_as_hugging_face_lays_it_out(kind: str, clips: Path) -> None:
    (clips / "train").mkdir()
    (clips / "train" / "c.png").write_bytes(b"x")
    rows = [{"file_name": "train/c.png", "text": "a cat"}, {"file_name": "a.mp4", "text": "a dog, asleep"}]
    write(clips, rows, kind).rename(clips / f"metadata.{kind}")
    first, second, third = read_manifest(clips)
    assert (first.path, first.captions) == (str(clips / "train" / "c.png"), ("a cat",))
    assert (second.path, second.captions) == (str(clips / "a.mp4"), ("a dog, asleep",))
    assert Path(third.path).name == "b.mp4" and "must have a row for every file" in third.problem


def test_every_picture_and_video_of_a_folder_is_read_or_named(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also what cannot be read, what lies behind links, and links to nothing."""
    for name in ("c.heic", "d.3gp", "e.MTS", "f.avif", "g.jfif", "h.psd"):
        (clips / name).write_bytes(b"x")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "i.mp4").write_bytes(b"x")
    (clips / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(clips)
    (clips / "lost.mp4").symlink_to(clips / "nothing.mp4")
    found = {Path(entry.path).name: entry.problem for entry in read_manifest(clips)}
    assert sorted(found) == ["a.mp4", "b.mp4", "c.heic", "d.3gp", "e.MTS", "f.avif", "g.jfif", "h.psd", "i.mp4", "lost.mp4"]
    assert [name for name, problem in found.items() if problem] == ["lost.mp4"] and "there is no file" in found["lost.mp4"]


def test_names_that_look_like_urls_and_paths_through_links(clips: Path) -> None:
    (clips / "clip::1.mp4").write_bytes(b"x")
    (clips / "s3:").mkdir()
    (clips / "s3:" / "c.mp4").write_bytes(b"x")
    (clips / "deep" / "er").mkdir(parents=True)
    (clips / "link").symlink_to(clips / "deep" / "er")
    (clips / "deep" / "d.mp4").write_bytes(b"x")
    names = ["clip::1.mp4", "s3://c.mp4", "link/../d.mp4", "gs://bucket/e.mp4", "simplecache::s3://bucket/f.mp4"]
    entries = read_manifest(write(clips, [{"path": name, "caption": "x"} for name in names], "csv"))
    assert not any(entry.problem for entry in entries)
    assert [is_url(entry.path) for entry in entries] == [False, False, False, True, True]
    assert all(os.path.samefile(entry.path, clips / name) for entry, name in zip(entries[:2], names, strict=False))


def test_side_files_that_are_no_captions(clips: Path) -> None:
    (clips / "a.txt").write_bytes(b"caf\xe9")
    (clips / "b.json").write_text("[1")
    assert ["a.txt" in entry.problem or "b.json" in entry.problem for entry in read_manifest(clips)] == [True, True]
    (clips / "a.txt").write_bytes(b"")
    (clips / "b.json").write_text("[1]")
    first, second = read_manifest(clips)
    assert "caption must say" in first.problem and "JSON object" in second.problem


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"path": "no.mp4", "caption": "x"}, "there is no file"),
        ({"path": "", "caption": "x"}, "path must be a file or URL, got ''"),
        ({"path": ".", "caption": "x"}, "is a folder"),
        ({"path": "empty.mp4", "caption": "x"}, "0 bytes"),
        ({"path": "a.mp4", "caption": ""}, "caption must say"),
        ({"path": "a.mp4", "caption": " \n "}, "caption must say"),
        ({"path": "a.mp4"}, "caption must say"),
        ({"path": "a.mp4", "caption": "x" * 100_000}, f"at most {MAX_CAPTION} characters, got 100000"),
        ({"path": "a.mp4", "captions": "{"}, "JSON list"),
        ({"path": "a.mp4", "caption": "x", "start": "soon"}, "start must be seconds"),
        ({"path": "a.mp4", "caption": "x", "end": -1}, "end must be seconds"),
        ({"path": "a.mp4", "caption": "x", "start": "nan"}, "start must be seconds"),
        ({"path": "a.mp4", "caption": "x", "start": 2, "end": 2}, "end must be after start, got 2 to 2"),
        ({"path": "a.mp4", "caption": "x", "mirror": "perhaps"}, "mirror must be true or false"),
        ({"path": "a.mp4", "caption": math.nan}, "caption must be text, got NaN"),
        ({"path": "a.mp4", "caption": {"en": "a cat"}}, "caption must be text, got an object"),
        ({"path": "a.mp4", "caption": True}, "caption must be text, got true"),
        ({"path": "a.mp4", "caption": 7}, "caption must be text, got 7"),
        ({"path": "a.mp4", "captions": ["a cat", ["b"]]}, "caption must be text, got a list"),
        ({"path": "a.mp4", "captions": "[" * 10_000}, "JSON list"),
        ({"path": 7, "caption": "x"}, "path must be a file or URL, got 7"),
        ({"path": "a.mp4", "caption": "x", "start": 1e308}, "start must be seconds, 0 to 1e+06, got 1e+308"),
        ({"path": "a.mp4", "caption": "x", "start": 10**400}, "start must be seconds"),
        ({"path": "a.mp4", "caption": "x", "end": True}, "end must be seconds, 0 to 1e+06, got true"),
        ({"path": "a.mp4", "caption": "x", "end": [1]}, "end must be seconds"),
        ({"path": "a.mp4", "caption": "x", "end": math.inf}, "end must be seconds"),
        ({"path": "b.mp4", "caption": "again"}, "the same clip as row 1"),
    ],
)
def test_bad_rows_are_named_and_the_others_stay(row: dict[str, Any], words: str, clips: Path) -> None:
    (clips / "empty.mp4").touch()
    good = {"path": "b.mp4", "caption": "fine"}
    first, second, third = read_manifest(write(clips, [good, row, {"path": "b.mp4", "caption": "fine", "start": 3}], "jsonl"))
    assert words in second.problem and "\n" not in second.problem
    assert (second.row, first.problem, third.problem) == (2, "", "")


def test_a_file_without_permission(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied", "a.mp4")

    path = write(clips, [{"path": "a.mp4", "caption": "x"}], "jsonl")
    monkeypatch.setattr("lumos.media.source.open", forbidden, raising=False)  # tests run as root, whom nothing stops
    assert "Permission denied" in read_manifest(path)[0].problem


def test_urls_are_not_fetched_yet(clips: Path) -> None:
    (entry,) = read_manifest(write(clips, [{"path": "https://nowhere.invalid/a.mp4", "caption": "x"}], "csv"))
    assert entry == Entry(1, "https://nowhere.invalid/a.mp4", ("x",))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "at least one row"),
        ("a.csv", b"path,caption\n", "at least one row"),
        ("a.csv", b"file,text\na,b\n", "got file, text"),
        ("a.csv", b"path,caption\na.mp4,caf\xe9\n", "UTF-8, got other bytes in line 2"),
        ("a.csv", b"path,caption\na.mp4,a cat, asleep\n", "too many fields in line 2"),
        ("a.csv", b'path,caption\na.mp4,"never closed\n', "broken line"),
        ("a.jsonl", b"", "at least one row"),
        ("a.jsonl", b'{"path": 1, "caption": 2}\n[1]\n', "line 2"),
        ("a.jsonl", b'{"path": "a.mp4"}\n', "columns path and caption"),
        ("a.parquet", b"PAR1 no", "Parquet table"),
        ("a.mp4", b"x", "must be a .csv"),
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
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        line = json.dumps({"path": path, "caption": caption})
        (Path(folder) / "a.jsonl").write_text(line, "utf-8")
        (entry,) = read_manifest(Path(folder) / "a.jsonl")
        assert entry.problem or entry.captions == (" ".join(caption.split()),)
        assert os.sep in entry.path or entry.problem
