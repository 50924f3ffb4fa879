"""Dataclasses -> the command line: a field is an option, and the comment beside it in the source is its help. No torch here.

Classes are read as text, so that help need not import them. Every mistake is a UsageError of one line with rule, value and
remedy. Also here: NAME=VALUE over nested configs, a verb's progress bar, and its report.
"""

import difflib
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

T = TypeVar("T")
Word = Annotated[T, "word"]  # a field of this type is a word after the verb, not an option
PACKAGE = Path(__file__).parents[1]
SHORT = {"-o": "--out"}
# of a field or a key: name, type, default, comment
FIELD = re.compile(r' {4}"?([\w.-]+)"?: ?(.*?)(?: = (.*?))?(?:  # (.*))?$')
OPTION_TYPES: dict[str, tuple[Any, str, str]] = {"int": (int, "N", "a whole number"), "float": (float, "X", "a number")}
OPTION_TYPES |= {"Path": (Path, "PATH", "a path"), "str": (str, "NAME", "a name")}


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
    kind: str  # name of a type
    choices: tuple[str, ...]
    many: bool
    required: bool
    help: str

    @property
    def metavar(self) -> str:
        value = "{" + ",".join(self.choices) + "}" if self.choices else OPTION_TYPES.get(self.kind, OPTION_TYPES["str"])[1]
        return "" if self.shown[0] != "-" or self.kind == "bool" else "NAME=VALUE" if self.many else value


def options_of(kind: Any) -> list[Option]:
    """The options of a dataclass, or of Fields."""
    source = kind if isinstance(kind, Fields) else Fields(kind.__module__, kind.__name__)
    options = []
    for name, hint, default, comment in read_fields(source.module, source.name):
        flag, is_word = source.flags.get(name, name.replace("_", "-")), hint.startswith("Word[")
        plain = hint.removesuffix(" | None").removeprefix("Word[").removeprefix("tuple[").split(",")[0].rstrip("]")
        literal = hint if "Literal[" in hint else _statement(source.module, f"{plain} = Literal")
        usual = source.default or {"False": "no", "None": "none", "()": ""}.get(default, default.strip('"'))
        told = "" if not usual or "(default" in comment else f" (default: {usual})"
        shown = name.upper() if is_word else f"--{flag}"
        choices = tuple(re.findall(r'"([\w.-]+)"', literal))
        if flag:
            help = comment + (told if default else " (required)")
            options.append(Option(name, shown, plain, choices, "tuple[" in hint, not default, help))
    return options


def read_fields(module: str, name: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and comment (above it, or at the end of its line) of the fields of a class, or keys of a table."""
    above: list[str] = []
    body = re.sub(r'""".*?"""', "", _statement(module, rf"(?:class )?{name}\b"), count=1, flags=re.DOTALL)
    for line in body.splitlines():
        if line.startswith("    # "):
            above.append(line[6:])
            continue
        if entry := FIELD.match(line):
            field, hint, default, beside = entry.groups("")
            yield field, hint, default, " ".join(filter(None, [*above, beside]))
        above = []


def _statement(module: str, start: str) -> str:
    """The source of a statement of a module of ours, from its first line to the next one that is not indented."""
    source = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text("utf-8")
    found = re.search(rf"^{start}.*?(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL)
    return found[0] if found else ""


def parse(verb: str, kinds: Sequence[Any], words: Sequence[str]) -> list[Any]:
    """What was typed after a verb: an instance of each dataclass, a dict for each Fields. Raises UsageError."""
    owned = [(owner, option) for owner, kind in enumerate(kinds) for option in options_of(kind)]
    flags = {option.shown: (owner, option) for owner, option in owned if option.shown[0] == "-"}
    values: list[dict[str, Any]] = [{} for _ in kinds]
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
        if "." in name and "--set" in flags:  # --optim.lr 1e-3 is --set optim.lr=1e-3
            value = f"{name[2:]}={value if equals else ''.join(rest[:1])}"
            name, equals, rest = "--set", "=", rest if equals else rest[1:]
        if SHORT.get(name, name) not in flags:
            raise UsageError(f"unknown option {name}{nearest(name, flags)}; {see}")
        owner, option = flags[SHORT.get(name, name)]
        if option.kind == "bool":
            values[owner][option.field] = True
            continue
        if not equals and (not rest or rest[0].startswith("--")):
            raise UsageError(f"{name} expected one argument; {see}")
        found = _convert(option, value if equals else rest.pop(0))
        values[owner][option.field] = (*values[owner].get(option.field, ()), found) if option.many else found
    places = [(owner, option) for owner, option in owned if option.shown[0] != "-"]
    for number, (owner, option) in enumerate(places):  # one that takes many takes what the later ones leave
        count = len(said) - len(places) + number + 1 if option.many else 1
        taken = [_convert(option, word) for word in said[: max(count, 0)]]
        said = said[len(taken) :]
        if taken:
            values[owner][option.field] = tuple(taken) if option.many else taken[0]
    if said:
        raise UsageError(f"unexpected {said[0]!r}; put words that belong together in quotes, {see}")
    missing = [option.shown for owner, option in owned if option.required and option.field not in values[owner]]
    if missing:
        raise UsageError(f"the following arguments are required: {', '.join(missing)}; {see}")
    return [found if isinstance(kind, Fields) else kind(**found) for kind, found in zip(kinds, values, strict=True)]


def _convert(option: Option, text: str) -> Any:
    if option.choices and text not in option.choices:
        known = ", ".join(option.choices)
        raise UsageError(f"{option.shown} must be one of {known}, got {text!r}{nearest(text, option.choices)}")
    convert, _, rule = OPTION_TYPES.get(option.kind, OPTION_TYPES["str"])
    try:
        return convert(text)
    except ValueError:
        raise UsageError(f"{option.shown} must be {rule}, got {text!r}") from None


def help_of(verb: str, kinds: Sequence[Any]) -> str:
    """How a verb is used, all its options, and the examples of its first dataclass's docstring."""
    options = [option for kind in kinds for option in options_of(kind)]
    description, _, examples = (kinds[0].__doc__ or "").partition("\n\n")
    usage = [f"[{option.shown} ...]" if option.many else option.shown for option in options if option.shown[0] != "-"]
    usage += [f"{option.shown} {option.metavar}" for option in options if option.required and option.shown[0] == "-"]
    lines = [f"usage: lumos {' '.join([verb, *usage, '[options]'])}", "", *textwrap.wrap(description, 118), ""]
    lines += [row(f"{option.shown} {option.metavar}".strip(), option.help) for option in options]
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


def within(options: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """UsageError for a number outside its limits, both of which are allowed."""
    for name, (least, most) in limits.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{name.replace('_', '-')} must be {least:g} to {most:g}, got {value}")


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
    from lumos.config import read_config

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
        try:
            place[last] = json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
        except ValueError:  # a plain word
            place[last] = text
    return read_config(type(config), values, where)


def tell(line: str) -> None:
    """Something to know beside the result, on stderr."""
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
