import dataclasses
import errno
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lumos import presets
from lumos.cli import generate, options, serve
from lumos.cli import main as cli
from lumos.cli.generate import GenerateArgs, read_prompts
from lumos.cli.imports import ImportTokensArgs
from lumos.cli.main import main
from lumos.cli.options import Fields, UsageError, Verb, options_of, parse, with_settings
from lumos.cli.train import RunArgs, TrainArgs

ROOT = Path(__file__).parents[2]


def lumos(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "lumos", *words], capture_output=True, text=True, cwd=ROOT)


def one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a wrong command line, which must be one line on stderr, nothing on stdout, and exit code 2."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lumos: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err.removeprefix("lumos: ").strip()


def test_help_imports_nothing_heavy() -> None:
    script = """
import sys
from lumos.cli.main import VERBS, main
assert main(["--help"]) == 0
for verb in VERBS:
    assert main([verb, "--help"]) == 0
heavy = {"torch", "numpy", "av", "PIL", "rich", "tokenizers", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
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
        assert all(len(option.help) > 8 and f" {option.shown} " in out and option.help in out for option in options)
        if not isinstance(kind, Fields):  # none is overlooked
            assert [option.field for option in options] == [field.name for field in dataclasses.fields(kind)]
    assert f"examples: lumos {verb} " in out or verb == "serve"


@pytest.mark.parametrize("fields", [generate.SAMPLING, serve.SERVER_OPTIONS])
def test_options_that_are_fields_of_a_config_are_those_fields(fields: Fields) -> None:
    config = getattr(importlib.import_module(fields.module), fields.name)
    names = [field.name for field in dataclasses.fields(config) if fields.flags.get(field.name, "x")]
    assert [option.field for option in options_of(fields)] == names


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


def test_a_configuration_can_be_shown_without_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "shapes-toy", "--show", "--optim.lr=0.5", "--set", "lora.rank=4"]) == 0
    out = capsys.readouterr().out
    assert "\n  optim.lr = 0.5 " in out and "\n  lora.rank = 4 " in out


def test_the_command_works_as_a_process() -> None:
    done = lumos("--help")
    assert (done.returncode, done.stderr) == (0, "")
    done = lumos("generate", "a red circle", "--out", "a.mp4", "--framse", "3")
    assert done.returncode == 2
    assert done.stderr == "lumos: unknown option --framse (did you mean --frames?); see lumos generate --help\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["generat"], ["unknown verb 'generat'", "did you mean generate?", "train-tokenizer"]),
        (["xyz"], ["unknown verb 'xyz'; known: generate"]),
        (["--quick"], ["unknown option '--quick' before the verb"]),
        (["generate", "a", "--oot", "x.mp4"], ["unknown option --oot (did you mean --out?)"]),
        (["generate", "a"], ["required: --out", "lumos generate --help"]),
        (["generate", "a", "--out", "x.mp4", "--frams=3"], ["unknown option --frams (did you mean --frames?)"]),
        (["generate", "a", "--out", "x.mp4", "--frame", "3"], ["unknown option --frame (did you mean --frames?)"]),
        (["generate", "a", "--out", "x.mp4", "-q"], ["unknown option -q"]),
        (["generate", "a", "--out", "x.mp4", "--frames", "many"], ["--frames must be a whole number, got 'many'"]),
        (["generate", "a", "--out", "x.mp4", "--frames", "1.5"], ["--frames must be a whole number, got '1.5'"]),
        (["generate", "a", "--out", "x.mp4", "--guidance", "x"], ["--guidance must be a number, got 'x'"]),
        (["generate", "a", "--out", "x.mp4", "--frames"], ["--frames expected one argument"]),
        (["generate", "a", "--out", "x.mp4", "--sampler", "papr"], ["one of paper, released", "did you mean paper?"]),
        (["generate", "--out", "x.mp4"], ["either prompts or --prompts FILE, got neither"]),
        (["generate", "a", "--prompts", "b", "--out", "x.mp4"], ["either prompts or --prompts FILE, got both"]),
        (["generate", "  ", "--out", "x.mp4"], ["a prompt must have words, got '  '"]),
        (["generate", "--prompts", "nothing.txt", "--out", "x.mp4"], ["cannot use nothing.txt: No such file"]),
        (["train", "--out", "x"], ["required: PRESET"]),
        (["train", "shapes-toy"], ["required: --out"]),
        (["train", "shapes-toy", "--out", "x", "--optim.lrr", "1"], ["'optim.lrr' (did you mean optim.lr?)"]),
        (["train", "shapes-toy", "more", "--out", "x"], ["unexpected 'more'"]),
        (["train", "shapes-tony", "--out", "x"], ["unknown preset 'shapes-tony' (did you mean shapes-toy?)", "known: shapes-"]),
        (["train-tokenizer", "q", "--out", "x"], ["unknown preset 'q'; known: shapes-"]),
        (["train-tokenizer", "shapes-toy", "--out", "x", "--set", "seed"], ["--set must be NAME=VALUE, got 'seed'"]),
        (["train-tokenizer", "shapes-toy", "--out", "x", "--set", "optim.lrr=1"], ["'optim.lrr' (did you mean optim.lr?)"]),
        (["train-tokenizer", "shapes-toy", "--out", "x", "--set", "zzz=1"], ["unknown setting 'zzz'; known: "]),
        (["train-tokenizer", "shapes-toy", "--out", "x", "--set", "optim.lr=fast"], ["lr must be of type float, got 'fast'"]),
        (["train-tokenizer", "shapes-toy", "--out", "x", "--set", "optim.ema=2"], ["ema must be 0 to 1, got 2"]),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = one_line(words, capsys)
    assert all(part in message for part in parts), message


def test_options_and_prompts_may_come_in_any_order() -> None:
    kinds = cli.VERBS["generate"].kinds
    args = parse("generate", kinds, ["--seed", "3", "a", "-o", "b.mp4", "c d", "--force", "--guidance", "-1"])
    assert args == [GenerateArgs(Path("b.mp4"), ("a", "c d"), seed=3, force=True), {"guidance": -1.0}]
    args = parse("generate", kinds, ["--out=x", "a", "--history-mask=0.5"])
    assert args == [GenerateArgs(Path("x"), ("a",)), {"history": 0.5}]
    assert parse("generate", kinds, ["--out", "x", "--", "-minus"]) == [GenerateArgs(Path("x"), ("-minus",)), {}]
    args = parse("train", [TrainArgs, RunArgs], ["--set", "a=1", "p", "--b.c", "2", "--text", "t", "--out", "r"])
    assert args == [TrainArgs(text=Path("t")), RunArgs("p", Path("r"), set=("a=1", "b.c=2"))]
    args = parse("import-tokens", [ImportTokensArgs], ["a", "b", "out"])
    assert args == [ImportTokensArgs((Path("a"), Path("b")), Path("out"))]
    with pytest.raises(UsageError, match="required: RECORDS, OUT"):
        parse("import-tokens", [ImportTokensArgs], [])


def test_prompts_are_taken_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_prompts(("a", "red", "circle"), None) == ["a red circle"]
    assert 'one prompt of these words, "a red circle"' in capsys.readouterr().err
    assert read_prompts(("stars", "a red circle"), None) == ["stars", "a red circle"]
    assert read_prompts(("a red circle\n",), None) == ["a red circle"]
    assert read_prompts(("\u201ca red\r\n circle\u2019s edge\u201d",), None) == ["a red circle's edge"]
    assert capsys.readouterr().err == ""


def test_prompts_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\n  \nein gr\u00fcner Stern\n", "utf-8")
    assert read_prompts((), file) == ["a red circle", "ein gr\u00fcner Stern"]
    for content, words in [(b"\n \n", "at least one prompt"), (b"\xff\xfe\xff", "text file in UTF-8")]:
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


def failing(error: BaseException) -> Callable[[Any], None]:
    def run(args: Any) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("frames must be 1 + 4k,\n got 16; use 17"), "frames must be 1 + 4k, got 16; use 17"),
        (FileExistsError("a.mp4 exists; use --force"), "a.mp4 exists; use --force"),
        (NotADirectoryError("a is no folder; choose another"), "a is no folder; choose another"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/x"), "cannot use /root/x: Permission denied; check"),
        (IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), "/tmp"), "cannot use /tmp: Is a directory; check"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "cannot use: No space left on device; check"),
        (ModuleNotFoundError("no", name="pyarrow.x"), "this needs the package 'pyarrow', which is missing; run pip"),
        (RuntimeError("CUDA out of memory. Tried"), "out of memory; use fewer"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), "out of memory; use fewer"),
        (MemoryError(), "out of memory; use fewer"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli.VERBS, "generate", Verb((GenerateArgs,), failing(error)))
    assert one_line(["generate", "a", "--out", "x"], capsys).startswith(message)
    monkeypatch.setenv("LUMOS_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(["generate", "a", "--out", "x"])


@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), AssertionError("bug"), KeyError("bug"), ModuleNotFoundError("x", name="lumos.x")]
)
def test_a_fault_of_our_own_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.VERBS, "generate", Verb((GenerateArgs,), failing(error)))
    with pytest.raises(type(error)):
        main(["generate", "a", "--out", "x"])


def test_interrupting_is_not_a_fault(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.VERBS, "generate", Verb((GenerateArgs,), failing(KeyboardInterrupt())))
    assert main(["generate", "a", "--out", "x"]) == 130
    assert capsys.readouterr() == ("", "lumos: interrupted\n")


def test_the_last_line_of_stdout_is_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    options.report({"files": ["a.mp4"], "seed": 3}, as_json=True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"files": ["a.mp4"], "seed": 3}
    options.report({"files": ["a.mp4"]}, as_json=False)
    assert "a.mp4" in capsys.readouterr().out
