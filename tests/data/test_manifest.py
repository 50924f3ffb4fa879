"""A manifest in any form gives the same entries; every bad row is named, every unreadable manifest refused."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumos.data.manifest import MAX_CAPTION, Entry, read_manifest


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
        ({"path": "", "caption": "x"}, "path must not be empty"),
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
        ({"path": "b.mp4", "caption": "again"}, "the same clip as row 1"),
    ],
)
def test_bad_rows_are_named_and_the_others_stay(row: dict[str, Any], words: str, clips: Path) -> None:
    (clips / "empty.mp4").touch()
    good = {"path": "b.mp4", "caption": "fine"}
    first, second, third = read_manifest(write(clips, [good, row, {"path": "b.mp4", "caption": "fine", "start": 3}], "jsonl"))
    assert words in second.problem and "; " in second.problem and "\n" not in second.problem
    assert (second.row, first.problem, third.problem) == (2, "", "")


def test_a_file_without_permission(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = write(clips, [{"path": "a.mp4", "caption": "x"}], "jsonl")
    monkeypatch.setattr("lumos.data.manifest.open", forbidden, raising=False)  # tests run as root, whom nothing stops
    assert "Permission denied" in read_manifest(path)[0].problem


def test_urls_are_not_fetched_yet(clips: Path) -> None:
    (entry,) = read_manifest(write(clips, [{"path": "https://nowhere.invalid/a.mp4", "caption": "x"}], "csv"))
    assert entry == Entry(1, "https://nowhere.invalid/a.mp4", ("x",))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "columns path and caption"),
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
