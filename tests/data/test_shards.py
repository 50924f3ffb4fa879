"""Damaged or strange shards are refused in one line: no bit of a clip changes without a word."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch

from lumos.data.shards import CODES, ShardReader, clip_schema, open_shards, pack_codes, unpack_codes, write_shard

COLUMNS = ["clip", "captions", "source", "start"]


def row(number: int) -> dict[str, Any]:
    codes_THW = torch.randint(0, 1000, (2, 4, 4), generator=torch.Generator().manual_seed(number))
    facts = {"codes": pack_codes(codes_THW), "T": 2, "H": 4, "W": 4, "fps": 8.0, "frames": 5, "source": f"{number}.mp4"}
    return {**facts, "captions": [f"clip {number}"], "start": 0.5 * number, "mirrored": False, "tokenizer": "t"}


def content(folder: Path) -> list[dict[str, Any]]:
    reader = ShardReader(open_shards(folder), COLUMNS)
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop_columns(["T"]), 'Field "T" does not exist'),
        (lambda table: table.drop_columns(["tokenizer"]), 'Field "tokenizer" does not exist'),
        (
            lambda table: table.set_column(0, "codes", pyarrow.array(["x"] * 3)),
            "a.parquet: a clip of 2x4x4 codes must take 64 bytes, got 1",
        ),
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


def set_column(table: Any, name: str, values: Any) -> Any:
    return table.set_column(table.schema.names.index(name), name, values)


@pytest.mark.parametrize("settings", ["null", "[]", '{"shards": "many"}', "{", "[" * 100_000])
def test_settings_that_prepare_did_not_write(settings: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "000000.parquet", CODES, "t", [row(0)], [])
    (tmp_path / "prepare.json").write_text(settings)
    with pytest.raises(ValueError, match="prepare.json must be what lumos prepare wrote"):
        open_shards(tmp_path)


def test_codes_that_the_codebook_does_not_have() -> None:
    codes_THW = torch.tensor([[[0, 999]]])
    assert torch.equal(unpack_codes(pack_codes(codes_THW), 1, 1, 2, 1000), codes_THW)
    with pytest.raises(ValueError, match="codes must be below 999, got 999"):
        unpack_codes(pack_codes(codes_THW), 1, 1, 2, 999)
    with pytest.raises(ValueError, match="1x2x2 codes must take 8 bytes, got 4"):
        unpack_codes(pack_codes(codes_THW), 1, 2, 2)


def test_files_are_read_without_python_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's threads may free what they read while Python shuts down; a Python file there ends the process with an abort."""
    write_shard(tmp_path / "000000.parquet", CODES, "t", [row(0)], [])
    opened: list[Any] = []
    real = parquet.ParquetFile
    monkeypatch.setattr(parquet, "ParquetFile", lambda source, **more: opened.append(source) or real(source, **more))
    content(tmp_path)
    assert opened and all(isinstance(source, str) for source in opened)
