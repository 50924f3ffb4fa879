"""What users get wrong when generating: exit code 2, one line with rule, value and remedy, no traceback, no file left behind."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lumos.cli.main import main
from lumos.weights import PRETRAINED, find_weights

TINY = PRETRAINED / "tiny"


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> str:
    before = sorted(folder.rglob("*"))
    code = main(["generate", "--steps", "1", *words])
    captured = capsys.readouterr()
    assert code == 2, captured
    assert sorted(folder.rglob("*")) == before
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("lumos: ") and "Traceback" not in captured.err
    assert captured.out == ""
    return lines[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a red circle", "--frames", "0"], ["1 + 4k", "got 0", "use 1"]),
        (["a red circle", "--frames", "16"], ["1 + 4k", "got 16", "use 17"]),
        (["a red circle", "--frames", "many"], ["whole number", "many"]),
        ([""], ["must have words"]),
        (["красный круг"], ["reads English", "reword"]),
        (["red " * 100], ["at most 62 text ids", "shorten"]),
        (["a red circle", "--steps", "0"], ["at least 1", "got 0"]),
        (["a red circle", "--steps", "300"], ["1 to the 256 codes", "got 300"]),
        (["a red circle", "--guidance", "nan"], ["guidance", "nan"]),
        (["a red circle", "--guidance", "-2"], ["guidance", "-2"]),
        (["a red circle", "--temperature", "0"], ["temperature", "0.001 to"]),
        (["a red circle", "--history-mask", "1"], ["history", "1"]),
        (["a red circle", "--height", "100"], ["multiple of 32", "100", "96"]),
        (["a red circle", "--sampler", "best"], ["must be one of paper, released"]),
        (["a red circle", "--device", "abacus"], ["cpu, cuda", "abacus"]),
        (["a red circle", "--device", "cuda:99"], ["cuda:99", "use cpu"]),
        (["a red circle", "--stepz", "3"], ["unknown option --stepz", "--steps"]),
        (["a red circle", "--weights", "huge"], ["no weights named 'huge'", "tiny"]),
        (["a red circle", "--image", "none.png"], ["none.png"]),
        (["a red circle", "--prompts", "none.txt"], ["either prompts or --prompts"]),
    ],
)
def test_words(words: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, tmp_path, *words, "--out", str(tmp_path / "x.mp4"))
    assert all(part in line for part in expected), line


def test_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there.mp4").write_bytes(b"precious")
    assert "--force" in refused(capsys, tmp_path, "a red circle", "--out", str(tmp_path / "there.mp4"))
    assert (tmp_path / "there.mp4").read_bytes() == b"precious"
    assert ".mp4" in refused(capsys, tmp_path, "a red circle", "--out", str(tmp_path / "x.avi"))
    assert "nowhere" in refused(capsys, tmp_path, "a red circle", "--out", str(tmp_path / "nowhere" / "x.mp4"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "permission" in refused(capsys, tmp_path, "a red circle", "--out", str(tmp_path / "closed" / "x.mp4")).lower()


def test_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "x.mp4")]
    (tmp_path / "text.png").write_text("not a picture at all")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.mp4").write_text("not a video at all")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    for name, option in [("text.png", "--image"), ("empty.png", "--image"), ("text.mp4", "--video"), ("empty.png", "--video")]:
        assert name in refused(capsys, tmp_path, "a red circle", option, str(tmp_path / name), *out)
    assert "1x1" in refused(capsys, tmp_path, "a red circle", "--image", str(tmp_path / "dot.png"), *out)
    both = ["--image", str(tmp_path / "dot.png"), "--video", str(tmp_path / "text.mp4")]
    assert "leave one out" in refused(capsys, tmp_path, "a red circle", *both, *out)


def test_weights_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "x.mp4")]
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, tmp_path, "a red circle", "--weights", str(tmp_path / "empty"), *out)
    shutil.copytree(TINY, tmp_path / "run" / "model")
    assert find_weights(tmp_path / "run", "model") == tmp_path / "run" / "model"
    assert find_weights(tmp_path / "run", "tokenizer") == tmp_path / "run" / "model" / "tokenizer"
    (tmp_path / "run" / "model" / "text_tokenizer.json").unlink()
    assert "text_tokenizer.json" in refused(capsys, tmp_path, "a red circle", "--weights", str(tmp_path / "run"), *out)
