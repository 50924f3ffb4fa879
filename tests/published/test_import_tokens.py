"""Pretokenised records become shards that rebuild them exactly; anything else is refused, unexecuted, and nothing is written."""

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos.cli.main import main
from lumos.data.shards import COSMOS, unpack_codes
from lumos.published.import_tokens import import_tokens, read_record, rebuild
from lumos.published.pickles import read_pickle
from lumos.sequence.prompt_template import fill_numbers
from lumos.sequence.vocabulary import SENTENCE

CAPTION = [17170, 16704, 16641, 17362, 16397]
VIDEO, IMAGE = (7, 8, 16), (1, 16, 12)  # latent frames, rows, columns


def token_ids(shape: tuple[int, int, int], seconds: int, fps: int, seed: int = 0) -> list[int]:
    """One sample, id after id, as the published form prescribes it."""
    frames, rows, columns = shape
    codes = torch.randint(0, 64_000, shape, generator=torch.Generator().manual_seed(seed)).tolist()
    ids = [0, *SENTENCE, *CAPTION, 8710, 9004, 8804 + seconds, 8804 + fps]
    for frame in range(frames):
        ids += [8197, 8804 + rows // 4, 8804 + columns // 4]
        for row in codes[frame]:
            ids += [*(65_536 + code for code in row), 8803]
        ids.append(8196)
    return [*ids, 9005, 8710]


def record(shape: tuple[int, int, int] = VIDEO, seconds: int = 2, fps: int = 12, **other: Any) -> dict[str, Any]:
    ids = token_ids(shape, seconds, fps)
    start = ids.index(9004)
    return {"token": ids, "label": [-100] * start + ids[start:], "id": 5} | other


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def test_shards_rebuild_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / ".out.partial").mkdir()  # somebody's
    video, image = record(), record(IMAGE, 1, 1, id=6)
    write(tmp_path / "video.pkl", video)
    write(tmp_path / "more" / "image.pkl", image)
    words = ["import-tokens", str(tmp_path / "video.pkl"), str(tmp_path / "more"), str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    expected = {"shards": str(tmp_path / "out"), "videos": 1, "images": 1, "codes": 7 * 8 * 16 + 16 * 12}
    assert json.loads(capsys.readouterr().out) == expected
    assert sorted(os.listdir(tmp_path)) == [".out.partial", "more", "out", "video.pkl"]
    assert os.listdir(tmp_path / "out") == ["000000.parquet"]
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "000000.parquet").to_pylist()
    for row, original, source, shape, frames in zip(
        rows, [video, image], ["video.pkl:5", "image.pkl:6"], [VIDEO, IMAGE], [24, 1], strict=True
    ):
        codes_THW = unpack_codes(row["codes"], *shape)
        assert rebuild(row["text_open"], codes_THW, row["seconds"], int(row["fps"])) == original["token"]
        assert [row[name] for name in ("T", "H", "W", "source", "frames", "tokenizer")] == [*shape, source, frames, COSMOS]
        assert row["text"] == fill_numbers(row["text_open"], frames, int(row["fps"])) and max(row["text"]) < 65_536
        assert row["text"][-len(CAPTION) :] == CAPTION


def test_several_groups_and_shards_keep_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumos.published.import_tokens.GROUP_ROWS", 2)
    monkeypatch.setattr("lumos.published.import_tokens.GROUPS", 2)
    files = [write(tmp_path / f"{number}.pkl", record(IMAGE, 1, 1, id=number)) for number in range(7)]
    progress: list[tuple[int, int]] = []
    import_tokens(files, tmp_path / "out", lambda done, total: progress.append((done, total)))
    assert progress == [(done, 7) for done in range(1, 8)]
    shards = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in shards] == ["000000.parquet", "000001.parquet"]
    sources = [source for path in shards for source in pyarrow.parquet.read_table(path)["source"].to_pylist()]
    assert sources == [f"{n}.pkl:{n}" for n in range(7)]


def test_records_whose_numbers_are_filled_in_already(tmp_path: Path) -> None:
    open_ids = token_ids(VIDEO, 2, 12)
    done = fill_numbers(open_ids[: open_ids.index(9004)], 24, 12) + open_ids[open_ids.index(9004) :]
    row = read_record(write(tmp_path / "a.pkl", {"token": done}))
    assert row["text"] == row["text_open"] == read_record(write(tmp_path / "b.pkl", {"token": open_ids}))["text"]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text() | st.integers(), inner, max_size=5),
    max_leaves=20,
)


@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_pickles_of_every_protocol_are_read(value: Any, protocol: int) -> None:
    assert read_pickle(pickle.dumps([value, (value,)], protocol)) == [value, (value,)]


class Attack:
    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [Attack(), record(token=Attack()), record(token=[1, [Attack()]])])
def test_a_pickle_that_names_a_function_is_refused(
    value: Any, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good.pkl", record())
    write(tmp_path / "bad.pkl", value, protocol)
    assert main(["import-tokens", "good.pkl", "bad.pkl", "out"]) == 2
    out, line = capsys.readouterr()
    assert out == "" and line.count("\n") == 1
    assert all(word in line for word in ["bad.pkl", f"{os.system.__module__}.system", "could run code"]), line
    assert sorted(os.listdir()) == ["bad.pkl", "good.pkl"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"cos\nsystem\n(S'ls'\ntR.", "holds the pickle instruction STRING"),
        (b"cos\nsystem\n(V1\ntR.", "names os.system"),
        (b"(ios\nsystem\n.", "holds the pickle instruction INST"),
        (b"Pmodule\n.", "holds the pickle instruction PERSID"),
        (b"K\x01Q.", "refers to something outside"),
        (b"\x80\x02\x82\x01.", "holds the pickle instruction EXT1"),
        (pickle.dumps(OrderedDict()), "names collections.OrderedDict"),
        *((content, "the pickle is damaged") for content in (b"", b".", b"]]a", b"e.", b"(a.", b"]q\xffh\x01.")),
        (b"\x8f" * 10, "instruction EMPTY_SET"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "made-up sizes"),  # a place in memory that a whole table would be made for
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "the pickle is damaged"),
    ],
)
def test_other_pickles_are_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_pickle(content)
    assert "\n" not in str(caught.value)


@given(st.data())
def test_any_damage_is_a_clear_error_or_another_whole_record(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    small, path = pickle.dumps(record((2, 4, 4), 1, 2), 4), tmp_path_factory.getbasetemp() / "damaged.pkl"
    place = data.draw(st.integers(0, len(small) - 1))
    path.write_bytes(small[:place])
    with pytest.raises(ValueError, match=r"damaged\.pkl: .*damaged"):
        read_record(path)
    path.write_bytes(small[:place] + data.draw(st.binary(min_size=1, max_size=3)) + small[place + 1 :])
    try:
        read_record(path)
    except ValueError as error:
        assert str(path) in str(error)


def spoiled(change: Any, shape: tuple[int, int, int] = (2, 4, 4)) -> dict[str, Any]:
    ids = token_ids(shape, 1, 5)
    change(ids)
    return {"token": ids}


def put(place: int, value: int) -> Any:
    return lambda ids: ids.__setitem__(place, value)


def at_start(step: int, value: int) -> Any:
    return lambda ids: ids.__setitem__(ids.index(9004) + step, value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1], ["a record must be a dict", "got list"]),
        ({"tokens": [1]}, ["a record must be a dict of token, label and id, got tokens"]),
        (record(mask=[1]), ["of token, label and id, got token, label, id, mask"]),
        *(({"token": ids}, ["token must be a list of ids"]) for ids in ("abc", [], [1, 2.5], [True], (1, 2), [10**30])),
        (spoiled(put(30, 129_536)), ["token must be a list of ids, 0 to 129535"]),
        (spoiled(put(30, -1)), ["token must be a list of ids"]),
        (spoiled(put(5, 65_536)), ["text ids must be below 65536, got 65536"]),
        (spoiled(put(0, 1)), ["its layout is another"]),
        (spoiled(at_start(-1, 8711)), ["its layout is another"]),
        (spoiled(at_start(0, 7)), ["video start"]),
        (spoiled(at_start(4, 8900)), ["one whole sample"]),
        (spoiled(at_start(4, 8000)), ["one whole sample"]),
        (spoiled(at_start(7, 9003)), ["codes must be 0 to 63999"]),
        (spoiled(at_start(10, 8804)), ["newline"]),
        (spoiled(lambda ids: ids.pop()), ["its layout is another"]),
        (spoiled(lambda ids: ids.__delitem__(slice(-30, None))), ["one whole sample"]),
        (spoiled(put(21, 65_540)), ["leave each of its two numbers open once, or none, got 2"]),
        (spoiled(put(21, 5)), ["got 1"]),
        (record(label=[0] * len(record()["token"])), ["label must be a list of each token or -100"]),
        (record(label=[-100] * (len(record()["token"]) + 1)), ["label must be a list of each token or -100"]),
        (record(label=5), ["label must be a list"]),
        (record(id=[1]), ["id must be a number or a name"]),
    ],
)
def test_anything_but_one_whole_sample_is_refused(
    value: Any, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.pkl", record())
    write(tmp_path / "b.pkl", value)
    assert main(["import-tokens", str(tmp_path), str(tmp_path / "new" / "out")]) == 2
    out, line = capsys.readouterr()
    assert out == "" and line.count("\n") == 1 and str(tmp_path / "b.pkl") in line
    assert all(word in line for word in words), line
    assert sorted(os.listdir(tmp_path)) == ["a.pkl", "b.pkl"]


def test_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "none").mkdir()
    good = str(write(tmp_path / "a.pkl", record()))
    for words, expected in [
        ([good, str(tmp_path / "full")], "must be a new or empty folder"),
        ([good, good], "must be a new or empty folder"),
        ([str(tmp_path / "none"), str(tmp_path / "out")], "at least one .pkl file"),
        ([str(tmp_path / "no.pkl"), str(tmp_path / "out")], "no.pkl is missing"),
        ([good], "required: RECORDS"),
    ]:
        assert main(["import-tokens", *words]) == 2
        assert expected in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["a.pkl", "full", "none"]
    for out in ("none", "new/deep"):
        assert main(["import-tokens", good, str(tmp_path / out)]) == 0
        assert os.listdir(tmp_path / out) == ["000000.parquet"]
