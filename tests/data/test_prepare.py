"""`lumos prepare` makes the same rows however often it is killed, with any number of processes; bad inputs are listed only."""

import csv
import errno
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from torch import Tensor

from lumos.cli.main import main
from lumos.config import PACKAGED
from lumos.data.clips import Cut, read_clips
from lumos.data.manifest import Entry, read_manifest
from lumos.data.prepare import PrepareConfig, _finish, prepare_shards
from lumos.data.shards import open_shards, unpack_codes, unpack_picture
from lumos.media.video import read_video, write_video
from lumos.ranks import ALONE, Ranks
from lumos.tokenizer.model import load_tokenizer, save_tokenizer
from lumos.weights import fingerprint
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import sample_scene
from tests.toy_model import toy_tokenizer

SIZE = 32
CUT = Cut(frames=5, fps=8.0, sizes=((SIZE, SIZE),), least=5)
CONFIG = PrepareConfig(CUT, rows=2, batch=3)
OPTIONS = ["--size=32x32", "--frames=5", "--fps=8", "--least=5", "--rows=2", "--batch=3", "--device=cpu", "--json"]


def moving(seed: int, frames: int) -> Tensor:
    return render(pack([sample_scene(random.Random(seed))]), frames, SIZE, 8.0)[0]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine videos and an image with captions, a tokenizer."""
    folder = tmp_path_factory.mktemp("material")
    lines = ["path,caption,mirror"]
    for number in range(9):
        write_video(folder / f"{number}.mp4", moving(number, 5 + 4 * (number % 4)), 8)
        lines.append(f"{number}.mp4,clip number {number},{number % 3 == 0}")
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(folder / "gray.png")
    (folder / "clips.csv").write_text("\n".join([*lines, "gray.png,a gray picture,"]))
    save_tokenizer(folder / "tokenizer", toy_tokenizer())
    return folder


def run(material: Path, out: Path, config: PrepareConfig = CONFIG, ranks: Ranks = ALONE, **how: int) -> dict[str, Any]:
    return prepare_shards(material / "clips.csv", out, config, load_tokenizer(material / "tokenizer"), ranks, **how)


def command(material: Path, out: Path, manifest: str = "clips.csv") -> list[str]:
    return ["prepare", str(material / manifest), str(out), "--tokenizer", str(material / "tokenizer"), *OPTIONS]


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]


def rejected_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "rejected.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def whole(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "new" / "shards"
    run(material, out)
    return out


def test_shards_hold_codes_captions_and_where_they_came_from(material: Path, whole: Path) -> None:
    rows = rows_of(whole)
    first = rows[0]
    assert first["captions"] == ["clip number 0"] and first["source"] == str(material / "0.mp4") and first["fps"] == 8.0
    assert (first["T"], first["H"], first["W"], first["frames"], first["start"]) == (2, 4, 4, 5, 0.0)
    assert {row["tokenizer"] for row in rows} == {fingerprint(toy_tokenizer())}
    pixels_CFHW = read_video(material / "0.mp4", 8, SIZE, SIZE, 5).pixels_CFHW
    both = toy_tokenizer().encode(torch.stack([pixels_CFHW, pixels_CFHW.flip(-1)]))  # the second is its mirrored copy
    found = torch.stack([unpack_codes(row["codes"], 2, 4, 4) for row in rows[:2]])
    assert (found != both).float().mean((1, 2, 3)).max() < 0.1  # bfloat16 is not exact
    assert (both[0] != both[1]).float().mean() > 0.2
    assert [row["T"] for row in rows if row["source"].endswith("gray.png")] == [1]
    assert open_shards(whole).sizes_N3.tolist() == [[row[side] for side in "THW"] for row in rows]
    names = [*(f"{i:06}.parquet" for i in range(5)), "prepare.json", "rejected.csv"]
    assert sorted(path.name for path in whole.iterdir()) == names


def test_mirrored_copies(whole: Path, material: Path, tmp_path: Path) -> None:
    assert {int(Path(row["source"]).stem) for row in rows_of(whole) if row["mirrored"]} == {0, 3, 6}  # the marked ones
    counts = {}
    for mirror in ("none", "all"):
        run(material, tmp_path / mirror, PrepareConfig(CUT, mirror=mirror, rows=4))
        counts[mirror] = [row["mirrored"] for row in rows_of(tmp_path / mirror)].count(True), len(rows_of(tmp_path / mirror))
    assert counts["none"][0] == 0 and counts["all"] == (counts["none"][1], 2 * counts["none"][1])


def test_processes_share_the_work_and_the_last_one_tells(material: Path, whole: Path, tmp_path: Path) -> None:
    documents = [run(material, tmp_path / "out", ranks=Ranks(rank, 3, ALONE.device), workers=1 + rank) for rank in (2, 0, 1)]
    assert [document["finished"] for document in documents] == [False, False, True]
    assert documents[2]["clips"] == len(rows_of(whole)) and rows_of(tmp_path / "out") == rows_of(whole)
    assert rejected_of(tmp_path / "out") == []


KILLS = """
import hashlib, json, os, pathlib, signal, sys
from lumos.cli.main import main
from lumos.data import prepare, shards
PLACES = {"begin": (prepare, "_begin"), "encode": (prepare._Maker, "_tokenise"), "written": (os, "fsync"),
          "renamed": (os, "replace")}
def die(place, count):
    owner, name = PLACES[place]
    real, calls = getattr(owner, name), []
    def deadly(*args, **more):
        calls.append(1)
        if place == "renamed" and len(calls) == count:
            real(*args, **more)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    setattr(owner, name, deadly)
    os._exit(main(sys.argv[2:]))
for place, count in [("begin", 1), ("written", 2), ("encode", 4), ("renamed", 1)]:
    child = os.fork() or die(place, count)
    killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in pathlib.Path(sys.argv[1]).glob("*.parquet")}
    print(json.dumps([place, killed, files]), flush=True)
"""


def test_killed_again_and_again_the_rows_are_those_of_an_unbroken_run(material: Path, whole: Path, tmp_path: Path) -> None:
    """Killed at the very start, while tokenising, before and after a shard's file takes its place."""
    out, words = tmp_path / "out", command(material, tmp_path / "out")
    result = subprocess.run([sys.executable, "-c", KILLS, out, *words], stdout=subprocess.PIPE, text=True, check=True)
    kills, done = [json.loads(line) for line in result.stdout.splitlines()], 0
    for place, killed, files in kills:
        assert killed and len(files) >= done, place
        done = len(files)
        for name, digest in files.items():  # nothing half-written is ever there
            assert hashlib.sha256((whole / name).read_bytes()).hexdigest() == digest
    assert len(kills) == 4 and 0 < done < 5
    with pytest.raises(ValueError, match=rf"must be finished, got {done} of 5 shards"):
        open_shards(out)
    assert main(words) == 0
    assert rows_of(out) == rows_of(whole)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_a_full_disk_is_said_and_resumed_from_as_damage_is_not(
    material: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left to write .*000001.parquet; free some"):
        run(material, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.parquet", "prepare.json"]
    document = run(material, tmp_path / "out")
    assert document["clips_made"] < document["clips"] and rows_of(tmp_path / "out") == rows_of(whole)
    os.truncate(tmp_path / "out" / "000001.parquet", 1000)
    with pytest.raises(ValueError, match="000001.parquet is damaged"):  # not taken for an empty one
        run(material, tmp_path / "out")


BAD = [
    ("text.mp4", b"path,caption\n" * 50, "no readable video"),
    ("cut.mp4", None, "no readable video|cut off|damaged"),
    ("zero.mp4", b"", "0 bytes"),
    ("unfilled.y4m", b"YUV4MPEG2 W64 H64 F8:1 C420\n", "must have frames"),
    ("missing.mp4", None, "there is no file"),
    ("folder.mp4", None, "is a folder"),
    ("gone://nowhere/a.mp4", None, "gone"),
]


def test_bad_inputs_are_listed_and_do_not_stop_the_run(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content, _ in BAD:
        if content is not None:
            (tmp_path / name).write_bytes(content)
    good = (material / "3.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "folder.mp4").mkdir()
    write_video(tmp_path / "one.mp4", moving(2, 1), 8)
    lines = [f"{name},a caption" for name, _, _ in BAD] + ["one.mp4,a picture", f"{material}/0.mp4,", f"{material}/0.mp4,good"]
    (tmp_path / "clips.csv").write_text("\n".join(["path,caption", *lines]))
    words = command(material, tmp_path / "out", str(tmp_path / "clips.csv"))
    assert main([*words, "--dry-run"]) == 0
    foretold = json.loads(capsys.readouterr().out)
    assert [foretold[name] for name in ("rows", "problems", "looked_at", "unreadable")] == [10, 4, 5, 3]
    assert main(words) == 3
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["rejected"], document["clips"], document["images"]) == (len(BAD) + 1, 2, 1)
    assert "4 of 10 rows cannot be used, the first is row 3" in err
    rejected = rejected_of(tmp_path / "out")
    for entry, (name, _, pattern) in zip(rejected, BAD, strict=False):
        assert entry["path"].endswith(name) and re.search(pattern, entry["reason"]), entry
    assert (rejected[-1]["row"], rejected[-1]["shard"]) == ("9", "000004.parquet")
    assert "caption must say" in rejected[-1]["reason"]
    assert main(words) == 3  # nothing to do, and still true
    assert main(["inspect", str(tmp_path / "out"), "--json", "--tokenizer", str(material / "tokenizer")]) == 0


def test_clips_of_a_rejected_input_do_not_stay(material: Path, tmp_path: Path) -> None:
    """A long file whose last part is missing makes many good clips before its end tells."""
    content = write_video(tmp_path / "long.mp4", moving(3, 161), 8).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 4 // 5])
    (tmp_path / "clips.csv").write_text(f"path,caption\n{material}/0.mp4,good\ncut.mp4,cut\n{material}/1.mp4,good\n")
    for name, tokenizer in (("codes", toy_tokenizer()), ("pictures", None)):
        document = prepare_shards(tmp_path / "clips.csv", tmp_path / name, PrepareConfig(CUT, batch=3), tokenizer, ALONE)
        assert document["rejected"] == 1 and ("codes" in document) == (name == "codes")
        assert {Path(row["source"]).name for row in rows_of(tmp_path / name)} == {"0.mp4", "1.mp4"}


def test_rejected_rows_can_be_mended(material: Path, tmp_path: Path) -> None:
    """A missing file and a wrong row, both marked to be mirrored: mended, their shard deleted, the same command."""
    manifest, out = tmp_path / "clips.csv", tmp_path / "out"
    lines = ["path,caption,mirror", f"{material}/0.mp4,good,true", "late.mp4,late,true", f"{material}/1.mp4,,true"]
    manifest.write_text("\n".join(lines))
    config = PrepareConfig(CUT, rows=1)
    assert prepare_shards(manifest, out, config, toy_tokenizer(), ALONE)["rejected"] == 2
    (tmp_path / "late.mp4").write_bytes((material / "2.mp4").read_bytes())
    assert prepare_shards(manifest, out, config, toy_tokenizer(), ALONE)["rejected"] == 2  # what is there stays
    manifest.write_text("\n".join([*lines[:3], f"{material}/1.mp4,said now,true"]))
    with pytest.raises(ValueError, match="begun with another manifest"):
        prepare_shards(manifest, out, config, toy_tokenizer(), ALONE)
    for number in (1, 2):
        (out / f"{number:06}.parquet").unlink()
    document = prepare_shards(manifest, out, config, toy_tokenizer(), ALONE)
    assert document["rejected"] == 0 and {row["captions"][0] for row in rows_of(out)} == {"good", "late", "said now"}


def test_one_frame_clips_and_names_in_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "in" / "gray.png")
    write_video(tmp_path / "in" / "a.mp4", moving(1, 3), 8)
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"x")
    config = PrepareConfig(Cut(1, 8.0, CUT.sizes, step=1, least=1))
    document = prepare_shards(tmp_path / "in", tmp_path / "out", config, None, ALONE)
    assert (document["clips"], document["images"], document["rejected"]) == (4, 4, 1)
    assert "Unicode" in rejected_of(tmp_path / "out")[0]["reason"]


def test_any_fault_of_a_row_is_its_rejection(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {f"{i}.mp4": fault for i, fault in enumerate((AttributeError("width"), ZeroDivisionError(), MemoryError()))}

    def strange(entry: Entry, *more: Any) -> Any:
        if fault := faults.get(Path(entry.path).name):
            raise fault
        yield from read_clips(entry, *more)

    monkeypatch.setattr("lumos.data.prepare.read_clips", strange)
    assert run(material, tmp_path / "out")["rejected"] == 3
    reasons = [line["reason"] for line in rejected_of(tmp_path / "out")]
    assert reasons[:2] == ["width", "ZeroDivisionError"] and "memory" in reasons[2]
    monkeypatch.setattr("lumos.data.prepare._Maker._tokenise", lambda *_: 1 / 0)  # a fault of ours is none of a row
    with pytest.raises(ZeroDivisionError):
        run(material, tmp_path / "more")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--frames", "6"], "frames must be 1 + 4k, got 6; use 9"),
        (["--size", "30x32"], "multiples of 8, got 32x30; use 32x32"),
        (["--size", "big"], "--size must be WIDTHxHEIGHT"),
        (["--fps", "1000"], "--fps must be 0.01 to 240, got 1000"),
        (["--every", "0"], "--every must be 0.01 to"),
        (["--scene-cuts", "2"], "--scene-cuts must be 0.01 to 0.99"),
        (["--workers", "0"], "--workers must be 1 to 1024"),
        (["--device", "gpu9"], "device must be cpu, cuda"),
        (["--rows", "0"], "--rows must be 1 to"),
    ],
)
def test_wrong_options(more: list[str], words: str, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(material, tmp_path / "out"), *more]) == 2
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_dry_run_foretells_the_run(material: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*command(material, tmp_path / "out"), "--dry-run"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    rows = rows_of(whole)
    assert (document["clips"], document["shards"]) == (len(rows), 5) and not (tmp_path / "out").exists()
    seconds = sum((5 + 4 * (number % 4)) / 8 for number in range(9))
    assert document["hours"] == pytest.approx(seconds / 3600, abs=1e-4) and document["hours"] > 0
    assert document["bytes"] == sum(len(row["codes"]) for row in rows)
    assert document["ids"] == sum(row["T"] * (row["H"] * (row["W"] + 1) + 4) for row in rows)
    assert main([*words, "--pixels"]) == 0  # pictures are mirrored when they are tokenised
    assert json.loads(capsys.readouterr().out)["clips"] == sum(not row["mirrored"] for row in rows)
    assert main([*words[:3], "--dry-run", "--json"]) == 0  # sizes are those of the weights in the package
    assert json.loads(capsys.readouterr().out)["rows"] == 10
    assert main(words[:5]) == 2
    assert "give --size, --frames, --fps" in capsys.readouterr().err


def test_other_settings_or_another_manifest_need_another_folder(material: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"begun with another frames = 5; choose"):
        run(material, whole, PrepareConfig(Cut(9, 8.0, CUT.sizes, least=5), rows=2, batch=3))
    with pytest.raises(ValueError, match="begun with another tokenizer"):
        prepare_shards(material / "clips.csv", whole, CONFIG, toy_tokenizer(seed=1), ALONE)
    lines = (material / "clips.csv").read_text().splitlines()
    (material / "other.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="begun with another manifest"):
        prepare_shards(material / "other.csv", whole, CONFIG, toy_tokenizer(), ALONE)
    (tmp_path / "mine.txt").write_text("a thesis")
    with pytest.raises(FileExistsError, match="new or empty folder"):
        run(material, tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        run(material, tmp_path / "mine.txt")


def test_manifests_that_cannot_be_used(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips.csv").write_text("path,caption\nno.mp4,x\n")
    with pytest.raises(ValueError, match="a row that can be used, got none of 1: there is no file"):
        prepare_shards(tmp_path / "clips.csv", tmp_path / "out", CONFIG, None, ALONE)

    def forbidden(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", forbidden)  # tests run as root, whom nothing stops
    assert main([*command(material, tmp_path / "out"), "--pixels"]) == 2
    line = capsys.readouterr().err
    assert "clips.csv" in line and "ermission denied" in line and line.count("\n") == 1 and not (tmp_path / "out").exists()


def test_pictures_can_be_tokenised_later(material: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PrepareConfig(Cut(40, 8.0, CUT.sizes, step=1, least=1), rows=4)
    prepare_shards(material / "clips.csv", tmp_path / "pictures", config, None, ALONE)
    rows = rows_of(tmp_path / "pictures")
    assert [row["F"] for row in rows] == [*(5 + 4 * (number % 4) for number in range(9)), 1]
    rgb_FHWC = unpack_picture(rows[1]["picture"], rows[1]["F"], SIZE, SIZE)
    assert np.abs(rgb_FHWC / 127.5 - 1 - moving(1, 9).permute(1, 2, 3, 0).numpy()).mean() < 0.08
    entries = read_manifest(tmp_path / "pictures")
    assert entries[0] == Entry(1, str(tmp_path / "pictures" / "000000.parquet"), ("clip number 0",), mirror=True, stored=0)
    assert [entry.stored for entry in entries] == list(range(len(rows)))
    document = prepare_shards(tmp_path / "pictures", tmp_path / "codes", CONFIG, toy_tokenizer(), ALONE)
    same = ("T", "H", "W", "captions", "start", "mirrored", "frames")
    again, direct = ([[row[name] for name in same] for row in rows_of(out)] for out in (tmp_path / "codes", whole))
    assert document["rejected"] == 0 and again == direct
    assert main(["inspect", str(tmp_path / "pictures"), "--sheet", str(tmp_path / "sheet.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["holds"] == "pictures" and (tmp_path / "sheet.png").exists()
    with pytest.raises(ValueError, match="holds codes already"):
        prepare_shards(tmp_path / "codes", tmp_path / "more", CONFIG, toy_tokenizer(), ALONE)
    assert main(["prepare", str(tmp_path / "pictures"), "nowhere", *command(material, tmp_path)[3:], "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == len(direct)


def test_leftovers_of_a_kill_are_deleted_and_nothing_else(whole: Path) -> None:
    (whole / ".thesis.partial").write_text("precious")
    (whole / ".000003.parquet.12.34.partial").write_text("half")
    _finish(whole, 5)
    assert (whole / ".thesis.partial").exists() and not (whole / ".000003.parquet.12.34.partial").exists()
    (whole / ".thesis.partial").unlink()


def test_inspect_says_what_is_there(whole: Path, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    words = ["inspect", str(whole), "--sheet", str(sheet), "--tokenizer", str(material / "tokenizer"), "--json"]
    assert main([*words, "--count", "4"]) == 0
    document = json.loads(capsys.readouterr().out)
    clips = len(rows_of(whole))
    assert (document["clips"], document["images"], document["shards"]) == (clips, 1, 5)
    assert document["sizes"] == {"2x4x4": clips - 1, "1x4x4": 1} and "clip number 0" in document["captions"]
    with Image.open(sheet) as picture:
        assert picture.height > 4 * SIZE
    before = sheet.read_bytes()
    for more, said in (
        (words, "--force"),
        ([*words[:4], "--tokenizer", PACKAGED, "--force"], "must be made with this tokenizer"),
        (["inspect", str(tmp_path)], "must be a folder of shards (.parquet), got none"),
        (["inspect", str(tmp_path / "no")], "must be a folder of shards"),
    ):
        assert main(more) == 2
        assert said in capsys.readouterr().err
    assert sheet.read_bytes() == before
    assert main([*words, "--count", "2", "--force"]) == 0 and sheet.read_bytes() != before
