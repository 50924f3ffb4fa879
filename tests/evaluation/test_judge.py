import math
import random
from dataclasses import replace

import pytest
import torch

from lumos.evaluation.judge.judge import ATTRIBUTES, Verdict, judge
from lumos.evaluation.judge.objects import watch
from lumos.worlds.shapes import palette
from lumos.worlds.shapes.motion import MOTIONS, SPEEDS
from lumos.worlds.shapes.palette import COLOURS
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import Background, Scene, freeze, sample_one, sample_scene
from lumos.worlds.shapes.thing import SHAPES, SIZES, TEXTURES, Thing

LIGHT, DARK = Background("cream"), Background("dark blue", "diagonal", "dark purple")
STAR = Thing("star", "blue", "medium", "plain", 0.3, 0.4)
CROSS = Thing("cross", "red", "medium", "plain", 0.72, 0.45)
TWO = Scene(LIGHT, (STAR, CROSS), "left of")
RIGHT = Scene(LIGHT, (Thing("heart", "green", "medium", "plain", 0.25, 0.5, "right", "normally", reach=0.5),))


def clip(scene: Scene, frames: int = 17) -> torch.Tensor:
    return render(pack([scene]), frames)[0]


@pytest.mark.parametrize("seed", range(16))
def test_every_attribute_of_a_rendered_scene_is_right(seed: int) -> None:
    scene, frames = sample_scene(random.Random(seed), held_out=seed % 2 == 1), 17 if seed < 10 else 1
    scene = scene if frames > 1 else freeze(scene)
    verdict = judge(scene, clip(scene, frames))
    assert set(verdict.marks.values()) == {True}, (verdict.notes, scene)
    assert ("motion" in verdict.marks) == ("flicker" in verdict.marks) == (frames > 1)


@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_is_named(colour: str) -> None:
    for texture in TEXTURES:
        for ground in sorted(palette.CONTRASTING[colour])[::5]:
            scene = Scene(Background(ground), (replace(STAR, colour=colour, texture=texture),))
            assert [each.colour for each in watch(clip(scene, 1)).objects] == [colour], (texture, ground)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_size_and_turn_is_named(shape: str) -> None:
    for size in SIZES:
        for angle in (-10.0, 0.0, 7.0):
            seen = watch(clip(Scene(DARK, (Thing(shape, "orange", size, "plain", 0.52, 0.47, angle=angle),)), 1)).objects
            assert [(each.shape, each.size) for each in seen] == [(shape, size)]
            assert seen[0].place == pytest.approx((0.52, 0.47), abs=0.006)


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_and_speed_is_named(motion: str) -> None:
    for speed in SPEEDS if motion != "still" else ("normally",):
        scene = sample_one(random.Random(5), motion=motion, speed=speed, pair=("purple", "triangle"))
        seen = watch(clip(scene)).objects
        assert [(each.motion.name, each.motion.speed) for each in seen] == [(motion, speed)]


def change(scene: Scene, number: int = 0, **fields: object) -> Scene:
    things = list(scene.things)
    things[number] = replace(things[number], **fields)  # type: ignore[arg-type]
    return replace(scene, things=tuple(things))


GONE = {"count", "colour", "shape", "place", "binding", "position", "permanence"}  # size and motion are unclear then
BOUNCE = Scene(DARK, (Thing("ring", "yellow", "small", "plain", 0.4, 0.7, "bouncing", "slowly", reach=0.3),))
PASSING = Scene(
    LIGHT,
    (Thing("square", "teal", "small", "plain", 0.14, 0.5, "right", "quickly", reach=0.7), replace(CROSS, x=0.5, y=0.5)),
    "in front of",
)


@pytest.mark.parametrize(
    ("scene", "shown", "wrong"),
    [
        (TWO, change(TWO, colour="purple"), {"colour", "binding"}),
        (TWO, change(TWO, 1, shape="ring"), {"shape", "binding"}),
        (TWO, change(change(TWO, colour="red"), 1, colour="blue"), {"binding", "place", "position"}),
        (TWO, change(TWO, size="small"), {"size"}),
        (TWO, replace(change(change(TWO, x=0.72), 1, x=0.3)), {"place", "position"}),
        (TWO, change(TWO, motion="spinning"), {"motion", "binding"}),
        (TWO, change(TWO, motion="growing"), {"motion", "binding"}),
        (TWO, change(TWO, motion="fading out", speed="quickly"), {"motion", "binding", "permanence"}),
        (TWO, replace(TWO, things=(STAR,), relation="none"), GONE),
        (TWO, replace(TWO, things=(STAR, CROSS, replace(CROSS, x=0.5, y=0.8)), relation="none"), {"count", "permanence"}),
        (TWO, replace(TWO, background=Background("light pink")), {"background"}),
        (RIGHT, change(RIGHT, motion="left", x=0.75), {"direction", "place"}),
        (RIGHT, change(RIGHT, speed="slowly"), {"speed", "place"}),
        (RIGHT, change(RIGHT, texture="stripes"), set()),
        (BOUNCE, change(BOUNCE, speed="quickly"), {"speed", "place"}),
        (BOUNCE, change(BOUNCE, motion="circling", reach=0.2), {"motion", "place"}),
        (PASSING, replace(PASSING, relation="behind"), {"occlusion"}),
    ],
)
def test_one_changed_attribute_is_the_one_that_is_wrong(scene: Scene, shown: Scene, wrong: set[str]) -> None:
    assert not judge(scene, clip(scene)).notes
    assert {name for name, mark in judge(scene, clip(shown)).marks.items() if mark is False} == wrong


def test_what_cannot_be_seen_is_never_right() -> None:
    empty = clip(Scene(LIGHT, ()))
    verdict = judge(TWO, empty)
    assert {name for name, mark in verdict.marks.items() if mark} <= {"background", "steadiness", "flicker", "wholeness"}
    noise = torch.rand(3, 17, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = {name for name, mark in judge(RIGHT, noise).marks.items() if mark}
    assert not seen & {"count", "shape", "motion", "direction", "place", "permanence", "flicker", "background"}


def test_unclear_is_not_right() -> None:
    marks = {"count": True, "colour": True, "shape": None, "size": False}
    verdict = Verdict(marks, {})
    assert verdict.all_of(["count", "colour", "speed"]) is True  # a scene of still things has no speed
    assert verdict.all_of(["count", "shape"]) is None
    assert verdict.all_of(["size", "shape"]) is False


def test_a_thing_that_is_gone_for_two_frames_is_not_permanent() -> None:
    pixels = clip(TWO)
    pixels[:, 8:10] = clip(replace(TWO, things=(STAR,), relation="none"))[:, 8:10]
    marks = judge(TWO, pixels).marks
    assert marks["count"] and not marks["permanence"]


def test_flicker_and_drift_of_the_background_are_seen() -> None:
    pixels, still = clip(TWO), judge(TWO, clip(TWO)).marks
    assert still["flicker"] and still["steadiness"]
    pixels[:, ::2] = (pixels[:, ::2] + 0.06).clamp(-1, 1)
    assert judge(TWO, pixels).marks["flicker"] is False
    other = clip(replace(TWO, background=Background("light green")))
    share = torch.linspace(0, 1, 17)[:, None, None]
    marks = judge(TWO, clip(TWO) * (1 - share) + other * share).marks
    assert marks["steadiness"] is False


def test_a_thing_that_changes_its_size_for_a_frame_flickers() -> None:
    pixels = clip(TWO)
    pixels[:, 7] = clip(change(TWO, size="large"))[:, 7]
    assert judge(TWO, pixels).marks["flicker"] is False


def test_a_thing_that_falls_apart_is_not_whole() -> None:
    pixels = clip(Scene(LIGHT, (STAR,)))
    empty = clip(Scene(LIGHT, ()))
    pixels[:, 4:, :, 36:42] = empty[:, 4:, :, 36:42]  # cut in two
    pixels[:, 4:, 48:54] = empty[:, 4:, 48:54]
    assert judge(Scene(LIGHT, (STAR,)), pixels).marks["wholeness"] is False


def test_pixels_of_another_shape_are_refused() -> None:
    for shape in ((3, 128, 128), (1, 17, 128, 128), (3, 17, 128, 96), (3, 0, 128, 128)):
        with pytest.raises(ValueError, match=r"must .*, got"):
            judge(TWO, torch.zeros(shape))


def test_every_mark_has_a_meaning() -> None:
    named = {name for scene in (TWO, RIGHT, PASSING) for name in judge(scene, clip(scene)).marks}
    assert named == set(ATTRIBUTES)


def test_a_hidden_part_is_completed() -> None:
    scene = Scene(
        LIGHT,
        (Thing("hexagon", "white", "small", "plain", 0.36, 0.5), Thing("ring", "black", "large", "plain", 0.5, 0.5)),
        "in front of",
    )
    scene = replace(scene, background=Background("tan"))
    front, back = sorted(watch(clip(scene, 1)).objects, key=lambda each: each.colour != "white")
    assert (front.shape, back.shape, back.size) == ("hexagon", "ring", "large")
    assert math.hypot(back.x[0] - 0.5, back.y[0] - 0.5) < 0.02


def test_a_thing_that_moves_and_shrinks_has_a_direction_a_speed_and_no_motion() -> None:
    pixels = clip(RIGHT)
    small = clip(change(RIGHT, size="small"))
    pixels[:, 9:] = small[:, 9:]
    marks = judge(RIGHT, pixels).marks
    assert (marks["motion"], marks["direction"], marks["speed"]) == (None, True, True)
    assert judge(change(RIGHT, speed="quickly"), pixels).marks["speed"] is False
    assert judge(change(RIGHT, motion="circling", reach=0.2), pixels).marks["speed"] is None


def test_what_takes_on_the_colour_of_what_it_passes_does_not_fade() -> None:
    """Where things overlap, a blurred clip shows the mean of both."""
    ring = Thing("ring", "brown", "small", "plain", 0.18, 0.2, "right", "quickly", 0.64)
    star = Thing("star", "pink", "small", "plain", 0.4, 0.19)
    one, other = (Scene(Background("lavender"), things, "in front of") for things in ((ring, star), (star, ring)))
    assert judge(one, (clip(one) + clip(other)) / 2).marks["motion"] is True


def test_what_is_in_front_is_seen_whole() -> None:
    cross = next(each for each in watch(clip(PASSING)).objects if each.colour == "red")
    touched = [frame for frame, blob in cross.blobs.items() if blob.touches]
    assert 0 < sum(cross.clean[frame] for frame in touched) < len(touched)


def test_what_looks_like_no_shape_is_unclear() -> None:
    pixels = clip(Scene(LIGHT, ()), 1)
    pixels[:, :, 60:70, 10:118] = -1
    (bar,) = watch(pixels).objects
    assert bar.colour == "black" and bar.shape is None
