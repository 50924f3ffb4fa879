"""The command `lumos`: words in, one function a verb out. What a verb does is imported when it runs, so that help is instant.

A verb is a dataclass of options, a function, and one line in VERBS. Everything that can be wrong with what a user typed or
has on disk leaves here as one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from lumos import __version__

T = TypeVar("T")


class UsageError(ValueError):
    """A command line that cannot be understood."""


def argument(help: str) -> Any:
    """A required word that follows the verb."""
    return field(metadata={"help": help, "positional": True})


def arguments(help: str) -> Any:
    """Any number of words that follow the verb."""
    return field(default=(), metadata={"help": help, "positional": True})


def required(help: str) -> Any:
    """An option that must be given."""
    return field(metadata={"help": help})


def option(default: Any, help: str, shown: str | None = None) -> Any:
    """An option; `shown` describes a default that is not a plain value."""
    return field(default=default, metadata={"help": help, "shown": shown})


@dataclass(frozen=True)
class GenerateArgs:
    """Turn sentences into videos or images.

    lumos generate "a red circle moves to the right" --out red.mp4
    lumos generate "a blue star" --out star.png
    lumos generate "it starts to spin" --image photo.jpg --out spin.gif
    """

    out: Path = required(
        "file to write: .mp4, .gif or .webp for a video, .png for an image (one frame); several prompts are numbered"
    )
    prompt: tuple[str, ...] = arguments("what to show, in quotes; several make several videos in one batch")
    prompts: Path | None = option(None, "text file with one prompt a line, empty lines left out; instead of PROMPT", "none")
    image: Path | None = option(None, "image to start from (it becomes the first frame, cropped and resized to fit)", "none")
    video: Path | None = option(None, "video to continue (cropped, resized and brought to the model's frame rate)", "none")
    frames: int | None = option(None, "length in frames, 1 + 4k, with those of --image or --video", "as trained; 1 for .png")
    seed: int = option(0, "the same seed gives the same video")
    steps: int | None = option(None, "denoising steps a latent frame (4 frames of video); more is slower", "the model's")
    guidance: float | None = option(None, "how strongly to follow the prompt; 1 is no guidance and twice as fast", "the model's")
    temperature: float | None = option(None, "randomness of every code; below 1 is safer and duller", "the model's")
    history_mask: float | None = option(None, "share of each finished frame hidden from later ones, 0 up to 1", "the model's")
    sampler: Literal["paper", "released"] | None = option(None, "as in the paper, or as in the authors' code", "the model's")
    height: int | None = option(None, "pixels, a multiple of 32", "the model's")
    width: int | None = option(None, "pixels, a multiple of 32", "the model's")
    fps: float | None = option(None, "frames a second of the written file", "the model's")
    weights: str = option("tiny", "name of weights in the package, or a folder")
    device: str | None = option(None, "where to compute: cpu, cuda, cuda:1", "cuda if there is one, else cpu")
    force: bool = option(False, "replace the output file if it exists")
    json: bool = option(False, "print one JSON document as the last line of stdout")


@dataclass(frozen=True)
class TrainArgs:
    """Train a model; Ctrl-C stops and keeps everything, and the same command with --resume goes on.

    lumos train shapes-toy --tokenizer tiny --out runs/toy
    lumos train shapes-toy --tokenizer tiny --out runs/toy --set optim.lr=1e-3 --set max_steps=1000
    torchrun --nproc-per-node 8 -m lumos train shapes-tiny --out runs/tiny
    """

    preset: str = argument("name of a configuration in lumos/presets.py; a wrong one lists them")
    out: Path = required("folder of the run: weights, checkpoints, metrics, samples")
    tokenizer: str = option("tiny", "visual tokenizer: name of weights in the package, or a folder")
    resume: bool = option(False, "go on from the newest checkpoint in --out")
    set: tuple[str, ...] = option((), "change one setting of the preset, NAME=VALUE; repeat for more; a wrong one lists them")
    json: bool = option(False, "print one JSON document as the last line of stdout")


@dataclass(frozen=True)
class TrainTokenizerArgs:
    """Train a visual tokenizer; Ctrl-C stops and keeps everything, and the same command with --resume goes on.

    lumos train-tokenizer shapes-toy --out runs/tokenizer
    lumos train-tokenizer shapes-toy --out runs/tokenizer --set optim.lr=1e-3 --set batch=8
    """

    preset: str = argument("name of a configuration in lumos/presets.py; a wrong one lists them")
    out: Path = required("folder of the run: weights, checkpoints, metrics, samples")
    resume: bool = option(False, "go on from the newest checkpoint in --out")
    set: tuple[str, ...] = option((), "change one setting of the preset, NAME=VALUE; repeat for more; a wrong one lists them")
    json: bool = option(False, "print one JSON document as the last line of stdout")


@dataclass(frozen=True)
class ImportWeightsArgs:
    """Make a weights folder from a released Lumos-1 checkpoint, its numbers unchanged; or from the Cosmos tokenizer alone.

    lumos import-weights checkpoint/ weights/ --cosmos cosmos/ --text-tokenizer text_tokenizer.json
    lumos import-weights cosmos/ weights-of-the-tokenizer/
    """

    checkpoint: Path = argument(
        "folder with config.json and safetensors files; or one with encoder.jit and decoder.jit, or autoencoder.jit"
    )
    out: Path = argument("folder to write")
    cosmos: Path | None = option(None, "folder of the Cosmos tokenizer: its .jit files, or one imported before", "none")
    text_tokenizer: Path | None = option(
        None, "the published text_tokenizer.json, which prompts need", "the one in CHECKPOINT, if any"
    )
    size: Literal["672x384", "448x256"] | None = option(None, "width x height to make unless asked otherwise", "672x384")
    json: bool = option(False, "print one JSON document as the last line of stdout")


@dataclass(frozen=True, kw_only=True)
class ImportTokensArgs:
    """Turn the authors' pre-tokenised records (pickles, read as data alone) into Parquet shards, checked id by id.

    lumos import-tokens video_0.pkl video_1.pkl shards/
    lumos import-tokens records/ shards/
    """

    records: tuple[str, ...] = arguments(".pkl files, or folders that hold some")
    out: Path = argument("folder to write, new or empty")
    json: bool = option(False, "print one JSON document as the last line of stdout")


def run_generate(args: GenerateArgs) -> None:
    prompts = read_prompts(args.prompt, args.prompts)
    from lumos.generate import Request, generate_to_files

    asked = {"steps": args.steps, "guidance": args.guidance, "temperature": args.temperature, "history": args.history_mask}
    settings = {name: value for name, value in {**asked, "sampler": args.sampler}.items() if value is not None}
    request = Request(
        prompts=tuple(prompts),
        out=args.out,
        weights=args.weights,
        image=args.image,
        video=args.video,
        frames=args.frames,
        seed=args.seed,
        height=args.height,
        width=args.width,
        fps=args.fps,
        device=args.device,
        overwrite=args.force,
    )
    with progress_line() as progress:
        document = generate_to_files(request, settings, progress)
    if document["given"]:
        print(f"lumos: {document['given']}", file=sys.stderr)
    report(document if args.json else {"wrote": ", ".join(document["files"]), "seconds": document["seconds"]}, args.json)


def run_train(args: TrainArgs) -> None:
    from lumos.presets import MODELS
    from lumos.training.train_model import train_model
    from lumos.weights import find_weights

    config = with_settings(choose("preset", args.preset, MODELS), args.set)
    folder = train_model(config, args.out, find_weights(args.tokenizer, "tokenizer"), args.resume)
    report({"weights": str(folder)}, args.json)


def run_train_tokenizer(args: TrainTokenizerArgs) -> None:
    from lumos.presets import TOKENIZERS
    from lumos.training.train_tokenizer import train_tokenizer

    config = with_settings(choose("preset", args.preset, TOKENIZERS), args.set)
    train_tokenizer(config, args.out, args.resume)
    report({"weights": str(args.out / "tokenizer")}, args.json)


def run_import_weights(args: ImportWeightsArgs) -> None:
    from lumos.import_weights import import_weights

    width, height = (int(side) for side in (args.size or "672x384").split("x"))
    with progress_line("importing") as progress:
        document = import_weights(args.checkpoint, args.out, args.text_tokenizer, args.cosmos, (width, height), progress)
    report(document, args.json)


def run_import_tokens(args: ImportTokensArgs) -> None:
    from lumos.import_tokens import import_tokens

    with progress_line("importing") as progress:
        document = import_tokens([Path(record) for record in args.records], args.out, progress)
    report(document, args.json)


# verb -> what it does in a line, its options, its function
VERBS: dict[str, tuple[str, type[Any], Callable[[Any], None]]] = {
    "generate": ("a sentence (and an image, or the start of a video) -> a video or image file", GenerateArgs, run_generate),
    "train-tokenizer": ("train a visual tokenizer: pixels <-> codes", TrainTokenizerArgs, run_train_tokenizer),
    "train": ("train a model: text and codes -> codes", TrainArgs, run_train),
    "import-weights": (
        "a released Lumos-1 checkpoint or Cosmos tokenizer -> a weights folder",
        ImportWeightsArgs,
        run_import_weights,
    ),
    "import-tokens": ("the authors' pre-tokenised records -> Parquet shards", ImportTokensArgs, run_import_tokens),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name); returns the exit code: 0, 2 for a user's error, 130 for Ctrl-C."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("lumos: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        message = _explained(error)
        if message is None or os.environ.get("LUMOS_TRACEBACK"):
            raise
        print(f"lumos: {message}", file=sys.stderr)
        return 2


def read_prompts(words: Sequence[str], file: Path | None) -> list[str]:
    """The prompts of a command line: those given, or the lines of a file. ValueError for none, both or an empty one."""
    if (not words) == (file is None):
        raise UsageError(
            f'give either prompts or --prompts FILE, got {"both" if words else "neither"}; for example "a red circle"'
        )
    prompts = list(words)
    if file is not None:
        try:
            prompts = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} must be a text file in UTF-8 with one prompt a line, got other bytes; save it as one"
            ) from error
        if not prompts:
            raise ValueError(f"{file} must hold at least one prompt, one a line, got none; write one")
    for prompt in prompts:
        if not prompt.strip():
            raise ValueError(f'a prompt must have words, got {prompt!r}; say what to show, for example "a red circle"')
    return prompts


def choose(what: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or an error that says which names there are."""
    if name not in known:
        raise UsageError(f"unknown {what} {name!r}{_nearest(name, known)}; known: {', '.join(known)}")
    return known[name]


def with_settings(config: T, settings: Sequence[str]) -> T:
    """A copy of a (nested) dataclass with NAME=VALUE applied: dotted names, values as JSON or plain words."""
    from lumos.weights import read_config

    values = json.loads(json.dumps(asdict(config)))  # type: ignore[call-overload]
    known = list(_dotted(values))
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set must be NAME=VALUE, got {setting!r}; for example --set {known[-1]}=1")
        if name not in known:
            near = _nearest(name, known)
            raise UsageError(f"unknown setting {name!r}{near}{'' if near else '; known: ' + ', '.join(known)}")
        *outer, last = name.split(".")
        place = values
        for part in outer:
            place = place[part]
        place[last] = _value(text)
    return read_config(type(config), values, "--set")


@contextmanager
def progress_line(doing: str = "generating") -> Iterator[Callable[[int, int], None] | None]:
    """A live bar on stderr with the time left, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def report(document: dict[str, Any], as_json: bool) -> None:
    """Say what was made: one JSON document, or a line for each of its entries."""
    if as_json:
        print(json.dumps(document), flush=True)
    else:
        for name, value in document.items():
            print(f"{name}: {value}", flush=True)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
    elif words[0] == "--version":
        print(f"lumos {__version__}")
    else:
        verb, rest = words[0], words[1:]
        if verb.startswith("-"):
            raise UsageError(f"unknown option {verb!r} before the verb; start with one of {', '.join(VERBS)}")
        _, kind, function = choose("verb", verb, VERBS)
        args = parse(verb, kind, rest)
        if args is not None:
            function(args)
    return 0


def _overview() -> str:
    lines = [f"  {verb:<16} {summary}" for verb, (summary, _, _) in VERBS.items()]
    return "\n".join(
        [
            f"lumos {__version__}: text, images and video in one model",
            "",
            "usage: lumos VERB ...        lumos VERB --help explains every option",
            "",
            *lines,
            "",
            "LUMOS_TRACEBACK=1 shows where an error comes from.",
        ]
    )


def parse(verb: str, kind: type[T], words: Sequence[str]) -> T | None:
    """The options dataclass of a verb from the words after it; None when only help was asked for. Raises UsageError."""
    parser = _Parser(verb, kind)
    if "-h" in words or "--help" in words:
        parser.print_help()
        return None
    end = list(words).index("--") if "--" in words else len(words)  # argparse itself mixes up what follows a --
    values, extra = parser.parse_known_intermixed_args(words[:end])
    if words[end + 1 :]:
        many = [action.dest for action in parser._actions if action.nargs == "*"]
        if not many:
            raise UsageError(f"unexpected {words[end + 1]!r} after --; see lumos {verb} --help")
        getattr(values, many[0]).extend(words[end + 1 :])
    if extra:
        name = extra[0].partition("=")[0]
        if not name.startswith("-"):
            raise UsageError(f"unexpected {name!r}; put words that belong together in quotes, see lumos {verb} --help")
        options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        raise UsageError(f"unknown option {name}{_nearest(name, options)}; see lumos {verb} --help")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in vars(values).items()})


class _Parser(argparse.ArgumentParser):
    """argparse over the fields of a dataclass; every error is one line."""

    def __init__(self, verb: str, kind: type) -> None:
        description, _, examples = (kind.__doc__ or "").partition("\n\n")
        examples = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
        super().__init__(
            prog=f"lumos {verb}",
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=120),
            allow_abbrev=False,
        )
        self.verb = verb
        hints = typing.get_type_hints(kind)
        for entry in fields(kind):
            _add(self, entry.name, hints[entry.name], entry.default, entry.metadata)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+?)(/\S+)?: ", r"\1 ", message)
        raise UsageError(f"{message}; see lumos {self.verb} --help")


def _add(parser: _Parser, name: str, kind: Any, default: Any, metadata: Mapping[str, Any]) -> None:
    plain = [choice for choice in typing.get_args(kind) if choice is not type(None)] or [kind]
    is_tuple, is_literal = typing.get_origin(kind) is tuple, typing.get_origin(plain[0]) is Literal
    item = plain[0]
    metavar, convert = (_one_of(typing.get_args(item))) if is_literal else CONVERT[item]
    shown = metadata.get("shown") or ("no" if default is False else "none" if default == () else default)
    help = (
        metadata["help"]
        + ("" if default in (MISSING, ()) else f" (default: {shown})")
        + (" (required)" if default is MISSING else "")
    )
    help = help.replace("%", "%%")
    if metadata.get("positional"):
        nargs = "*" if is_tuple else None
        parser.add_argument(name, metavar=name.upper(), type=convert, help=help, nargs=nargs, default=[] if is_tuple else None)
        return
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        parser.add_argument(flag, action="store_true", help=help)
    elif is_tuple:
        parser.add_argument(flag, action="append", default=[], metavar="NAME=VALUE", type=convert, help=help)
    else:
        missing = default is MISSING
        parser.add_argument(
            flag, metavar=metavar, type=convert, required=missing, default=None if missing else default, help=help
        )


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def _one_of(choices: tuple[str, ...]) -> tuple[str, Callable[[str], str]]:
    def convert(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}, got {text!r}{_nearest(text, choices)}")
        return text

    return "{" + ",".join(choices) + "}", convert


CONVERT: dict[type, tuple[str | None, Callable[[str], Any]]] = {
    bool: (None, str),
    int: ("N", _whole),
    float: ("X", _number),
    str: ("NAME", str),
    Path: ("PATH", Path),
}


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def _dotted(values: Mapping[str, Any], before: str = "") -> Iterable[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{before}{name}.")
        else:
            yield before + name


def _value(text: str) -> Any:
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text


def _explained(error: Exception) -> str | None:
    """What to tell the user in one line, or None for a fault of our own."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("lumos"):
        return f"this needs the package {error.name.split('.')[0]!r}, which is missing; run pip install 'lumos[train,serve]'"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's; torch may not be imported
        return "out of memory; use fewer prompts at once, fewer frames or a smaller size, or close other programs"
    if isinstance(error, OSError) and error.strerror:
        where = f" {error.filename}" if error.filename else ""
        return f"cannot use{where}: {error.strerror}; check the path, its permissions and free space"
    if isinstance(error, ValueError | OSError):
        return re.sub(r"\s*\n\s*", " ", str(error).strip())
    return None
