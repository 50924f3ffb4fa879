"""`lumos generate` with tokens files, and `lumos bench`: what users type."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

import lumos.cli.generate_files as files
from lumos.cli.generate import GenerateArgs
from lumos.cli.generate_files import generate_files
from lumos.cli.main import main
from lumos.diffusion.cost import EFFICIENCY
from lumos.generate import Generator

FAST, QUICK = ["--steps", "1", "--guidance", "1"], {"steps": 1, "guidance": 1.0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    words = ["a red circle", "--frames", "5", "--out", str(folder / "one.webp"), "--save-tokens", str(folder / "one.safetensors")]
    assert main(["generate", *words, *FAST]) == 0
    return folder


def test_pictures_of_later_frames_reach_the_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for color in ("red", "lime", "blue"):
        Image.new("RGB", (64, 32), color).save(tmp_path / f"a={color}.png")
    given: dict[int, Tensor] = {}
    stream = Generator.stream

    def watch(*rest: Any, keyframes: dict[int, Tensor], **settings: Any) -> Iterator[Tensor]:
        given.update(keyframes)
        return stream(*rest, keyframes=keyframes, **settings)

    monkeypatch.setattr(Generator, "stream", watch)
    keys = [f"--keyframe={time}={tmp_path / f'a={color}.png'}" for time, color in (("0.5s", "red"), ("6", "lime"))]
    words = ["a red circle", "--fps", "4", "--frames", "9", *keys, "--last-image", str(tmp_path / "a=blue.png"), *FAST]
    assert main(["generate", *words, "--out", str(tmp_path / "x.webp")]) == 0
    # frames as they are played; red, green and blue are the brightest channel of each
    assert {at: int(pixels_CHW.mean((1, 2)).argmax()) for at, pixels_CHW in given.items()} == {2: 0, 6: 1, 8: 2}
    assert "center-cropped" in capsys.readouterr().err


def test_what_the_model_does_not_know_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "two.txt").write_text("a hound\n\U0001f98a on the beach")
    words = ["--prompts", str(tmp_path / "two.txt"), "--out", str(tmp_path / "two.png"), "--json", "--width", "64"]
    assert main(["generate", *words, *FAST]) == 0
    out, told = capsys.readouterr()
    document = json.loads(out.splitlines()[-1])
    assert document["given"].startswith("was trained at 128x128; at 64x128 things may") and document["given"] in told
    assert document["prompts"] == ["a dog", "a fox on the beach"] and document["unknown"] in told
    assert document["unknown"] == "does not know: hound, reads it as dog; reads \U0001f98a as a fox"
    (tmp_path / "script.txt").write_text("0s: \U0001f98a\n")
    assert (
        main(["generate", "--script", str(tmp_path / "script.txt"), "--out", str(tmp_path / "a.webp"), "--frames", "5", *FAST])
        == 0
    )
    assert "reads \U0001f98a as a fox" in capsys.readouterr().err


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
        generate_files(args, ["a red circle"], QUICK, stop)
    assert not (tmp_path / "x.webp").exists()
    whole = replace(args, out=tmp_path / "whole.webp", save_tokens=None)
    generate_files(whole, ["a red circle"], QUICK)
    words = ["--from-tokens", str(tmp_path / "x.safetensors"), "--branch", "1", "--frames", "5"]
    assert main(["generate", *words, *FAST, "--out", str(tmp_path / "on.webp")]) == 0
    assert (tmp_path / "on.webp").read_bytes() == (tmp_path / "whole.webp").read_bytes()


def test_tokens_that_cannot_be_used(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens, junk = ["--from-tokens", str(saved / "one.safetensors")], tmp_path / "junk.safetensors"
    junk.write_text("junk")
    for words, message in (
        ([*tokens, "a red circle"], "only decodes"),
        ([*tokens, "--branch", "3"], "frames to keep must be 1 + 4k"),
        ([*tokens, "--image", "x.png"], "image and from-tokens"),
        ([*tokens, "--height", "64"], "leave them out"),
        (["--from-tokens", "none.safetensors"], "no tokens file"),
        (["--from-tokens", str(junk)], "must be a tokens file"),
        (["a red circle", "--save-tokens", str(saved / "one.safetensors")], "exists"),
    ):
        assert main(["generate", *words, "--out", str(tmp_path / "x.webp")]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [junk]


def test_a_script_is_a_session_that_is_told_its_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, tokens = tmp_path / "story.txt", tmp_path / "s.safetensors"
    script.write_text("0: a red circle moves up\n\n 0.5s : it stops\n9: a blue star, 3: two\n")
    words = ["--script", str(script), "--seed", "3", "--save-tokens", str(tokens), "--out", str(tmp_path / "s.webp"), "--json"]
    assert main(["generate", *words, "--frames", "17", *FAST]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["frames"] == 17 and len(document["files"]) == 1
    generator = Generator.from_folder(device="cpu")
    made = generator.load_session(tokens)
    assert made.sentences == [(0, "a red circle moves up"), (5, "it stops"), (9, "a blue star, 3: two")]
    session = generator.session("a red circle moves up", 3, steps=1, guidance=1.0)
    for sentence, latent in (("it stops", 2), ("a blue star, 3: two", 1), ("", 2)):
        for _ in range(latent):
            next(session)
        if sentence:
            session.say(sentence)
    assert all(bool((one == other).all()) for one, other in zip(made.codes, session.codes, strict=True))


def test_a_script_goes_on_after_its_last_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(files, "_steered", lambda session, script, count, progress: made.append(count) or iter(()))
    (tmp_path / "story.txt").write_text("0: a red circle\n60s: it stops")
    with pytest.raises(ValueError, match="non-empty"):  # no parts
        generate_files(GenerateArgs(tmp_path / "x.webp", script=tmp_path / "story.txt"), [], QUICK)
    assert made == [1 + 120 + 4]  # from frame 481, the first of a latent frame after 480, as many more as a whole clip has


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: a\n4s: b\n3s: c", "line 3 of {} must start later than the one before, by 4 frames or more, got 3s"),
        ("0: a\n1s: b\n9: c", "by 4 frames or more, got 9"),
        ("1s: a", "line 1 of {} must start at 0, got 1s"),
        ("0: a\n4s:  ", "line 2 of {} must be TIME: SENTENCE, got '4s:  '"),
        ("0: a\n1.5: b", "must be TIME: SENTENCE"),
        ("a red circle", "must be TIME: SENTENCE"),
        ("\n", "must have a line TIME: SENTENCE, got none"),
        ("0: a\n20: b", "must start before the end, frame 17"),
        ("0: a\n" + "\n".join(f"{4 * n + 1}: b" for n in range(10_000)), "must be before frame 10000"),
        ("0: a\n5: " + "b " * 80, "at most 62 text ids"),
        (b"\xff", "must be text in UTF-8"),
    ],
)
def test_scripts_that_cannot_be_followed(
    text: str | bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "story.txt"
    script.write_bytes(text if isinstance(text, bytes) else text.encode())
    words = ["generate", "--script", str(script), "--out", str(tmp_path / "x.webp"), "--frames", "17", *FAST]
    assert main(words) == 2 and message.format(script) in capsys.readouterr().err
    assert main([*words, "a prompt"]) == 2 and "--script has its own sentences" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [script]


def test_long_work_is_announced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = GenerateArgs(tmp_path / "x.webp", frames=5)
    monkeypatch.setattr(files, "matrix_rate", lambda device, dtype: files.WORTH_MEASURING / EFFICIENCY / 600)
    generate_files(args, ["a red circle"], QUICK | {"steps": 2})
    assert capsys.readouterr().err == ""  # too little work to be worth measuring
    monkeypatch.setattr(files, "WORTH_MEASURING", 0)
    monkeypatch.setattr(files, "matrix_rate", lambda device, dtype: 1e5)
    monkeypatch.setattr(files.Generator, "stream", lambda *_, **__: iter(()))
    with pytest.raises((RuntimeError, ValueError)):  # nothing was made: torch.cat of no parts
        generate_files(replace(args, frames=401, force=True), ["a red circle"], {"steps": 20, "guidance": 3.0})
    assert "min here" in capsys.readouterr().err
    monkeypatch.setattr("lumos.diffusion.cost.free_memory", lambda device: 1e6)
    with pytest.raises(ValueError, match="memory beside the weights"):
        generate_files(replace(args, force=True), ["a red circle"], QUICK)


def test_a_larger_file_shows_the_same(tmp_path: Path) -> None:
    pictures = []
    for name, scale in (("large", "2"), ("small", "1")):
        assert main(["generate", "a red circle", "--scale", scale, "-o", str(tmp_path / f"{name}.png"), *FAST]) == 0
        with Image.open(tmp_path / f"{name}.png") as picture:
            pictures.append(picture.convert("RGB"))
    large, small = pictures
    assert large.size == (2 * small.width, 2 * small.height)
    again, as_made = (np.asarray(picture).astype(int) for picture in (large.resize(small.size, Image.Resampling.BOX), small))
    assert 3 * np.abs(again - as_made).mean() < np.abs(again - as_made[::-1]).mean()


def test_the_result_is_shown_when_asked_for(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: shown.append(address) or True)
    assert main(["generate", "--from-tokens", str(saved / "one.safetensors"), "--open", "--out", str(tmp_path / "x.gif")]) == 0
    assert shown == [(tmp_path / "x.gif").as_uri()]


def test_bench_tells_what_the_machine_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--frames", "5", "--steps", "2", "--history", "visible", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert 0 < document["seconds to the first frame"] < document["seconds"]
    assert 0 < document["share of that"] < 1.5
