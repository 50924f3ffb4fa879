"""The command line: help from the source of dataclasses, and what a user gets wrong: one line, and nothing left behind."""

import dataclasses
import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lumos import presets
from lumos.cli import main as cli
from lumos.cli import options, serve
from lumos.cli.data import ImportTokensArgs
from lumos.cli.generate import GenerateArgs, read_prompts
from lumos.cli.main import main
from lumos.cli.options import Fields, Verb, options_of, parse, with_settings
from lumos.cli.train import RunArgs, TrainArgs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The error of a command line, run in an empty folder: one line on stderr alone, exit code 2, no file made or changed."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert main(words) == 2
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("lumos: ") and err.count("\n") == 1 and err.endswith("\n"), err
        return err.removeprefix("lumos: ").strip()

    return run


def test_nothing_heavy_is_imported_that_is_not_needed(tmp_path: Path) -> None:
    script = """
import sys
from lumos.cli.main import VERBS, main
assert main(["--help"]) == 0
for verb in VERBS:
    assert main([verb, "--help"]) == 0
heavy = {"torch", "numpy", "av", "PIL", "rich", "tokenizers", "safetensors"} & set(sys.modules)
assert not heavy, heavy
sys.modules["av"] = None  # rented machines with cards seldom have it
assert main(["generate", "a", "--out", sys.argv[1], "--steps", "1"]) == 0
assert "torch._dynamo" not in sys.modules  # it takes longer to load than all the rest
import lumos.training.train_model, lumos.training.train_tokenizer, lumos.evaluation.run
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "a.png"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {verb} " in out for verb in cli.VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lumos 0.")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_explains_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for kind in cli.VERBS[verb].kinds:
        options = options_of(kind)
        assert all(
            len(option.help.partition("(default")[0]) > 8 and f" {option.shown} " in out and option.help in out
            for option in options
        )
        owner = getattr(importlib.import_module(kind.module), kind.name) if isinstance(kind, Fields) else kind
        flags = kind.flags if isinstance(kind, Fields) else {}
        names = [field.name for field in dataclasses.fields(owner) if flags.get(field.name, "x")]
        assert [option.field for option in options] == names  # none is overlooked
    assert f"examples: lumos {verb} " in out or verb == "serve"
    assert "PACKAGED" not in out  # but the name that it holds


@pytest.mark.parametrize(("verb", "table"), [("train", "MODELS"), ("train-tokenizer", "TOKENIZERS"), ("estimate", "MODELS")])
def test_help_lists_the_presets_and_the_settings_of_each(verb: str, table: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in getattr(presets, table))
    assert main([verb, "shapes-toy", "--help"]) == 0
    out = capsys.readouterr().out
    config = getattr(presets, table)["shapes-toy"]
    assert all(f"\n  {name} = {json.dumps(value)}" in out and meaning for name, value, meaning in options.settings_of(config))
    assert f"optim.ema = {config.optim.ema} " in out and "moving average" in out
    assert main([verb, "shapes-toy", "--show", "--optim.lr=0.5", "--set", "optim.clip=4"]) == 0
    out = capsys.readouterr().out
    assert "\n  optim.lr = 0.5 " in out and "\n  optim.clip = 4.0 " in out


def test_the_command_works_as_a_process() -> None:
    words = ["generate", "a red circle", "--out", "a.mp4", "--framse", "3"]
    done = subprocess.run([sys.executable, "-m", "lumos", *words], capture_output=True, text=True, cwd=ROOT)
    said = "lumos: unknown option --framse (did you mean --frames?); see lumos generate --help\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["generat"], ["unknown verb 'generat'", "did you mean generate?", "train-tokenizer"]),
        (["xyz"], ["unknown verb 'xyz'; known: generate"]),
        (["--quick"], ["unknown option '--quick' before the verb"]),
        (["generate", "a"], ["required: --out", "lumos generate --help"]),
        (["generate", "--out", "x.mp4"], ["either prompts or --prompts FILE, got neither"]),
        (["generate", "--prompts", "nothing.txt", "--out", "x.mp4"], ["cannot use nothing.txt: No such file"]),
        (["train", "--out", "x"], ["required: PRESET"]),
        (["train", "shapes-toy"], ["required: --out"]),
        (["train", "shapes-toy", "--out", "x", "--optim.lrr", "1"], ["'optim.lrr' (did you mean optim.lr?)"]),
        (["train", "shapes-toy", "--out", "x", "--max_steps", "3"], ["unknown option --max_steps", "is --set NAME=VALUE"]),
        (["train", "shapes-toy", "--out", __file__], ["test_cli.py: File exists; it is no folder, name one"]),
        (["train", "shapes-toy", "--lora.rank", "-1", "--out", "x"], ["lora: rank must be 0 to 4096, got -1"]),
        (["train", "shapes-toy", "--video.frames", "10", "--out", "x"], ["video: frames must be 1 + 4k, got 10; use 13"]),
        (["train", "shapes-toy", "--worlds.frames", "10", "--out", "x"], ["frames must be 1 + 4k, got 10; use 13"]),
        (["train", "shapes-toy", "more", "--out", "x"], ["unexpected 'more'"]),
        (["train", "shapes-tony", "--out", "x"], ["unknown preset 'shapes-tony' (did you mean shapes-toy?)", "known: shapes-"]),
        (["train-tokenizer", "q", "--out", "x"], ["unknown preset 'q'; known: box, "]),
        (["train-tokenizer", "shapes-toy", "--out", "x", "--set", "seed"], ["--set must be NAME=VALUE, got 'seed'"]),
        (["train-tokenizer", "shapes-toy", "--out", "x", "--set", "zzz=1"], ["unknown setting 'zzz'; known: "]),
        (["train-tokenizer", "shapes-toy", "--out", "x", "--set", "optim.lr=fast"], ["lr must be of type float, got 'fast'"]),
        (["train-tokenizer", "shapes-toy", "--out", "x", "--set", "optim.ema=2"], ["ema must be 0 to 1, got 2"]),
        (["import-tokens"], ["required: RECORDS, OUT"]),
        (["bench", "--videos", "0"], ["--videos must be 1 to 10000, got 0"]),
        (["estimate", "1b-384p", "--memory", "lots"], ["--memory must be a size in GB, got 'lots'"]),
        (["estimate", "1b-384p", "--memory", "0GB"], ["--memory must be a size in GB"]),
        (["estimate", "1b-384p", "--gpus", "0"], ["--gpus must be 1 to 100000, got 0"]),
        (["estimate", "1b-384p", "--card", "H2000"], ["unknown card 'H2000' (did you mean H200?)"]),
        (["estimate", "1b-384p", "--gpus", "3", "--set", "parallel.replicas=2"], ["multiple of parallel.replicas = 2, got 3"]),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(words: list[str], parts: list[str], refused: Callable[..., str]) -> None:
    message = refused(*words)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--oot", "x.mp4"], ["unknown option --oot (did you mean --out?)"]),
        (["--frams=3"], ["unknown option --frams (did you mean --frames?)"]),
        (["-q"], ["unknown option -q"]),
        (["--frames"], ["--frames expected one argument"]),
        (["--out", "."], ["the output must end in .mp4"]),
        (["--frames", "many"], ["--frames must be of type int, got 'many'"]),
        (["--frames", "1.5"], ["--frames must be of type int, got 1.5"]),
        (["--frames", "0"], ["--frames must be 1 to 10000, got 0"]),
        (["--frames", "16"], ["1 + 4k", "got 16", "use 17"]),
        (["--frames", "100001"], ["--frames must be 1 to 10000, got 100001"]),
        (["--fps", "0"], ["--fps must be 0.01 to 1000, got 0"]),
        (["--guidance", "x"], ["--guidance must be of type float, got 'x'"]),
        (["--guidance", "NaN"], ["--guidance must be", "got nan"]),
        (["--guidance", "-2"], ["--guidance must be 0 to 10000, got -2"]),
        (["--guidance-until", "2"], ["--guidance-until must be 0 to 1"]),
        (["--temperature", "0"], ["temperature", "0.001 to"]),
        (["--sampler", "papr"], ["--sampler must be one of paper, released"]),
        (["--precision", "fp4"], ["--precision must be one of plain, fp8, int8, got 'fp4'"]),
        (["--steps", "0"], ["--steps must be 1 to", "got 0"]),
        (["--steps", "300"], ["1 to the 256 codes", "got 300"]),
        (["--window", "10"], ["window must be at most the 9"]),
        (["--window", "0"], ["--window must be 1 to", "got 0"]),
        (["--history-mask", "1"], ["history", "1"]),
        (["--height", "100"], ["multiples of 32", "100", "96"]),
        (["--height", "16384", "--width", "16384"], ["height and width may be at most 2016"]),
        (["--force=no"], ["--force takes no value, got 'no'"]),
        (["--out", "x.gif", "--fps", "60"], ["at most 50 fps, got 60"]),
        (["--out", "x.webp", "--scale", "16", "--width", "1056", "--height", "32"], ["at most 16383 pixels"]),
        (["--device", "abacus"], ["cpu, cuda", "abacus"]),
        (["--device", "cuda:99"], ["cuda:99", "use cpu"]),
        (["--weights", "huge"], ["no weights named 'huge'", "use one of"]),
        (["--weights", "empty"], ["empty"]),
        (["--weights", "run"], ["text_tokenizer.json"]),
        (["--prompts", "b"], ["either prompts or --prompts FILE, got both"]),
        (["--image", "none.png"], ["none.png"]),
        (["--image", "text.png"], ["text.png"]),
        (["--image", "void.png"], ["void.png"]),
        (["--image", "dot.png"], ["1x1"]),
        (["--video", "text.png"], ["text.png"]),
        (["--video", "void.png"], ["void.png"]),
        (["--image", "dot.png", "--video", "text.png"], ["image and video; leave one out"]),
        (["--keyframe", "end.png"], ["--keyframe must be TIME=PATH, got 'end.png'; for example 2s="]),
        (["--keyframe", "2.5=end.png"], ["--keyframe must be TIME=PATH"]),
        (["--keyframe", "2s=text.png"], ["text.png is no readable image"]),
        (["--last-image", "none.png"], ["none.png"]),
        (["--keyframe", "2.1s=flat.png"], ["last frame, 16, got 17; use another time"]),
        (["--keyframe", "16=dot.png", "--last-image", "flat.png"], ["one keyframe, got dot.png and flat.png for frame 16"]),
        (["--from-tokens", "x", "--last-image", "flat.png"], ["leave one out"]),
        (["--branch", "5"], ["--branch needs --from-tokens"]),
        (["--from-tokens", "text.png"], ["only decodes"]),
        (["--out", "text.png"], ["text.png exists", "--force"]),
        (["--out", "x.avi"], [".mp4"]),
        (["--out", "nowhere/x.mp4"], ["nowhere"]),
        (["--save-tokens", "text.png"], ["must end in .safetensors"]),
        (["--save-tokens", "no/x.safetensors"], ["there is no folder"]),
    ],
)
def test_what_cannot_be_generated(
    words: list[str], parts: list[str], refused: Callable[..., str], random_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("not a picture at all")
    (tmp_path / "void.png").touch()
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "flat.png")
    (tmp_path / "empty").mkdir()
    if "run" in words:
        shutil.copytree(random_folder, tmp_path / "run/model", ignore=shutil.ignore_patterns("text_tokenizer.json"))
    message = refused("generate", "a red circle", "--out", "x.mp4", "--steps", "1", *words)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("  ", ["a prompt must have words, got '  '"]),
        ("красный круг", ["reads English", "reword"]),
        ("red " * 100, ["at most 62 text ids", "shorten"]),
    ],
)
def test_prompts_that_cannot_be_read(prompt: str, parts: list[str], refused: Callable[..., str]) -> None:
    message = refused("generate", prompt, "--out", "x.mp4", "--steps", "1")
    assert all(part in message for part in parts), message


def test_options_and_prompts_may_come_in_any_order() -> None:
    kinds = cli.VERBS["generate"].kinds
    args = parse("generate", kinds, ["--seed", "-3", "a", "-o", "b.mp4", "7", "--force", "--guidance", "1"])
    assert args == [GenerateArgs(Path("b.mp4"), ("a", "7"), seed=-3, force=True), {"guidance": 1.0}]
    args = parse("generate", kinds, ["--out=x", "a", "--history-mask=0.5", "--weights", "1"])
    assert args == [GenerateArgs(Path("x"), ("a",), weights="1"), {"history": 0.5}]
    assert parse("generate", kinds, ["--out", "x", "--", "-minus"]) == [GenerateArgs(Path("x"), ("-minus",)), {}]
    args = parse("train", cli.VERBS["train"].kinds, ["--set", "a=1", "p", "--b.c", "2", "--d.e=3", "--text", "t", "--out", "r"])
    assert args == [TrainArgs(), RunArgs("p", Path("r"), set=("a=1", "b.c=2", "d.e=3")), {"text": Path("t")}]
    args = parse("import-tokens", [ImportTokensArgs], ["a", "b", "out"])
    assert args == [ImportTokensArgs((Path("a"), Path("b")), Path("out"))]
    assert parse("serve", [serve.SERVER_OPTIONS], ["--no-auth", "--port", "0"]) == [{"no_auth": True, "port": 0}]


def test_prompts_are_taken_as_they_are_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_prompts(("a", "red", "circle"), None) == ["a red circle"]
    assert 'one prompt of these words, "a red circle"' in capsys.readouterr().err
    assert read_prompts(("stars", "a red circle"), None) == ["stars", "a red circle"]
    assert read_prompts(("\u201ca red\r\n circle\u2019s edge\u201d\n",), None) == ["a red circle's edge"]
    assert capsys.readouterr().err == ""
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\n  \nein gr\u00fcner Stern\n", "utf-8")
    assert read_prompts((), file) == ["a red circle", "ein gr\u00fcner Stern"]
    for content, words in [(b"\n \n", "at least one prompt"), (b"\xff\xfe\xff", "must be text in UTF-8")]:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_prompts((), file)


@pytest.mark.parametrize("config", [*presets.MODELS.values(), *presets.TOKENIZERS.values()])
def test_every_setting_of_every_preset_can_be_set(config: Any) -> None:
    values = json.loads(json.dumps(asdict(config)))
    for name in [name for name, _, _ in options.settings_of(config)]:
        value = values
        for part in name.split("."):
            value = value[part]
        text = value if isinstance(value, str) else json.dumps(value)
        assert with_settings(config, [f"{name}={text}"]) == config
    changed = with_settings(config, ["seed=1", "optim.lr=0.5", "seed=7", "max_steps=None"])
    assert (changed.seed, changed.optim.lr, changed.max_steps) == (7, 0.5, None)
    assert changed != config


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("frames must be 1 + 4k,\n got 16; use 17"), "frames must be 1 + 4k, got 16; use 17"),
        (FileExistsError("a.mp4 exists; use --force"), "a.mp4 exists; use --force"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/x"), "cannot use /root/x: Permission denied; check"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "cannot use: No space left on device; check"),
        (ModuleNotFoundError("no", name="pyarrow.x"), "this needs the package 'pyarrow', which is missing; run pip"),
        (RuntimeError("CUDA out of memory. Tried"), "out of memory; use fewer"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), "out of memory; use fewer"),
        (MemoryError(), "out of memory; use fewer"),
        *((error, None) for error in (RuntimeError("bug"), KeyError("bug"), ModuleNotFoundError("x", name="lumos.x"))),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_our_own_faults_keep_their_traceback(
    error: BaseException, message: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: Any) -> None:
        raise error

    monkeypatch.setitem(cli.VERBS, "generate", Verb((GenerateArgs,), fail))
    if message is not None:
        assert main(["generate", "a", "--out", "x"]) == (130 if isinstance(error, KeyboardInterrupt) else 2)
        said = capsys.readouterr().err
        assert said.startswith(f"lumos: {message}") and said.count("\n") == 1
        monkeypatch.setenv("LUMOS_TRACEBACK", "1")
    if not isinstance(error, KeyboardInterrupt):
        with pytest.raises(type(error)):
            main(["generate", "a", "--out", "x"])


def test_an_estimate_says_what_fits_in_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "3b-384p", "--gpus", "8", "--memory", "60GB"]) == 0
    out = capsys.readouterr().out
    assert "3b-384p on 8 x H200 of 60 GiB" in out and "a step of 1 videos a GPU" in out and "a step of 6 images a GPU" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("off", "selective", "full"))]
    assert len(rows) == 6 and {row[1] for row in rows} == {"yes", "no"}
    assert main(["estimate", "1b-256p-images", "--memory", "20", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["steps"].keys() == {"images"} and "advice" in document["steps"]["images"]
    for row in document["steps"]["images"]["modes"]:
        parts = ("parameters", "gradients", "optimiser", "activations", "logits", "gathered")
        assert row["gib"] == pytest.approx(sum(row[part] for part in parts), abs=0.05)


def test_how_threads_wait_is_set_unless_the_user_did(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ["OMP_WAIT_POLICY"] = "active"
    os.environ.pop("GOMP_SPINCOUNT", None)
    main(["--help"])
    assert os.environ["OMP_WAIT_POLICY"] == "active" and "GOMP_SPINCOUNT" not in os.environ
    del os.environ["OMP_WAIT_POLICY"]
    main(["--help"])
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("PASSIVE", "3000")
