import random

import pytest
import torch

from lumos.worlds.shapes.motion import DIRECTIONS, MOTIONS
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import Scene, sample_one
from research.one_object import direction, dominant_colour


@pytest.mark.parametrize("way", DIRECTIONS)
def test_colour_and_direction_survive_noise_and_blur(way: str) -> None:
    scene = sample_one(random.Random(3), motion=way, speed="normally", pair=("pink", "star"))
    pixels = render(pack([scene]), 17)[0]
    soft = torch.nn.functional.avg_pool2d(pixels, 5, 1, 2, count_include_pad=False)
    noisy = soft + 0.04 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    assert (dominant_colour(noisy), direction(noisy)) == ("pink", way)


@pytest.mark.parametrize("motion", [motion for motion in MOTIONS if motion not in DIRECTIONS])
def test_what_does_not_move_straight_has_no_direction(motion: str) -> None:
    scene = sample_one(random.Random(3), motion=motion, pair=("green", "crescent"))
    assert direction(render(pack([scene]), 17)[0]) is None
    empty = render(pack([Scene(scene.background, ())]), 17)[0]
    assert dominant_colour(empty) is None and direction(empty) is None
