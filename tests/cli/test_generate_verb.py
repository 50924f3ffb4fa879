"""`lumos generate` with tokens files, and `lumos bench`: what users type, on the weights in the package."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import lumos.cli.generate_files as files
from lumos.cli.generate_files import Request, generate_to_files
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
    request = Request(("a red circle",), tmp_path / "x.webp", frames=5, save_tokens=tmp_path / "x.safetensors")

    def stop(done: int, passes: int) -> None:
        if done == passes:  # in the last frame
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_to_files(request, {"steps": 1, "guidance": 1.0}, stop)
    assert not (tmp_path / "x.webp").exists()
    whole = replace(request, out=tmp_path / "whole.webp", save_tokens=None)
    generate_to_files(whole, {"steps": 1, "guidance": 1.0})
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
    assert "folder that exists" in error(capsys, "a red circle", "--save-tokens", str(tmp_path / "no" / "x.safetensors"), *out)
    assert "window must be at most the 9" in error(capsys, "a red circle", "--window", "10", *out)
    assert "window must be at least 1" in error(capsys, "a red circle", "--window", "0", *out)
    assert "guidance_until must be a share" in error(capsys, "a red circle", "--guidance-until", "nan", *out)
    assert "memory beside the weights" in error(capsys, "a red circle", "--height", "16384", "--width", "16384", *out)
    assert list(tmp_path.iterdir()) == [tmp_path / "junk.safetensors"]


def test_long_work_is_announced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    request = Request(("a red circle",), tmp_path / "x.webp", frames=5)
    monkeypatch.setattr(files, "matrix_rate", lambda device, dtype: 1e9)
    generate_to_files(request, {"steps": 2, "guidance": 1.0}, None, said.append)
    assert said == []  # too little work to be worth measuring
    monkeypatch.setattr(files, "matrix_rate", lambda device, dtype: 1e12 / EFFICIENCY / 600)
    monkeypatch.setattr(files.Generator, "stream", lambda *_, **__: iter(()))
    with pytest.raises((RuntimeError, ValueError)):  # nothing was made: torch.cat of no parts
        generate_to_files(replace(request, frames=401, overwrite=True), {"steps": 20, "guidance": 3.0}, None, said.append)
    assert len(said) == 1 and "minutes here" in said[0]


def test_bench_tells_what_the_machine_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--frames", "5", "--steps", "2", "--history", "visible", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert 0 < document["seconds to the first frame"] < document["seconds"]
    assert 0 < document["share of that"] < 1.5 and document["tera-operations"] > 0
    assert main(["bench", "--videos", "0"]) == 2
    assert "videos must be at least 1" in capsys.readouterr().err
