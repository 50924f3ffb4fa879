"""A prompt -> the same in words that a model met in training, and what was changed or stays unknown.

Emoji become their names. An unknown word becomes its synonym or a wider word where near_words.txt has a known one (a sofa is a
couch); others stay as they are, with a suggestion where there is one. Everything is told, and models without a list of words (the
published ones) get every prompt as it is.
"""

import re
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from lumos.sequence.text import WORD
from lumos.worlds.english import gerund, plural, third_person

TABLE = Path(__file__).with_name("near_words.txt")  # made by research/near_words.py
# Words that say nothing about a picture: not worth a note.
SILENT = frozenset(WORD.findall("i me my our you your he his she her they them their this these those some any very just please"))
PICTOGRAPH = re.compile("[\u00a9\u00ae\u203c-\u3299\U0001f000-\U0001faff]")
FORMS: tuple[Callable[[str], str], ...] = (str, plural, third_person, gerund)


class Reading(NamedTuple):
    """A prompt as the model is told it, and a sentence on what is not known, "" when all is."""

    prompt: str
    note: str


def in_known_words(prompt: str, words: Collection[str]) -> Reading:
    """The prompt with emoji named and unknown words replaced where there is a near known one."""
    if not words:
        return Reading(prompt, "")
    notes: list[str] = []
    named, nearest = _named(prompt, notes), cache(partial(_near, words=words))  # a stranger's prompt may repeat a word often

    def read(match: re.Match[str]) -> str:
        word = match[0].lower()
        if word in words or word in SILENT or all(part in words or len(part) < 2 for part in re.split("['-]", word)):
            return match[0]
        taken, suggested = nearest(word)
        if taken == word:
            return match[0]
        near = f", reads it as {taken}" if taken else f"; near it: {', '.join(suggested)}" if suggested else ""
        notes.append(f"does not know: {word}{near}")
        return taken or match[0]

    told = WORD.sub(read, named)
    return Reading(told, "; ".join(dict.fromkeys(notes)))


def size_note(size: str, trained: str) -> str:
    """A sentence on a size, WIDTHxHEIGHT, that the model was not trained at."""
    return "" if size == trained else f"was trained at {trained}; at {size} things may come twice or not at all"


def _named(prompt: str, notes: list[str]) -> str:
    """Emoji of the table as words, the longest sequences first."""
    table, plain = _table(), prompt.replace("\ufe0f", "")
    parts: list[str] = []
    told = at = 0
    while match := PICTOGRAPH.search(plain, at):
        start = match.start()
        length = next((n for n in range(10, 0, -1) if plain[start : start + n] in table), 0)
        at = start + max(1, length)
        if length:
            name = table[plain[start:at]][0].replace("_", " ")
            notes.append(f"reads {plain[start:at]} as {name}")
            parts += [re.sub(r"\ban?$", "", plain[told:start].rstrip(), flags=re.IGNORECASE), name]
            told = at
    return " ".join(filter(None, map(str.strip, [*parts, plain[told:]])))


def _near(word: str, words: Collection[str]) -> tuple[str, list[str]]:
    """The word if it is a form of a known one, else the nearest known word in its form (sofas: couches), else what to try."""
    table = _table()
    stems = [word, *(word[:-n] + end for n in (1, 2, 3, 4) for end in ("", "e", "y") if len(word) > n + 2)]
    for stem in stems:
        for form in FORMS:
            if form(stem) != word:
                continue
            if stem in words:
                return word, []
            same, _, like = " ".join(table.get(stem, ())).partition("~")
            for near in same.split():
                if near in words:
                    return form(near) if form(near) in words else near, []
            if suggested := [near for near in like.split() if near in words]:
                return "", suggested
    return "", []


@cache
def _table() -> dict[str, list[str]]:
    return {word: near for word, *near in map(str.split, TABLE.read_text("utf-8").splitlines())}
