"""Dataclasses -> the command line: a field is an option, and the comment beside it in the source is its help. No torch here.

Classes are read as text, so that help need not import them; values are read as those of settings files are (lumos/config.py).
Every mistake is an error of one line. Also here: NAME=VALUE over nested configs, a verb's progress bar, and its report.
"""

import difflib
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from lumos.config import PACKAGED, read_config, read_value

T = TypeVar("T")
Word = Annotated[T, "word"]  # a field of this type is a word after the verb, not an option
PACKAGE = Path(__file__).parents[1]
# of a field or a key: name, type, default, comment
FIELD = re.compile(r' {4}"?([\w.-]+)"?: ?(.*?)(?: = (.*?))?(?:  # (.*))?$')
# what help shows for a value of a type
VALUES = {"bool": "", "Path": "PATH", **dict.fromkeys(("int", "Whole"), "N")}
VALUES |= dict.fromkeys(("float", "Share", "Factor", "SomeFactor"), "X")


class UsageError(ValueError):
    """A command line that cannot be understood."""


class Fields(NamedTuple):
    """Options that are the fields of a config class somewhere in the package; those that are given come as a dict."""

    module: str
    name: str
    flags: Mapping[str, str] = {}  # field -> option, where it is not the field's name; "" is no option
    default: str = ""  # what help says instead of the class's own defaults


class Verb(NamedTuple):
    """One command: where its options come from (dataclasses, or Fields), and the function that gets them."""

    kinds: tuple[Any, ...]
    run: Callable[..., int | None]
    presets: str = ""  # table of lumos/presets.py that help explains


class Option(NamedTuple):
    """One option of a verb, or one word after it."""

    field: str
    shown: str  # --option, or WORD
    kind: str  # name of the type
    value: str  # what help shows for a value
    many: bool
    required: bool
    help: str


def options_of(kind: Any) -> list[Option]:
    """The options of a dataclass, or of Fields."""
    source = kind if isinstance(kind, Fields) else Fields(kind.__module__, kind.__name__)
    options = []
    for name, hint, default, comment in read_fields(source.module, source.name):
        plain = re.split(r"[^\w]", re.sub(r"^((Word|tuple|Annotated)\[)+", "", hint))[0]
        usual = source.default or {"False": "", "None": "", "()": "", "PACKAGED": PACKAGED}.get(default, default.strip('"'))
        told = " (required)" if not default else f" (default: {usual})" if usual and "(default" not in comment else ""
        flag, many = source.flags.get(name, name.replace("_", "-")), "tuple[" in hint
        shown = name.upper() if hint.startswith("Word[") else f"--{flag}"
        choices = ",".join(re.findall(r'"([\w.-]+)"', hint))
        value = "NAME=VALUE" if many else f"{{{choices}}}" if choices else VALUES.get(plain, "NAME")
        if flag:
            options.append(Option(name, shown, plain, value if shown[0] == "-" else "", many, not default, comment + told))
    return options


def read_fields(module: str, name: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and comment (above it, or at the end of its line) of the fields of a class, or keys of a table."""
    source = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text("utf-8")
    found = re.search(rf"^(?:class )?{name}\b.*?(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL)  # to what is not indented
    body = re.sub(r'""".*?"""', "", found[0] if found else "", count=1, flags=re.DOTALL)
    above: list[str] = []
    for line in body.splitlines():
        if line.startswith("    # "):
            above.append(line[6:])
            continue
        if entry := FIELD.match(line):
            field, hint, default, beside = entry.groups("")
            yield field, hint, default, " ".join(filter(None, [*above, beside]))
        above = []


def parse(verb: str, kinds: Sequence[Any], words: Sequence[str]) -> list[Any]:
    """What was typed after a verb: an instance of each dataclass, a dict for each Fields. ValueError."""
    options = {option.shown: option for kind in kinds for option in options_of(kind)}
    given: dict[str, list[str]] = {}
    said, rest, see = [], list(words), f"see lumos {verb} --help"
    while rest:
        word = rest.pop(0)
        if word == "--":
            said += rest
            break
        if not re.match(r"--?[A-Za-z]", word):
            said.append(word)
            continue
        name, equals, value = word.partition("=")
        setting, name = name[2:], "--out" if name == "-o" else name
        if "." in name and "--set" in options:  # --optim.lr 1e-3 is --set optim.lr=1e-3
            name = "--set"
        if name not in options:
            settings = "; a setting of the preset is --set NAME=VALUE" if "--set" in options else ""
            dash = "; put -- before a prompt that begins with a dash" if " " in word else ""
            raise UsageError(f"unknown option {name}{nearest(name, options)}{settings}{dash}; {see}")
        if options[name].kind == "bool":
            if equals:
                raise UsageError(f"{name} takes no value, got {value!r}; leave it out for no")
            value = "true"
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"{name} expected one argument; {see}")
            value = rest.pop(0)
        given.setdefault(name, []).append(f"{setting}={value}" if "." in setting else value)
    places = [option for option in options.values() if option.shown[0] != "-"]
    for number, place in enumerate(places):  # one that takes many takes what the later ones leave
        count = len(said) - len(places) + number + 1 if place.many else 1
        if taken := said[: max(count, 0)]:
            given[place.shown] = taken
        said = said[len(taken) :]
    if said:
        raise UsageError(f"unexpected {said[0]!r}; put words that belong together in quotes, {see}")
    missing = [shown for shown, option in options.items() if option.required and shown not in given]
    if missing:
        raise UsageError(f"the following arguments are required: {', '.join(missing)}; {see}")
    return [_made(kind, given) for kind in kinds]


def _made(kind: Any, given: Mapping[str, list[str]]) -> Any:
    is_fields = isinstance(kind, Fields)
    owner = getattr(import_module(kind.module), kind.name) if is_fields else kind
    hints, values = get_type_hints(owner, include_extras=True), dict[str, Any]()
    for option in (option for option in options_of(kind) if option.shown in given):
        texts: list[Any] = given[option.shown]
        if option.kind == "Path":
            texts = [Path(text) for text in texts]
        elif option.kind != "str":
            texts = [read_value(hints[option.field], read_text(text), option.shown) for text in texts]
        values[option.field] = tuple(texts) if option.many else texts[-1]
    return values if is_fields else kind(**values)


def read_text(text: str) -> Any:
    """A value as it is typed: JSON, Python's names for its constants, or a plain word."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null", "inf": "Infinity", "nan": "NaN"}.get(text, text))
    except ValueError:
        return text


def help_of(verb: str, kinds: Sequence[Any]) -> str:
    """How a verb is used, all its options, and the examples of its first dataclass's docstring."""
    options = [option for kind in kinds for option in options_of(kind)]
    description, _, examples = (kinds[0].__doc__ or "").partition("\n\n")
    usage = [f"[{option.shown} ...]" if option.many else option.shown for option in options if option.shown[0] != "-"]
    usage += [f"{option.shown} {option.value}" for option in options if option.required and option.shown[0] == "-"]
    lines = [f"usage: lumos {' '.join([verb, *usage, '[options]'])}", "", *textwrap.wrap(" ".join(description.split()), 118), ""]
    lines += [row(f"{option.shown} {option.value}".strip(), option.help) for option in options]
    return "\n".join([*lines, "", "examples:", *(f"  {line.strip()}" for line in examples.strip().splitlines())])


def row(name: str, text: str, indent: int = 30) -> str:
    """A name and what it means, the text in a column of its own."""
    first = f"  {name}".ljust(indent) if len(name) < indent - 3 else f"  {name}\n{' ' * indent}"
    return first + f"\n{' ' * indent}".join(textwrap.wrap(text, 120 - indent) or [""])


def nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def choose(what: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or an error that says which names there are."""
    if name not in known:
        raise UsageError(f"unknown {what} {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    return known[name]


def settings_of(config: Any, before: str = "") -> Iterator[tuple[str, Any, str]]:
    """Dotted name, value and meaning of every setting of a nested config."""
    meanings = {name: meaning for name, _, _, meaning in read_fields(type(config).__module__, type(config).__name__)}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from settings_of(value, f"{before}{field.name}.")
        else:
            yield before + field.name, value, meanings.get(field.name, "")


def explain_presets(table: str, words: Sequence[str]) -> str:
    """The presets in a table of lumos/presets.py, or every setting of the one that the words name, with --set applied."""
    names = {name: meaning for name, _, _, meaning in read_fields("lumos.presets", table)} if table else {}
    name = next((word for word in words if word in names), None)
    if name is None:
        rows = ["\n\npresets (name one before --help for all its settings):", *(row(*each) for each in names.items())]
        return "\n".join(rows if names else [])
    from lumos import presets

    config = getattr(presets, table)[name]
    known = [setting for setting, _, _ in settings_of(config)]
    changed = [word.removeprefix("--") for word in words if word.removeprefix("--").partition("=")[0] in known]
    settings = settings_of(with_settings(config, changed))
    rows = [row(f"{setting} = {json.dumps(value)}", meaning, 44) for setting, value, meaning in settings]
    return "\n".join(["\n\nsettings:", *rows])


def with_settings(config: T, settings: Sequence[str], where: str = "--set") -> T:
    """A copy of a nested config with NAME=VALUE applied: dotted names, values as JSON or plain words."""
    values = json.loads(json.dumps(asdict(config)))  # type: ignore[call-overload]
    known = [name for name, _, _ in settings_of(config)]
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
        place[last] = read_text(text)
    return read_config(type(config), values, where)


def tell(line: str) -> None:
    """Something to know beside the result, on stderr."""
    if os.environ.get("RANK", "0") == "0":  # once, of all that torchrun has started
        print(f"lumos: {line}", file=sys.stderr, flush=True)


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


def report(document: Mapping[str, Any], as_json: bool) -> None:
    """Say what was made: one JSON document, or a line for each of its entries."""
    print(json.dumps(document) if as_json else "\n".join(f"{name}: {value}" for name, value in document.items()), flush=True)
