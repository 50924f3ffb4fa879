"""English by rule, for the captions of the worlds: articles, plurals and verb forms of lowercase words."""

import re
from collections.abc import Sequence

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
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _with_s(word: str) -> str:
    if re.search("[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "h", "x", "o")) else "s")
