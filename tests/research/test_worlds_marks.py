"""Marks of the worlds: which subjects count as one, and where a thing stands on its ground."""

import pytest
import torch

from research.worlds_judge import boxes_of, known_apart
from research.worlds_prompts import plain_caption


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("stickers/man pilot", "stickers/pilot", True),
        ("stickers/woman walking", "stickers/person walking", True),
        ("stickers/family of a man and a girl", "stickers/family of a man and a boy", True),
        ("stickers/man", "stickers/woman", False),
        ("stickers/man pilot", "stickers/man guard", False),
        ("creatures/horse", "stickers/horse", False),
    ],
)
def test_people_who_do_the_same_count_as_one_subject(one: str, other: str, alike: bool) -> None:
    assert (known_apart(one) == known_apart(other)) is alike


def test_the_box_is_around_what_stands_on_a_graded_ground() -> None:
    slope = torch.linspace(-0.5, 0.5, 128)
    pixels = (slope[:, None] + 0.3 * slope).expand(1, 3, -1, -1).clone()
    pixels[:, :, 32:64, 64:112] = 1.0
    assert boxes_of(pixels)[0].tolist() == pytest.approx([64 / 128, 32 / 128, 112 / 128, 64 / 128], abs=0.02)


def test_prompts_of_stickers_are_what_people_type() -> None:
    assert plain_caption("octopus", "left") == "an octopus moves to the left"
