"""Prompts in words that a model met: what it never met is replaced or told of, emoji have names, and all is told."""

import pytest

from lumos.known_words import TABLE, in_known_words
from lumos.sequence.text import words_in

WORDS = words_in("a an and big boat couch couches dog dogs face firefighter fox in ocean run running runs t-rex the woman")


@pytest.mark.parametrize(
    ("prompt", "told", "note"),
    [
        ("A dog runs, running in the ocean.", "A dog runs, running in the ocean.", ""),
        ("a sofa", "a couch", "does not know: sofa, reads it as couch"),
        ("a yacht", "a yacht", "does not know: yacht; near it: boat"),
        ("two Sofas", "two couches", "does not know: two; does not know: sofas, reads it as couches"),  # the same form
        (
            "foxes sprint, sprinting",
            "foxes run, running",
            "does not know: sprint, reads it as run; does not know: sprinting, reads it as running",
        ),
        ("the beach", "the beach", "does not know: beach; near it: ocean"),
        ("a qqq and a qqq", "a qqq and a qqq", "does not know: qqq"),  # told once
        ("my t-rex", "my t-rex", ""),
        ("a big-dog's boat", "a big-dog's boat", ""),  # of known words
        ("\U0001f98a", "a fox", "reads \U0001f98a as a fox"),
        (
            "a \U0001f98a\ufe0f and \U0001f436",
            "a fox and a dog face",
            "reads \U0001f98a as a fox; reads \U0001f436 as a dog face",
        ),
        (
            "\U0001f469\u200d\U0001f692",
            "a woman firefighter",
            "reads \U0001f469\u200d\U0001f692 as a woman firefighter",
        ),  # not two
        (" \U0001f98a \U0001fa00\U0001f98a", "a fox \U0001fa00 a fox", "reads \U0001f98a as a fox"),
        ("\U0001fa00\U0001f98a", "\U0001fa00 a fox", "reads \U0001f98a as a fox"),  # the model's own error tells of the first
        ("красный круг", "красный круг", "does not know: красный; does not know: круг"),
    ],
)
def test_prompts_are_put_in_known_words_and_all_is_told(prompt: str, told: str, note: str) -> None:
    assert in_known_words(prompt, WORDS) == (told, note)


def test_models_whose_words_are_not_known_get_every_prompt_as_it_is() -> None:
    assert in_known_words("\U0001f98a qqq", ()) == ("\U0001f98a qqq", "")


def test_the_table_is_small_and_the_words_in_the_package_are_those_of_its_captions() -> None:
    assert TABLE.stat().st_size <= 300_000
    (file,) = TABLE.parent.glob("pretrained/*/words.txt")
    words = set(file.read_text("utf-8").split())
    assert {"circle", "octopus", "leftwards"} < words and "sofa" not in words
