"""A dataclass of options <-> the command line: argparse over its fields, and NAME=VALUE over nested configs. No torch here.

Every mistake is a UsageError of one line with rule, value and remedy. Also here: a verb's progress bar and its report.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

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


def choose(what: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or an error that says which names there are."""
    if name not in known:
        raise UsageError(f"unknown {what} {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    return known[name]


def with_settings(config: T, settings: Sequence[str]) -> T:
    """A copy of a (nested) dataclass with NAME=VALUE applied: dotted names, values as JSON or plain words."""
    from lumos.config import read_config

    values = json.loads(json.dumps(asdict(config)))  # type: ignore[call-overload]
    known = list(_dotted(values))
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set must be NAME=VALUE, got {setting!r}; for example --set {known[-1]}=1")
        if name not in known:
            near = nearest(name, known)
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
        raise UsageError(f"unknown option {name}{nearest(name, options)}; see lumos {verb} --help")
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
    flag = "--" + name.replace("__", ".").replace("_", "-")
    if kind is bool:
        parser.add_argument(flag, dest=name, action="store_true", help=help)
    elif is_tuple:
        parser.add_argument(flag, dest=name, action="append", default=[], metavar="NAME=VALUE", type=convert, help=help)
    else:
        missing = default is MISSING
        parser.add_argument(
            flag, dest=name, metavar=metavar, type=convert, required=missing, default=None if missing else default, help=help
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
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}, got {text!r}{nearest(text, choices)}")
        return text

    return "{" + ",".join(choices) + "}", convert


CONVERT: dict[type, tuple[str | None, Callable[[str], Any]]] = {
    bool: (None, str),
    int: ("N", _whole),
    float: ("X", _number),
    str: ("NAME", str),
    Path: ("PATH", Path),
}


def nearest(name: str, known: Iterable[str]) -> str:
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
