"""Damaged or strange shards are refused in one line: no bit of a clip changes without a word."""

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch

from lumos.data.clips import Cut
from lumos.data.prepare import PrepareConfig, prepare_shards
from lumos.data.shards import (
    CODES,
    COSMOS,
    ShardIndex,
    ShardReader,
    check_tokenizer,
    clip_schema,
    open_shards,
    pack_codes,
    pack_picture,
    unpack_codes,
    unpack_picture,
    write_shard,
)
from lumos.media.video import read_video, write_video
from lumos.ranks import ALONE
from lumos.weights import fingerprint
from tests.tokenizer import small
from tests.tokenizer.small import made
from tests.toy_model import toy_tokenizer


def row(number: int, **more: Any) -> dict[str, Any]:
    codes_THW = torch.randint(0, 1000, (2, 4, 4), generator=torch.Generator().manual_seed(number))
    facts = {"codes": pack_codes(codes_THW), "T": 2, "H": 4, "W": 4, "fps": 8.0, "frames": 5, "source": f"{number}.mp4"}
    facts |= {"captions": [f"clip {number}"], "start": 0.5 * number, "mirrored": False, "tokenizer": "t"}
    return {**facts, **more}


def content(folder: Path | str) -> list[dict[str, Any]]:
    reader = ShardReader(open_shards(folder), ["clip", "captions", "source", "start"])
    rows = [reader.row(number) for number in range(len(reader.index))]
    return [{**row, "clip": row["clip"].tolist()} for row in rows]


def test_no_flipped_bit_gives_other_data(tmp_path: Path) -> None:
    path = tmp_path / "000000.parquet"
    write_shard(path, CODES, "t", [row(number) for number in range(20)], [])
    whole, expected = path.read_bytes(), content(tmp_path)
    rng, refused = np.random.default_rng(0), 0
    for place in rng.integers(0, 8 * len(whole), 300).tolist():
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = content(tmp_path)
        except (ValueError, OSError) as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert found == expected, place
    assert refused > 100
    path.write_bytes(whole.replace(b"captions", b"\x80aptions"))
    with pytest.raises(ValueError, match=r"000000\.parquet is damaged"):
        content(tmp_path)


@pytest.mark.parametrize("codebook", [1000, 2**16, 2**16 + 1, 2**24, 2**31])
def test_codes_of_any_codebook_come_back(codebook: int) -> None:
    codes_THW = torch.tensor([0, 1, codebook - 2, codebook - 1]).view(1, 2, 2)
    content = pack_codes(codes_THW, codebook)
    assert unpack_codes(content, 1, 2, 2, codebook).equal(codes_THW)
    with pytest.raises(ValueError, match=r"codes must be below|must take"):
        unpack_codes(content, 1, 2, 2, codebook - 1)


def test_clips_of_a_large_codebook_come_back(tmp_path: Path) -> None:
    tokenizer, pixels_CFHW = toy_tokenizer((8,) * 8), torch.rand(3, 5, 32, 32).mul(2).sub(1)
    write_video(tmp_path / "a.mp4", pixels_CFHW, 8)
    (tmp_path / "clips.csv").write_text("path,caption\na.mp4,noise\n")
    prepare_shards(tmp_path / "clips.csv", tmp_path / "out", PrepareConfig(Cut(5, 8.0, ((32, 32),))), tokenizer, ALONE)
    found = ShardReader(open_shards(tmp_path / "out"), ["clip"], codebook=8**8).row(0)["clip"]
    expected = tokenizer.encode(read_video(tmp_path / "a.mp4", 8, 32, 32, 5).pixels_CFHW[None])[0]
    digits = [(codes[..., None] // 8 ** torch.arange(8)) % 8 for codes in (found, expected)]
    assert int(found.max()) > 2**16 and float((digits[0] == digits[1]).float().mean()) > 0.9  # bfloat16 is not exact


def set_column(table: Any, name: str, values: Any) -> Any:
    return table.set_column(table.schema.names.index(name), name, values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop_columns(["T"]), 'Field "T" does not exist'),
        (lambda table: table.drop_columns(["tokenizer"]), 'Field "tokenizer" does not exist'),
        (lambda table: set_column(table, "codes", pyarrow.array(["x"] * 3)), "2x4x4 codes must take 64 bytes, got 1"),
        (lambda table: set_column(table, "T", pyarrow.array([1, None, 2], "int32")), "empty fields in T"),
        (lambda table: set_column(table, "captions", pyarrow.array([["a"], None, ["b"]])), "empty fields in captions"),
        (lambda table: set_column(table, "captions", pyarrow.array(["a", "b", "c"])), "captions.* as lumos writes them"),
        (lambda table: set_column(table, "H", pyarrow.array([4, -1, 4], "int32")), "clips of at least 1x1x1"),
        (lambda table: table.replace_schema_metadata({"format": b"\xff"}), "a shard that lumos wrote"),
    ],
)
def test_strange_columns_are_named(change: Any, words: str, tmp_path: Path) -> None:
    schema = clip_schema(list(row(0))).with_metadata({"format": CODES})
    table = pyarrow.Table.from_pylist([row(number) for number in range(3)], schema)
    parquet.write_table(change(table), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=words) as caught:
        content(tmp_path)
    assert "a.parquet" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", ["null", "[]", '{"shards": "many"}', "{", "[" * 100_000])
def test_settings_that_prepare_did_not_write(settings: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "000000.parquet", CODES, "t", [row(0)], [])
    (tmp_path / "prepare.json").write_text(settings)
    with pytest.raises(ValueError, match="prepare.json (is not readable JSON|must hold a JSON|must be what lumos)"):
        open_shards(tmp_path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(0), row(1, fps=12.0)], "must have one frame rate, got 12.0, 8.0"),
        ([row(0), row(1, tokenizer="u")], "must have one tokenizer, got t, u"),
        ([], "at least one clip, got none"),
        (b"PAR1", "damaged or is no Parquet file"),
        (None, r"must be a folder of shards \(.parquet\), got none"),
    ],
)
def test_shards_that_do_not_fit_together(rows: Any, words: str, tmp_path: Path) -> None:
    if isinstance(rows, list):
        write_shard(tmp_path / "000000.parquet", CODES, "t", rows, [])
    elif rows:
        (tmp_path / "000000.parquet").write_bytes(rows)
    (tmp_path / ".000001.parquet").write_bytes(b"half")
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        open_shards(tmp_path)


def test_a_folder_behind_a_url_is_read_like_any_other(tmp_path: Path) -> None:
    write_shard(tmp_path / "000000.parquet", CODES, "t", [row(number) for number in range(70)], [])
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/s/000000.parquet", (tmp_path / "000000.parquet").read_bytes())
    assert content("memory://s") == content(tmp_path)
    memory.rm("/s", recursive=True)
    index = open_shards(tmp_path)
    assert (len(index), index.form, index.tokenizer, index.fps) == (70, CODES, "t", 8.0)
    assert len({tuple(place) for place in index.place_N3.tolist()}) == 70 and index.place_N3[:, 1].max() == 1


def test_files_are_read_without_python_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's threads may free what they read while Python shuts down; a Python file there ends the process with an abort."""
    write_shard(tmp_path / "000000.parquet", CODES, "t", [row(0)], [])
    opened: list[Any] = []
    real = parquet.ParquetFile

    def noted(source: Any, filesystem: Any = None, **more: Any) -> Any:
        opened.append((type(source), filesystem))
        return real(source, filesystem=filesystem, **more)

    monkeypatch.setattr(parquet, "ParquetFile", noted)
    content(tmp_path)
    assert set(opened) == {(str, None)}


def test_long_clips_take_several_rows_of_a_picture() -> None:
    rgb_FHWC = np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(600, 2).repeat(3, 3) * 6
    again = unpack_picture(pack_picture(np.ascontiguousarray(rgb_FHWC)), *rgb_FHWC.shape[:3])
    assert np.abs(again.astype(int) - rgb_FHWC).max() <= 6
    assert (
        unpack_picture(pack_picture(np.zeros((2, 8, 8192, 3), np.uint8)), 2, 8, 8192).shape[0] == 2
    )  # WebP's sides end at 16383
    with pytest.raises(ValueError, match="fewer --frames"):
        pack_picture(np.zeros((300, 4096, 2048, 3), np.uint8))


def test_shards_of_another_tokenizer_are_refused() -> None:
    none = np.zeros((0, 3))
    index = ShardIndex("-", (), CODES, fingerprint(toy_tokenizer()), 8.0, none, none, "", none[:, 0])
    check_tokenizer(index, toy_tokenizer().bfloat16().float())  # a folder in half precision holds the same tokenizer
    with pytest.raises(ValueError, match="must be made with this tokenizer"):
        check_tokenizer(index, toy_tokenizer(seed=1))
    published, cosmos = ShardIndex("-", (), CODES, COSMOS, 8.0, none, none, "", none[:, 0]), made(small.COSMOS)
    check_tokenizer(published, cosmos)
    for other, tokenizer, of in ((published, toy_tokenizer(), COSMOS), (index, cosmos, index.tokenizer)):
        with pytest.raises(ValueError, match=of):
            check_tokenizer(other, tokenizer)
