"""Weights folders: what is saved is loaded, whole or not at all, and damage is one line."""

import contextlib
import itertools
import json
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import lumos.weights as weights
from lumos.generate import Generator
from lumos.tokenizer.cosmos import CosmosConfig
from lumos.tokenizer.model import TokenizerConfig, VideoTokenizer
from lumos.weights import check_names, find_weights, fingerprint, load_folder, save_folder
from recipes.eight_bits import in_eight_bits

HEADER = {"kind": "model", "format": 1, "config": {"width": 4}}


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


def test_what_is_saved_is_loaded_and_saving_again_replaces_everything(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "weights"
    save_folder(folder, HEADER, {"b": torch.ones(3)}, {"text.json": b"1", "tokenizer/config.json": b"2"})
    save_folder(folder, HEADER, some_tensors(), {"text.json": b"{}", "tokenizer/config.json": b"[]"})
    config, tensors = load_folder(folder, "model")
    assert config == HEADER["config"]
    for found in (tensors, load_file(folder / "model.safetensors")):  # safetensors itself reads it as well
        assert set(found) == set(some_tensors())
        assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in some_tensors().items())
    assert (folder / "text.json").read_bytes() == b"{}" and (folder / "tokenizer" / "config.json").read_bytes() == b"[]"
    assert os.listdir(folder.parent) == ["weights"]
    modes = {path.stat().st_mode for path in folder.iterdir() if path.is_file()}
    assert len(modes) == 1, "every file of the folder is readable to the same people"
    save_folder(tmp_path / "nothing", HEADER, {})
    assert load_folder(tmp_path / "nothing", "model")[1] == {}


def test_large_models_are_written_in_files_held_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "FILE_BYTES", 200)  # two tensors each
    held: list[weakref.ref[torch.Tensor]] = []

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(3):
            assert all(reference() is None for reference in held), "an earlier tensor is still in memory"
            tensor = torch.full((3, 5), number)
            held.append(weakref.ref(tensor))
            yield f"t{number}", tensor
            del tensor

    large = tmp_path / "large"
    (tmp_path / "a.json").write_text("{}")
    save_folder(large, HEADER, tensors(), {"b.json": tmp_path / "a.json"})
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert set(os.listdir(large)) == {"b.json", "config.json", "model.safetensors.index.json", *names}
    index = json.loads((large / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 3 * 15 * 8} and index["weight_map"]["t2"] == names[1]
    loaded = {name: int(tensor[0, 0]) for name, tensor in load_folder(large, "model")[1].items()}
    assert loaded == {f"t{n}": n for n in range(3)}
    (large / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{names[1]} is missing"):
        load_folder(large, "model")
    save_folder(large, HEADER, {"a": torch.ones(1)}, {"b.json": b""})
    assert sorted(os.listdir(large)) == ["b.json", "config.json", "model.safetensors"]


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
        value = load_folder(folder, "model")[1]["a"].item()
        assert (folder / "step").read_bytes() == str(int(value)).encode()
        seen.append(value)
        if finished:
            break
    assert len(seen) > 8
    assert seen == sorted(seen) and set(seen) == {0.0, 1.0}
    save_folder(folder, HEADER, {"a": torch.tensor(2.0)}, {"step": b"2"})
    assert os.listdir(tmp_path) == ["weights"], "what kills left is cleaned up by the next save"


def test_everything_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(weights, "flush", lambda path: events.append(Path(path).name))
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, target: (events.append(f"to {Path(target).name}"), rename(path, target))[1])
    save_folder(tmp_path / "new", HEADER, {"a": torch.ones(1)}, {"tokenizer/x": b"1"})
    done = events.index("to new")
    assert set(events[:done]) >= {"config.json", "model.safetensors", "tokenizer", "x", ".new.partial"}
    assert events[done + 1 :] == [tmp_path.name]


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
            load_folder(saved, "model")


def test_checksums_are_those_of_every_version(tmp_path: Path) -> None:
    save_folder(tmp_path / "a", HEADER, {"a": torch.arange(15, dtype=torch.uint8), "b": torch.arange(5.0)})
    with safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"sums": "7060504870ef961 7fc0000059ce93d1"}


def test_tensors_of_other_tools_and_versions_need_no_checksum(saved: Path) -> None:
    for metadata in (None, {"format": "pt", "sha256": "0" * 64}):
        save_file({"b": torch.ones(2)}, saved / "model.safetensors", metadata)
        assert torch.equal(load_folder(saved, "model")[1]["b"], torch.ones(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_none_are_found(saved: Path, bad: float, dtype: torch.dtype) -> None:
    tensor = torch.zeros(99, dtype=dtype)
    tensor[70] = bad
    save_file({"a": torch.ones(3), "layers.3.wrong": tensor}, saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors: layers.3.wrong holds NaN or infinite"):
        load_folder(saved, "model")


def test_loaded_weights_do_not_change_with_their_file(saved: Path) -> None:
    tensors = load_folder(saved, "model")[1]
    with open(saved / "model.safetensors", "r+b") as file:
        file.seek(-400, os.SEEK_END)
        file.write(b"\0" * 400)
    assert torch.equal(tensors["a"], torch.arange(100.0))


def test_a_killed_save_is_healed_for_every_reader(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = saved.with_name(".weights.previous")
    saved.rename(hidden)
    assert find_weights(saved, "model") == saved and not hidden.exists()
    tokenizer = {"kind": "tokenizer", "format": 1, "config": {}}
    save_folder(saved / "tokenizer", tokenizer, {})
    saved.rename(hidden)
    assert find_weights(saved / "tokenizer", "tokenizer") == saved / "tokenizer"
    shutil.rmtree(saved / "tokenizer")
    rename, done = Path.rename, []

    def rename_with_reader(path: Path, target: Path) -> Path:
        if path.name == ".weights.partial" and not done:
            done.append(find_weights(saved, "model"))  # a reader comes between the two renames, and puts the old one back
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_with_reader)
    save_folder(saved, HEADER, {"a": torch.zeros(1)})
    assert done and load_folder(saved, "model")[1]["a"].shape == (1,) and os.listdir(saved.parent) == ["weights"]


def test_a_missing_unreadable_or_foreign_file_is_named(saved: Path, tmp_path: Path) -> None:
    for folder, problem in (
        (tmp_path / "nowhere", FileNotFoundError),
        (tmp_path, ValueError),
        (saved / "config.json", ValueError),
    ):
        with pytest.raises(problem, match="no weights folder"):
            load_folder(folder, "model")
    with pytest.raises(ValueError, match="must hold a tokenizer of format 1, got 'model' of format 1"):
        load_folder(saved, "tokenizer")
    (saved / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 123\n")
    with pytest.raises(ValueError, match=r"model.safetensors is a Git LFS pointer.*git lfs pull"):
        load_folder(saved, "model")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        load_folder(saved, "model")
    for header, words in (
        ({"kind": "model", "format": 1}, "must hold kind, format and the fields .* got format, kind"),
        (HEADER | {"run": "rm"}, "must hold kind, format and the fields .* got config"),
        (HEADER | {"config": []}, "must hold kind, format and the fields"),
        (HEADER | {"format": 2}, "must hold a model of format 1, got 'model' of format 2"),
    ):
        (saved / "config.json").write_text(json.dumps(header))
        with pytest.raises(ValueError, match=words):
            load_folder(saved, "model")


def test_names_and_shapes_must_fit() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.zeros(1)}
    check_names({"a": torch.ones(2, 3), "b": torch.ones(1)}, state, "here")
    with pytest.raises(ValueError, match=r"here .* lacks b and has the unknown c"):
        check_names({"a": torch.ones(2, 3), "c": torch.ones(1)}, state, "here")
    with pytest.raises(ValueError, match=r"here: a must have shape \[2, 3\] by its config, got \[3, 2\]"):
        check_names({"a": torch.ones(3, 2), "b": torch.ones(1)}, state, "here")
    with pytest.raises(ValueError, match=r"names that begin with 'module\._orig_mod\.'.*remove that prefix"):
        check_names({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, state, "here")
    for wrong in (torch.int32, torch.bool, torch.float8_e4m3fn):
        with pytest.raises(ValueError, match="here: b must hold floating point numbers"):
            check_names({"a": torch.ones(2, 3), "b": torch.ones(1).to(wrong)}, state, "here")
    with pytest.raises(ValueError, match="a, b, c and 7 more"):
        check_names({}, {name: torch.zeros(1) for name in "abcdefghij"}, "here")


def test_weights_are_found_by_name_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path / "pretrained")
    tokenizer = b'{"kind": "tokenizer", "format": 1, "config": {}}'
    for folder in (tmp_path / "pretrained" / "tiny", tmp_path / "own", tmp_path / "run" / "model"):
        save_folder(folder, HEADER, {}, {"tokenizer/config.json": tokenizer, "tokenizer/model.safetensors": b""})
    assert find_weights("tiny", "model") == tmp_path / "pretrained" / "tiny"
    assert find_weights("tiny", "tokenizer") == tmp_path / "pretrained" / "tiny" / "tokenizer"
    assert find_weights(str(tmp_path / "own"), "model") == tmp_path / "own"
    assert find_weights(tmp_path / "own" / "tokenizer", "tokenizer") == tmp_path / "own" / "tokenizer"
    assert find_weights(tmp_path / "run", "model") == tmp_path / "run" / "model"
    assert find_weights(tmp_path / "run", "tokenizer") == tmp_path / "run" / "model" / "tokenizer"
    with pytest.raises(ValueError, match="must hold a model of format 1, got 'tokenizer'"):
        find_weights(tmp_path / "own" / "tokenizer", "model")
    with pytest.raises(FileNotFoundError, match=r"no weights named 'tinny'.*use one of tiny"):
        find_weights("tinny", "model")
    with pytest.raises(ValueError, match="no weights folder"):
        find_weights(tmp_path, "model")


def test_fingerprints_tell_weights_and_networks_apart() -> None:
    def made(seed: int, **changes: Any) -> nn.Module:
        sizes = {"levels": (5, 5), "encoder_widths": (8, 8), "decoder_widths": (8, 8)}
        tokenizer = VideoTokenizer(TokenizerConfig(**sizes | changes))
        tokenizer.initialise(torch.Generator().manual_seed(seed))
        return tokenizer

    prints = [fingerprint(made(0)), fingerprint(made(1)), fingerprint(made(0, levels=(5, 3))), fingerprint(made(0), made(1))]
    assert len(set(prints)) == 4 and prints[0] == fingerprint(made(0)) == fingerprint(made(0).bfloat16())
    assert prints[0] == "450ea01be3022181", "shards prepared by version 0.1 name it"
    cosmos = VideoTokenizer(CosmosConfig(levels=(8, 5, 5), channels=8, blocks=1, latent_channels=4))
    cosmos.initialise(torch.Generator().manual_seed(0))
    assert fingerprint(cosmos) == "72a6e9c5fc385c60"


def test_eight_bits_are_half_the_bytes_and_close(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "matrix": torch.randn(60, 3000, generator=draw),
        "kernel": torch.randn(8, 4, 3, 3, 3, generator=draw) / 50,
        "norm": torch.ones(5),
    }
    tensors["matrix"][3] = 0
    save_folder(tmp_path / "small", HEADER, in_eight_bits(tensors))
    save_folder(tmp_path / "plain", HEADER, {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()})
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("small", "plain")]
    assert sizes[0] < 0.6 * sizes[1]
    _, found = load_folder(tmp_path / "small", "model")
    assert set(found) == set(tensors) and {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert torch.equal(dict(in_eight_bits(tensors, "mat"))["kernel"], tensors["kernel"].bfloat16())
    for name, tensor in tensors.items():
        rows = tensor.flatten(1) if tensor.ndim > 1 else tensor[None]
        error = (found[name].float().view(rows.shape) - rows).abs().amax(1)
        assert (error <= rows.abs().amax(1) * (0.5 / 127 + 2**-8)).all()  # half a step, and bf16's rounding


@pytest.mark.parametrize("change", [{"matrix": None}, {"matrix": torch.ones(4, 6)}, {"matrix/scale": torch.ones(3)}])
def test_eight_bit_rows_without_their_scales_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    tensors = dict(in_eight_bits({"matrix": torch.ones(4, 6)})) | change
    save_folder(tmp_path / "model", HEADER, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(ValueError, match="must hold 8-bit numbers for each row of matrix/scale"):
        load_folder(tmp_path / "model", "model")


@pytest.mark.parametrize("name", ["meta", "mps", "cuda:x", "cuda:-1", "cpu:1", "gpu"])
def test_devices_that_weights_cannot_go_to_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"device must be cpu, cuda or cuda:N, got '{name}'"):
        Generator.from_folder(device=name)
