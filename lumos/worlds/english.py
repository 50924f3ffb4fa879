"""English for the captions of the worlds: articles, plurals and verb forms of lowercase words, and sentences from tables."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

Phrases = dict[str, tuple[str, ...]]

# What is not made by rule.
PLURALS = {"thief": "thieves", "wolf": "wolves", "man": "men", "person": "people", "cactus": "cacti", "mech": "mechs"}
# the same in the plural, as is every fish
UNCHANGED = ("deer", "triceratops", "parasaurolophus", "koi", "wrasse", "snapper", "tuna", "flowers", "pads")
MANY = ("flowers", "pads")  # already plural: without an article
DOUBLING = ("flop", "get", "hop", "nod", "run", "sit", "spin", "swim")
GERUNDS = {"lie": "lying", **{verb: f"{verb}{verb[-1]}ing" for verb in DOUBLING}}


def article(noun: str) -> str:
    """ "orange star" -> "an orange star"."""
    if noun.endswith(MANY):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """ "man with hat" -> "men with hat"."""
    head, *rest = re.split("( with | in | of )", noun, maxsplit=1)
    start, _, last = head.rpartition(" ")
    if last not in UNCHANGED and not last.endswith("fish"):
        last = PLURALS.get(last) or _with_s(last)
    return f"{start} {last}".strip() + "".join(rest)


def third_person(phrase: str) -> str:
    """ "go up" -> "goes up"."""
    verb, *rest = phrase.split()
    return " ".join([_with_s(verb), *rest])


def gerund(phrase: str) -> str:
    """ "move up" -> "moving up", "do not move" -> "not moving"."""
    verb, *rest = phrase.removeprefix("do not ").split()
    words = [GERUNDS.get(verb, verb.removesuffix("e") + "ing"), *rest]
    return " ".join(["not", *words] if phrase.startswith("do not ") else words)


def listed(parts: Sequence[str]) -> str:
    """ "a", "b", "c" -> "a, b and c"."""
    *start, last = parts or [""]
    return f"{', '.join(start)} and {last}" if start else last


# What a word before a name in braces makes of it.
INFLECTED = {"a": article, "many": plural, "does": third_person, "doing": gerund}


def phrases(table: str) -> Phrases:
    """Lines of "name = phrase*3 | phrase": all that may be said for a name, a phrase with *3 three times as often."""
    lines = [re.sub(r"\s+", " ", line).strip().split(" = ") for line in re.split(r"\n+(?!\s*\|)", table.strip())]
    weighted = {name: [phrase.partition("*") for phrase in listed.split(" | ")] for name, listed in lines}
    return {name: tuple(phrase for phrase, _, times in each for _ in range(int(times or 1))) for name, each in weighted.items()}


def say(name: str, table: Phrases, rng: random.Random, parts: Mapping[str, str] = {}) -> str:
    """One of the phrases for a name, or the name itself. "{name}" in it is one of `parts`, or said in the same way; with a form:
    "{a name}", "{many name}", "{does name}", "{doing name}"."""
    if name in parts:
        return parts[name]
    form, _, rest = name.partition(" ")
    if name not in table and form in INFLECTED and rest:
        return INFLECTED[form](say(rest, table, rng, parts))
    return re.sub("{(.+?)}", lambda found: say(found[1], table, rng, parts), rng.choice(table.get(name, (name,))))


class Plainest(random.Random):
    """In place of chance: the first of every choice, and nothing of what may be left out."""

    def random(self) -> float:
        return 1.0

    def choice(self, seq: Any) -> Any:
        return seq[0]

    def shuffle(self, x: Any) -> None:
        pass


def _with_s(word: str) -> str:
    if re.search("[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "h", "x", "o")) else "s")
