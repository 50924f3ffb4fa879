"""What `research/steering.py` compares: a thing's portraits are alike wherever it goes, and unlike those of another thing."""

import random
from dataclasses import replace

import numpy as np
import pytest

from lumos.media.pixels import to_bytes
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import sample_one
from research.steering import distance, look, main_object, portraits


@pytest.mark.parametrize("side", [64, 128])
def test_portraits_are_of_the_thing_and_not_of_its_place(side: int) -> None:
    scene = sample_one(random.Random(3), motion="still", pair=("green", "crescent"))
    [thing] = scene.things
    moved = replace(thing, x=1 - thing.x, y=1 - thing.y)
    clips = [
        to_bytes(render(pack([replace(scene, things=(each,))]), 5, side)[0])
        for each in (thing, moved, replace(moved, shape="star"))
    ]
    seen = [main_object(look(8.0, clip)) for clip in clips]
    first, same, other = (portraits(clip, found) for clip, found in zip(clips, seen, strict=True) if found)
    assert not np.allclose(seen[0].place, seen[1].place, atol=0.02)  # type: ignore[union-attr]
    assert distance(first[1:], first[:1]) < 0.01
    assert distance(same, first[:1]) < 0.5 * distance(other, first[:1])
