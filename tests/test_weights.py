import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lumos.weights as weights
from lumos.weights import Deferred, check_names, find_weights, load_folder, read_config, save_folder


@dataclasses.dataclass(frozen=True)
class Inner:
    levels: tuple[int, ...]
    pair: tuple[int, str]
    maybe: float | None


@dataclasses.dataclass(frozen=True)
class Outer:
    width: int
    rate: float
    name: str
    on: bool
    norm: Literal["layer", "rms"]
    inner: Inner
    other: Inner | None = None

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"width must be even, got {self.width}; use {self.width + 1}")


INNER = Inner((8, 5), (1, "a"), None)
OUTER = Outer(4, 0.5, "x", True, "rms", INNER, Inner((), (2, "b"), 1.5))
HEADER = {"kind": "model", "format": 1, "config": {"width": 4}}


def as_json(config: Any) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return result


@given(
    st.builds(
        Outer,
        width=st.integers().map(lambda n: 2 * n),
        rate=st.floats(allow_nan=False, allow_infinity=False),
        name=st.text(),
        on=st.booleans(),
        norm=st.sampled_from(["layer", "rms"]),
        inner=st.builds(Inner, levels=st.lists(st.integers()).map(tuple), maybe=st.none() | st.floats(allow_nan=False)),
        other=st.none(),
    )
)
def test_a_config_survives_json(config: Outer) -> None:
    assert read_config(Outer, as_json(config), "here") == config


def test_nested_optional_config_and_int_for_float() -> None:
    values = as_json(OUTER) | {"rate": 3}
    config = read_config(Outer, values, "here")
    assert config == dataclasses.replace(OUTER, rate=3.0)
    assert type(config.rate) is float


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 1.5}, ["width", "int", "1.5"]),
        ({"width": True}, ["width", "int", "True"]),
        ({"width": 3}, ["width must be even", "got 3", "use 4"]),
        ({"rate": "fast"}, ["rate", "float", "'fast'"]),
        ({"rate": True}, ["rate", "float", "True"]),
        ({"name": None}, ["name", "str", "None"]),
        ({"on": 1}, ["on", "bool", "1"]),
        ({"norm": "batch"}, ["norm", "layer, rms", "'batch'"]),
        ({"inner": 5}, ["inner", "Inner", "5"]),
        ({"inner": {"levels": [1, "2"], "pair": [1, "a"], "maybe": None}}, ["inner: levels[1]", "int", "'2'"]),
        ({"inner": {"levels": 1, "pair": [1, "a"], "maybe": None}}, ["levels", "list"]),
        ({"inner": {"levels": [], "pair": [1], "maybe": None}}, ["pair", "2 items", "got 1"]),
        ({"inner": {"levels": [], "pair": [1, "a"]}}, ["inner", "lacks", "'maybe'"]),
        ({"surprise": 1}, ["unknown field 'surprise'", "width"]),
    ],
)
def test_a_wrong_config_value_is_named(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^a/config\.json") as caught:
        read_config(Outer, as_json(OUTER) | change, "a/config.json")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named_even_when_it_has_a_default() -> None:
    values = as_json(OUTER)
    del values["other"]
    with pytest.raises(ValueError, match="lacks the field 'other'"):
        read_config(Outer, values, "here")


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    return {
        "float": base,
        "transposed": base.T,
        "tied": base,
        "slice": base[1:3],
        "half": base.bfloat16(),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 2),
        "mask": base > 0,
        "codes": torch.arange(5),
    }


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "weights"
    save_folder(folder, HEADER, some_tensors(), {"text.json": b"{}", "tokenizer/config.json": b"[]"})
    config, tensors = load_folder(folder, "model")
    assert config == HEADER
    assert set(tensors) == set(some_tensors())
    for name, tensor in some_tensors().items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name
    assert (folder / "text.json").read_bytes() == b"{}"
    assert (folder / "tokenizer" / "config.json").read_bytes() == b"[]"
    assert os.listdir(folder.parent) == ["weights"]
    modes = {path.stat().st_mode for path in folder.iterdir() if path.is_file()}
    assert len(modes) == 1, "every file of the folder is readable to the same people"


def test_the_file_is_one_that_safetensors_itself_reads(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save_folder(tmp_path / "weights", HEADER, some_tensors())
    found = load_file(tmp_path / "weights" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in some_tensors().items())
    save_folder(tmp_path / "nothing", HEADER, {})
    assert load_file(tmp_path / "nothing" / "model.safetensors") == {}


def test_deferred_tensors_are_read_one_by_one_and_files_copied(tmp_path: Path) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def read(value: int) -> torch.Tensor:
        assert all(reference() is None for reference in held), "an earlier tensor is still in memory"
        tensor = torch.full((3, 5), value)
        held.append(weakref.ref(tensor))
        return tensor

    deferred = {str(n): Deferred(torch.int64, (3, 5), functools.partial(read, n)) for n in range(4)}
    (tmp_path / "a.json").write_text("{}")
    save_folder(tmp_path / "lazy", HEADER, deferred, {"b.json": tmp_path / "a.json"})
    save_folder(tmp_path / "eager", HEADER, {str(n): torch.full((3, 5), n) for n in range(4)})
    assert len(held) == 4
    assert (tmp_path / "lazy" / "b.json").read_text() == "{}"
    lazy, eager = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("lazy", "eager"))
    assert lazy == eager


def test_a_type_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x must have one of the types F64, .*, got torch\.complex64"):
        save_folder(tmp_path / "weights", HEADER, {"x": torch.zeros(1, dtype=torch.complex64)})
    assert os.listdir(tmp_path) == []


def test_saving_again_replaces_everything(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    save_folder(folder, HEADER, {"a": torch.zeros(2)}, {"more/text.json": b"1"})
    save_folder(folder, HEADER, {"b": torch.ones(3)}, {"more/text.json": b"2"})
    assert set(load_folder(folder)[1]) == {"b"}
    assert (folder / "more" / "text.json").read_bytes() == b"2"
    assert os.listdir(tmp_path) == ["weights"]


def test_a_weights_folder_inside_stays_when_the_outer_one_is_saved_again(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    for value in (1.0, 2.0):
        save_folder(folder, HEADER, {"a": torch.tensor(value)})
        assert (value == 1.0) != (folder / "tokenizer").exists()
        save_folder(folder / "tokenizer", HEADER, {"b": torch.tensor(value)})
        assert load_folder(folder)[1]["a"] == load_folder(folder / "tokenizer")[1]["b"] == value
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "tokenizer"]
    save_folder(folder, HEADER, {}, {"tokenizer/config.json": b"{}", "tokenizer/model.safetensors": b"new"})
    assert (folder / "tokenizer" / "model.safetensors").read_bytes() == b"new", "unless it is written as well"


def test_saving_never_deletes_what_it_does_not_write(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"would delete thesis\.tex"):
        save_folder(tmp_path, HEADER, {})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(FileExistsError, match="is a file"):
        save_folder(tmp_path / "thesis.tex", HEADER, {})
    for name in (".model.partial", ".model.previous"):  # what a kill leaves is deleted, what only looks like it is not
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years of work")
        save_folder(tmp_path / "sub" / "model", HEADER, {})
        with pytest.raises(FileExistsError, match=r"would delete thesis\.tex"):
            save_folder(tmp_path / "model", HEADER, {})
        shutil.rmtree(tmp_path / name)


@pytest.mark.parametrize("name", ["/etc/x", "../x", "config.json", "model.safetensors"])
def test_extra_files_stay_inside_and_apart(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        save_folder(tmp_path / "weights", HEADER, {}, {name: b""})
    assert os.listdir(tmp_path) == []


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def test_a_kill_at_any_step_leaves_the_old_or_the_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill before every call that touches the disk in turn; clean-up does not run either, as in a real kill."""
    steps = 0
    limit = 0

    def counted(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > limit:
                raise Killed
            return function(*args, **options)

        return call

    folder = tmp_path / "weights"
    for module, name in [(Path, "rename"), (Path, "mkdir"), (Path, "write_bytes"), (os, "fsync"), (shutil, "rmtree")]:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    monkeypatch.setattr(weights, "_write_tensors", counted(weights._write_tensors))
    seen = []
    for kill_after in itertools.count():
        steps, limit = 0, 1000
        save_folder(folder, HEADER, {"a": torch.tensor(0.0)}, {"step": b"0"})
        steps, limit = 0, kill_after
        finished = False
        with contextlib.suppress(Killed):
            save_folder(folder, HEADER, {"a": torch.tensor(1.0)}, {"step": b"1"})
            finished = True
        limit = 1000
        value = load_folder(folder)[1]["a"].item()
        assert (folder / "step").read_bytes() == str(int(value)).encode()
        seen.append(value)
        if finished:
            break
    assert len(seen) > 8
    assert seen == sorted(seen) and set(seen) == {0.0, 1.0}
    save_folder(folder, HEADER, {"a": torch.tensor(2.0)}, {"step": b"2"})
    assert os.listdir(tmp_path) == ["weights"], "what kills left is cleaned up by the next save"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    save_folder(folder, HEADER, {"a": torch.arange(100.0)})
    return folder


def test_every_changed_byte_and_every_cut_is_noticed(saved: Path) -> None:
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            _, tensors = load_folder(saved, "model")
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # only the name of the checksum was hit
            assert set(tensors) == {"a"}
            assert torch.equal(tensors["a"], torch.arange(100.0))
        path.write_bytes(whole[:place])
        with pytest.raises(ValueError, match="truncated"):
            load_folder(saved)


def test_tensors_of_other_tools_need_no_checksum(saved: Path) -> None:
    from safetensors.torch import save_file

    save_file({"b": torch.ones(2)}, saved / "model.safetensors")
    assert torch.equal(load_folder(saved)[1]["b"], torch.ones(2))


def test_a_missing_or_unreadable_file_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no weights folder"):
        load_folder(tmp_path)
    with pytest.raises(ValueError, match="no weights folder"):
        load_folder(saved / "config.json")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        load_folder(saved)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not readable JSON"),
        (b"\xff\xfe\x00", "not readable JSON"),
        (b"", "not readable JSON"),
        (b"[1]", "JSON object, got list"),
        (b'{"kind": "model", "format": 1}', "lacks the field 'config'"),
        (b'{"kind": "model", "format": 1, "config": {}, "run": "rm"}', "unknown field 'run'"),
        (b'{"kind": "tokenizer", "format": 1, "config": {}}', "must hold a model, but its kind is 'tokenizer'"),
        (b'{"kind": "model", "format": 2, "config": {}}', "must have format 1, got 2"),
    ],
)
def test_a_wrong_config_file_is_explained(saved: Path, text: bytes, words: str) -> None:
    (saved / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=words) as caught:
        load_folder(saved, "model")
    assert "\n" not in str(caught.value)


def test_names_and_shapes_must_fit() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.zeros(1)}
    check_names({"a": torch.ones(2, 3), "b": torch.ones(1)}, state, "here")
    with pytest.raises(ValueError, match=r"here .* lacks b and has the unknown c"):
        check_names({"a": torch.ones(2, 3), "c": torch.ones(1)}, state, "here")
    with pytest.raises(ValueError, match=r"here: a must have shape \[2, 3\] by its config, got \[3, 2\]"):
        check_names({"a": torch.ones(3, 2), "b": torch.ones(1)}, state, "here")
    with pytest.raises(ValueError, match="a, b, c and 7 more"):
        check_names({}, {name: torch.zeros(1) for name in "abcdefghij"}, "here")


def test_weights_are_found_by_name_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path / "pretrained")
    tokenizer = b'{"kind": "tokenizer", "format": 1, "config": {}}'
    for folder in (tmp_path / "pretrained" / "tiny", tmp_path / "own"):
        save_folder(folder, HEADER, {}, {"tokenizer/config.json": tokenizer, "tokenizer/model.safetensors": b""})
    assert find_weights("tiny", "model") == tmp_path / "pretrained" / "tiny"
    assert find_weights("tiny", "tokenizer") == tmp_path / "pretrained" / "tiny" / "tokenizer"
    assert find_weights(str(tmp_path / "own"), "model") == tmp_path / "own"
    assert find_weights(tmp_path / "own" / "tokenizer", "tokenizer") == tmp_path / "own" / "tokenizer"
    with pytest.raises(ValueError, match="must hold a model, but its kind is 'tokenizer'"):
        find_weights(tmp_path / "own" / "tokenizer", "model")
    with pytest.raises(FileNotFoundError, match=r"no weights named 'tinny'.*use one of tiny"):
        find_weights("tinny", "model")
    with pytest.raises(ValueError, match="no weights folder"):
        find_weights(tmp_path, "model")
