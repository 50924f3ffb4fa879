import itertools
import json
import math
import random
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from lumos.config import read_config
from lumos.worlds.shapes.motion import CIRCLES, DIRECTIONS, IN_PLACE, MOTIONS, SPEEDS, TRAVEL
from lumos.worlds.shapes.palette import BACKGROUNDS, COLOURS, CONTRAST, distance, lab, tint
from lumos.worlds.shapes.placing import MARGIN
from lumos.worlds.shapes.scene import (
    HELD_OUT_PAIRS,
    PAIRS,
    SEEN_PAIRS,
    Scene,
    freeze,
    sample_count,
    sample_occlusion,
    sample_one,
    sample_scene,
    sample_three,
)
from lumos.worlds.shapes.thing import REACH, SHAPES, SIZES, SPINNERS, Thing

TIMES = 0.125 * np.arange(49)  # six seconds: three times the usual clip
SLACK = 2e-4  # places are rounded to four decimals


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(7)
    return [sample_scene(rng, held_out=n % 4 == 0) for n in range(1500)]


def centre(thing: Thing, seconds: Any) -> np.ndarray:
    """Its place at a time, [2], or at an array of times, [2, T]."""
    at = thing.at(seconds)
    return np.stack([at.x + at.orbit_x, at.y + at.orbit_y])


def reach(thing: Thing, seconds: Any) -> Any:
    return REACH * SIZES[thing.size] * thing.at(seconds).scale


def test_everything_stays_inside_the_frame(scenes: list[Scene]) -> None:
    for thing in itertools.chain.from_iterable(scene.things for scene in scenes):
        room, places = reach(thing, TIMES) + MARGIN - SLACK, centre(thing, TIMES)
        assert np.all((room <= places) & (places <= 1 - room)), thing


def test_nothing_overlaps_but_in_an_occlusion(scenes: list[Scene]) -> None:
    apart = [scene for scene in scenes if scene.relation not in ("in front of", "behind")]
    for scene in apart:
        for one, other in itertools.combinations(scene.things, 2):
            # Things have disjoint boxes, so one of the axes separates them.
            gap = np.abs(centre(one, TIMES) - centre(other, TIMES)).max(0)
            assert np.all(gap >= reach(one, TIMES) + reach(other, TIMES)), scene


def test_side_by_side_holds_all_the_time_and_no_other_relation_is_as_true(scenes: list[Scene]) -> None:
    way = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
    related = [scene for scene in scenes if scene.relation in way]
    assert len(related) > 100
    for scene in related:
        one, other = (centre(thing, TIMES) for thing in scene.things)
        along_x, along_y = way[scene.relation]
        x, y = one - other
        along, across = x * along_x + y * along_y, np.abs(x * along_y) + np.abs(y * along_x)
        assert np.all((along > 0.2) & (along > 2 * across - 0.02)), scene


def test_a_passing_thing_meets_the_other_and_is_past_it_in_two_seconds() -> None:
    rng = random.Random(3)
    for n in range(300):
        scene = sample_occlusion(rng, passing=True, held_out=n % 2 == 0)
        mover, other = scene.things
        apart = SIZES[mover.size] + SIZES[other.size]
        distances = np.linalg.norm(centre(mover, TIMES[:17]) - centre(other, TIMES[:17]), axis=0)
        assert other.motion == "still"
        assert distances[0] > apart - SLACK and distances[-1] > 0.9 * apart, scene
        assert min(distances) < 0.6 * min(SIZES[mover.size], SIZES[other.size]), scene


def test_straight_motions_cover_enough_to_be_seen_and_then_rest(scenes: list[Scene]) -> None:
    for thing in itertools.chain.from_iterable(scene.things for scene in scenes):
        if thing.motion in DIRECTIONS:
            start, early, late, end = centre(thing, np.array([0.0, 2.0, 30.0, 60.0])).T
            assert math.dist(start, early) >= 0.25
            assert tuple(late) == tuple(end)
            assert math.dist(start, early) <= 2 * TRAVEL[thing.speed] + SLACK


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("speed", SPEEDS)
def test_a_motion_does_what_its_name_says(motion: str, speed: str) -> None:
    thing = sample_one(random.Random(f"{motion} {speed}"), motion=motion, speed=speed).things[0]
    assert (thing.motion, thing.speed) == (motion, speed)
    states = [thing.at(seconds) for seconds in TIMES[:17]]
    places = [tuple(place) for place in centre(thing, TIMES[:17]).T]
    moves, sizes = len(set(places)) > 1, [state.scale for state in states]
    lights, turns = [state.opacity for state in states], [state.turn for state in states]
    assert moves == (motion not in IN_PLACE)
    if motion in DIRECTIONS:
        step = places[-1][0] - places[0][0], places[-1][1] - places[0][1]
        way = DIRECTIONS[motion]
        assert (step[0] * way[0] + step[1] * way[1]) / math.hypot(*step) > 0.999
    if motion == "circling":
        radii = {round(math.dist(place, (thing.x, thing.y)), 6) for place in places}
        assert radii == {round(thing.reach, 6)}
        turn = math.atan2(places[1][1] - thing.y, places[1][0] - thing.x) - math.radians(thing.phase)
        assert turn % math.tau == pytest.approx(math.tau * CIRCLES[speed] / 8)  # clockwise: y points down
    if motion == "bouncing":
        assert places[0] == (thing.x, thing.y) and min(y for _, y in places) < thing.y - 0.15
        assert max(y for _, y in places) <= thing.y
    assert (sizes == sorted(sizes) and sizes[-1] > 1.4 * sizes[0]) == (motion == "growing")
    assert (sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.7 * sizes[0]) == (motion == "shrinking")
    assert (turns[-1] > math.pi / 3) == (motion == "spinning")
    assert (lights[0] == 0 and lights[-1] > 0.9) == (motion == "fading in")
    assert (lights[0] == 1 and lights[-1] < 0.1 and lights == sorted(lights, reverse=True)) == (motion == "fading out")
    changes = sum((one > 0.5) != (other > 0.5) for one, other in itertools.pairwise(lights))
    assert (changes > 1) == (motion == "blinking")


def test_plain_data_brings_back_an_equal_scene(scenes: list[Scene]) -> None:
    assert all(read_config(Scene, json.loads(json.dumps(asdict(scene))), "scene") == scene for scene in scenes[:300])


def test_held_out_pairs_come_only_when_asked_for(scenes: list[Scene]) -> None:
    rng = random.Random(2)
    usual = [thing for _ in range(3000) for thing in sample_scene(rng).things]
    assert not any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in usual)
    for thing in (scene.things[0] for scene in scenes[::4]):
        assert (thing.colour, thing.shape) in HELD_OUT_PAIRS


def test_about_one_pair_in_ten_is_held_out_and_all_colours_and_shapes_are_seen_often() -> None:
    assert set(SEEN_PAIRS) | set(HELD_OUT_PAIRS) == set(PAIRS) and not set(SEEN_PAIRS) & set(HELD_OUT_PAIRS)
    assert 0.08 < len(HELD_OUT_PAIRS) / len(PAIRS) < 0.12
    assert all(sum(colour == seen for seen, _ in SEEN_PAIRS) >= len(SHAPES) - 2 for colour in COLOURS)
    assert all(sum(shape == seen for _, seen in SEEN_PAIRS) >= len(COLOURS) - 2 for shape in SHAPES)


def test_the_mixture_has_all_kinds_of_scenes(scenes: list[Scene]) -> None:
    share = len(scenes) / 100
    assert 25 * share < sum(len(scene.things) == 1 for scene in scenes) < 35 * share
    assert 9 * share < sum(scene.relation in ("in front of", "behind") for scene in scenes) < 15 * share
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.motion for thing in things} == set(MOTIONS)
    assert {thing.shape for thing in things} == set(SHAPES) and {thing.colour for thing in things} == set(COLOURS)
    assert {scene.background.colour for scene in scenes} == set(BACKGROUNDS)
    assert 0.7 < sum(thing.texture == "plain" for thing in things) / len(things) < 0.9
    assert all(thing.shape in SPINNERS for thing in things if thing.motion == "spinning")


def test_every_thing_stands_out_from_its_background(scenes: list[Scene]) -> None:
    for scene in scenes:
        for thing, ground in itertools.product(scene.things, {scene.background.colour, scene.background.other} - {""}):
            assert distance(COLOURS[thing.colour], BACKGROUNDS[ground], hue=0.5) >= CONTRAST


def test_lab_of_red_is_the_published_one() -> None:
    assert lab([1.0, 0.0, 0.0]) == pytest.approx((53.24, 80.09, 67.20), abs=0.01)


def test_colours_are_far_apart_and_a_tint_keeps_its_colour() -> None:
    assert min(distance(COLOURS[one], COLOURS[other]) for one, other in itertools.combinations(COLOURS, 2)) > 30
    for colour in COLOURS:
        # Half of a textured thing has the tint: the mean must still be nearest to the thing's own colour.
        mean = tuple((a + b) // 2 for a, b in zip(COLOURS[colour], tint(colour), strict=True))
        assert min(COLOURS, key=lambda name, mean=mean: distance(COLOURS[name], mean)) == colour


def test_asking_for_a_kind_gives_it() -> None:
    rng = random.Random(1)
    for _ in range(50):
        alike = sample_count(rng, count=3).things
        assert len(alike) == 3 and len({(thing.colour, thing.shape, thing.motion) for thing in alike}) == 1
        assert len({thing.colour for thing in sample_three(rng).things}) == 3
        assert sample_one(rng, pair=("red", "circle")).things[0].motion != "spinning"
    assert sample_occlusion(rng, relation="behind").relation == "behind"
    with pytest.raises(ValueError, match="can spin"):
        sample_one(rng, motion="spinning", pair=("red", "circle"))


def test_frozen_scenes_stand_still_in_full_view(scenes: list[Scene]) -> None:
    for scene in map(freeze, scenes):
        for thing in scene.things:
            assert thing.motion == "still" and thing.at(0.0) == thing.at(1.0) and thing.at(0.0).opacity == 1
        if scene.relation in ("in front of", "behind"):
            one, other = scene.things
            assert math.dist(centre(one, 0), centre(other, 0)) < 0.75 * (SIZES[one.size] + SIZES[other.size])
