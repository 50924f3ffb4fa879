"""`lumos generate` with tokens files, and `lumos bench`: what users type, on the weights in the package."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lumos.cli.generate_files as files
from lumos.cli.generate import GenerateArgs
from lumos.cli.generate_files import generate_files
from lumos.cli.main import main
from lumos.diffusion.cost import EFFICIENCY

FAST = ["--steps", "1", "--guidance", "1"]


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["generate", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.out == ""
    return captured.err


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    words = ["a red circle", "--frames", "5", "--out", str(folder / "one.webp"), "--save-tokens", str(folder / "one.safetensors")]
    assert main(["generate", *words, *FAST]) == 0
    return folder


def test_saved_tokens_decode_to_the_same_file(saved: Path, tmp_path: Path) -> None:
    assert main(["generate", "--from-tokens", str(saved / "one.safetensors"), "--out", str(tmp_path / "again.webp")]) == 0
    assert (tmp_path / "again.webp").read_bytes() == (saved / "one.webp").read_bytes()


def test_a_branch_goes_on_from_tokens(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--from-tokens", str(saved / "one.safetensors"), "--branch", "1", "--frames", "9", "--json", *FAST]
    out = str(tmp_path / "other.webp")
    assert main(["generate", *words, "--out", out, "--seed", "2", "--save-tokens", str(tmp_path / "o.safetensors")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["prompts"] == ["a red circle"] and document["frames"] == 9 and document["tokens"].endswith("o.safetensors")
    assert main(["generate", "--from-tokens", str(tmp_path / "o.safetensors"), "--out", str(tmp_path / "b.webp")]) == 0
    assert (tmp_path / "b.webp").read_bytes() == (tmp_path / "other.webp").read_bytes()


def test_an_interrupted_video_keeps_its_finished_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = GenerateArgs(tmp_path / "x.webp", frames=5, save_tokens=tmp_path / "x.safetensors")

    def stop(done: int, passes: int) -> None:
        if done == passes:  # in the last frame
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_files(args, ["a red circle"], ["steps=1", "guidance=1"], stop)
    assert not (tmp_path / "x.webp").exists()
    whole = replace(args, out=tmp_path / "whole.webp", save_tokens=None)
    generate_files(whole, ["a red circle"], ["steps=1", "guidance=1"])
    words = ["--from-tokens", str(tmp_path / "x.safetensors"), "--branch", "1", "--frames", "5"]
    assert main(["generate", *words, *FAST, "--out", str(tmp_path / "on.webp")]) == 0
    assert (tmp_path / "on.webp").read_bytes() == (tmp_path / "whole.webp").read_bytes()


def test_bad_words(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, tokens = ["--out", str(tmp_path / "x.webp")], ["--from-tokens", str(saved / "one.safetensors")]
    assert "only decodes" in error(capsys, "a red circle", *tokens, *out)
    assert "--branch needs --from-tokens" in error(capsys, "a red circle", "--branch", "5", *out)
    assert "frames to keep must be 1 + 4k" in error(capsys, *tokens, "--branch", "3", *out)
    assert "image and from-tokens" in error(capsys, *tokens, "--image", "x.png", *out)
    assert "leave them out" in error(capsys, *tokens, "--height", "64", *out)
    assert "no tokens file" in error(capsys, "--from-tokens", "none.safetensors", *out)
    (tmp_path / "junk.safetensors").write_text("junk")
    assert "must be a tokens file" in error(capsys, "--from-tokens", str(tmp_path / "junk.safetensors"), *out)
    assert "exists" in error(capsys, "a red circle", "--save-tokens", str(saved / "one.safetensors"), *out)
    assert "there is no folder" in error(capsys, "a red circle", "--save-tokens", str(tmp_path / "no" / "x.safetensors"), *out)
    assert "window must be at most the 9" in error(capsys, "a red circle", "--window", "10", *out)
    assert "window must be at least 1" in error(capsys, "a red circle", "--window", "0", *out)
    assert "guidance_until must be" in error(capsys, "a red circle", "--guidance-until", "nan", *out)
    assert "fps must be 0.01 to 1000, got 0" in error(capsys, "a red circle", "--fps", "0", *out)
    assert "frames must be 0 to 10000, got 100001" in error(capsys, "a red circle", "--frames", "100001", *out)
    assert "must end in .safetensors" in error(capsys, "a red circle", "--save-tokens", str(tmp_path / "x.bin"), *out)
    assert "memory beside the weights" in error(capsys, "a red circle", "--height", "16384", "--width", "16384", *out)
    assert list(tmp_path.iterdir()) == [tmp_path / "junk.safetensors"]


def test_long_work_is_announced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = GenerateArgs(tmp_path / "x.webp", frames=5)
    monkeypatch.setattr(files, "matrix_rate", lambda device, dtype: 1e9)
    generate_files(args, ["a red circle"], ["steps=2", "guidance=1"])
    assert capsys.readouterr().err == ""  # too little work to be worth measuring
    monkeypatch.setattr(files, "matrix_rate", lambda device, dtype: 1e12 / EFFICIENCY / 600)
    monkeypatch.setattr(files.Generator, "stream", lambda *_, **__: iter(()))
    with pytest.raises((RuntimeError, ValueError)):  # nothing was made: torch.cat of no parts
        generate_files(replace(args, frames=401, force=True), ["a red circle"], ["steps=20", "guidance=3"])
    assert "min here" in capsys.readouterr().err


def test_a_larger_file_shows_the_same(saved: Path, tmp_path: Path) -> None:
    tokens = ["--from-tokens", str(saved / "one.safetensors")]
    assert main(["generate", *tokens, "--scale", "2", "-o", str(tmp_path / "large.gif")]) == 0
    assert main(["generate", *tokens, "--out", str(tmp_path / "small.gif")]) == 0
    pictures = []
    for name in ("large", "small"):
        with Image.open(tmp_path / f"{name}.gif") as picture:
            pictures.append(picture.convert("RGB"))
    large, small = pictures
    assert large.size == (2 * small.width, 2 * small.height)
    difference = np.asarray(large.resize(small.size)).astype(int) - np.asarray(small)
    assert np.abs(difference).mean() < 6


def test_the_result_is_shown_when_asked_for(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: shown.append(address) or True)
    assert main(["generate", "--from-tokens", str(saved / "one.safetensors"), "--open", "--out", str(tmp_path / "x.gif")]) == 0
    assert shown == [(tmp_path / "x.gif").as_uri()]


def test_bench_tells_what_the_machine_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--frames", "5", "--steps", "2", "--history", "visible", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert 0 < document["seconds to the first frame"] < document["seconds"]
    assert 0 < document["share of that"] < 1.5 and document["tera-operations"] > 0
    assert main(["bench", "--videos", "0"]) == 2
    assert "--videos must be 1 to 10000, got 0" in capsys.readouterr().err
