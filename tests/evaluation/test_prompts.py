import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from lumos.evaluation.prompts import VERSION, Prompt, benchmark, one_object, prompts_in, smaller, to_lines
from lumos.worlds.shapes.motion import DIRECTIONS
from lumos.worlds.shapes.scene import HELD_OUT_PAIRS, Background

PROMPTS = benchmark()
NO_THINGS = replace(PROMPTS[0], scene=replace(PROMPTS[0].scene, things=()))
GRADIENT = replace(PROMPTS[0], scene=replace(PROMPTS[0].scene, background=Background("cream", "down")))


def test_the_prompts_of_a_version_never_change() -> None:
    """When they must, raise VERSION and put the new fingerprint here: old scores cannot be compared with new ones."""
    assert (VERSION, len(PROMPTS), hashlib.sha256(to_lines(PROMPTS).encode()).hexdigest()[:16]) == (2, 608, "aa30fa405f539187")


def test_the_smaller_set_has_every_class_in_both_splits() -> None:
    small = smaller(PROMPTS)
    assert len(small) < len(PROMPTS) / 4 and sum(prompt.given is not None for prompt in small) == 2 * 8
    every = {(prompt.split, name) for prompt in PROMPTS for name in prompt.checks}
    assert {(prompt.split, name) for prompt in small for name in prompt.checks} == every


def test_one_object_has_every_direction_and_only_held_out_pairs() -> None:
    things = [prompt.scene.things[0] for prompt in one_object(64)]
    assert sorted(thing.motion for thing in things) == sorted(list(DIRECTIONS) * 8)
    assert {(thing.colour, thing.shape) for thing in things} == set(HELD_OUT_PAIRS)
    assert all(len(prompt.scene.things) == 1 for prompt in one_object(64))


def spoil(prompt: Prompt, old: str, new: str) -> str:
    line = to_lines([prompt])
    assert old in line
    return line.replace(old, new)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\xff\xfe", "text in UTF-8"),
        ("\n \n", "at least one prompt"),
        ("a red circle\n", "is not readable JSON"),
        ("{}\n", "lacks the field 'id' of Prompt"),
        (spoil(PROMPTS[0], '"circle"', '"blob"'), r"line 1: scene: things\[0\]: shape must be one of circle, .*'blob'"),
        (spoil(PROMPTS[0], '"angle": 5.0', '"angle": NaN'), "angle must be .*, got nan"),
        (spoil(PROMPTS[0], '"motion"', '"tint"'), "unknown field 'tint'"),
        (spoil(NO_THINGS, NO_THINGS.id, "nothing"), "1 to 3 things"),
        (spoil(GRADIENT, GRADIENT.id, "gradient"), "a gradient has two colours, got cream alone"),
        (spoil(PROMPTS[0], '"count"', '"beauty"'), "must be one of count, colour, .*'beauty'"),
        (spoil(PROMPTS[0], '{"one object": ["count", "colour", "shape"]}', "{}"), "a prompt has checks"),
        (spoil(PROMPTS[0], "text to image", "text to music"), "task must be one of"),
        (spoil(PROMPTS[0], "text to image", "image to video"), "given scene"),
        (spoil(PROMPTS[0], PROMPTS[0].id, "../x"), "an id has letters"),
        (to_lines([PROMPTS[0], PROMPTS[0]]), "twice"),
    ],
)
def test_files_that_are_no_prompts_are_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=said):
        prompts_in(file)
