import math
import random

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lumos.worlds.shapes.motion import DIRECTIONS
from lumos.worlds.shapes.palette import BACKGROUNDS, Rgb, distance
from lumos.worlds.shapes.render import _render, pack, render
from lumos.worlds.shapes.scene import Background, Scene, sample_occlusion, sample_one, sample_scene
from lumos.worlds.shapes.thing import SHAPES, SIZES, Thing


def scenes(count: int, seed: int) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng) for _ in range(count)]


def empty(scene: Scene) -> Scene:
    return Scene(scene.background, ())


def seen(scene: Scene, frames: int = 17, size: int = 96) -> Tensor:
    """Which pixels differ from the empty background by more than a shadow does: mask_FHW."""
    difference = render(pack([scene]), frames, size) - render(pack([empty(scene)]), frames, size)
    mask_FHW = difference[0].abs().amax(0) > 0.35
    assert mask_FHW.any()
    return mask_FHW


def centroids(mask_FHW: Tensor) -> list[tuple[float, float]]:
    """Mean place of the marked pixels of each frame, as fractions of the frame."""
    places = []
    for mask_HW in mask_FHW:
        rows, columns = mask_HW.nonzero().double().add(0.5).mean(0).tolist()
        places.append((columns / mask_HW.shape[1], rows / mask_HW.shape[0]))
    return places


def bright(thing_motion: str, seed: int, speed: str = "normally") -> Scene:
    """A scene whose one thing differs strongly from its background in some channel."""
    thing = sample_one(random.Random(seed), motion=thing_motion, speed=speed, pair=("red", "square")).things[0]
    return Scene(Background("light blue"), (thing,))


def test_pixels_are_in_range_and_of_the_size_asked_for() -> None:
    pixels_BCFHW = render(pack(scenes(24, 1)), 5, 64)
    assert pixels_BCFHW.shape == (24, 3, 5, 64, 64) and pixels_BCFHW.dtype == torch.float32
    assert pixels_BCFHW.isfinite().all() and pixels_BCFHW.min() >= -1 and pixels_BCFHW.max() <= 1
    assert render(pack(scenes(1, 1)), 2, height=32, width=56).shape == (1, 3, 2, 32, 56)
    assert render(pack([Scene(Background("tan"), ())]), 2, 32).shape == (1, 3, 2, 32, 32)


@pytest.mark.parametrize("motion", [*DIRECTIONS, "circling", "bouncing", "growing", "shrinking", "spinning"])
def test_place_and_size_from_pixels_follow_the_formula(motion: str) -> None:
    scene = bright(motion, 4, "quickly")
    thing, mask_FHW = scene.things[0], seen(scene)
    areas = mask_FHW.double().mean((1, 2))
    for frame, place in enumerate(centroids(mask_FHW)):
        at = thing.at(frame / 8)
        assert math.dist(place, (at.x + at.orbit_x, at.y + at.orbit_y)) < 0.012
        assert areas[frame] / areas[0] == pytest.approx((at.scale / thing.at(0).scale) ** 2, rel=0.12)


def test_a_frame_alone_is_that_frame_of_the_clip() -> None:
    packed = pack(scenes(6, 6))
    clip = render(packed, 17, 48)
    for frame in (0, 1, 9, 16):
        assert torch.equal(render(packed, frame + 1, 48)[:, :, frame], clip[:, :, frame])
    assert torch.equal(render(packed, 9, 48, fps=4)[:, :, 1:], clip[:, :, 2::2])


def test_a_batch_is_its_scenes_one_by_one_and_as_a_whole() -> None:
    many = scenes(9, 7)
    packed = pack(many)
    clips = render(packed, 3, 48)
    for n, scene in enumerate(many):
        assert torch.equal(render(pack([scene]), 3, 48)[0], clips[n])
    # What other devices run: the whole batch at once, with the things that fill up.
    whole = _render(packed.objects_BNP, packed.background_BP, 3, 48, 48, 8.0)
    torch.testing.assert_close(whole, clips, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64)])
def test_things_keep_their_proportions_in_other_frames(height: int, width: int) -> None:
    scene = Scene(Background("cream"), (Thing("circle", "blue", "large", "plain", 0.3, 0.6),))
    difference = render(pack([scene]), 1, height=height, width=width) - render(
        pack([empty(scene)]), 1, height=height, width=width
    )
    mask_HW = difference[0, :, 0].abs().amax(0) > 0.5
    rows, columns = mask_HW.any(1).sum().item(), mask_HW.any(0).sum().item()
    assert abs(rows - columns) <= 2 and rows == pytest.approx(2 * 0.92 * SIZES["large"] * 64, abs=2)
    assert centroids(mask_HW[None])[0] == pytest.approx((0.3, 0.6), abs=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_place_and_no_more(shape: str) -> None:
    for size in SIZES:
        scene = Scene(Background("light gray"), (Thing(shape, "blue", size, "plain", 0.5, 0.5),))
        mask_HW = seen(scene, 1)[0]
        area = mask_HW.double().mean().item() / SIZES[size] ** 2
        assert 1.5 < area < 3.3  # in squared radii: all shapes look about equally large
        far = (mask_HW.nonzero() + 0.5) / 96 - 0.5
        assert far.norm(dim=1).max() < 1.18 * SIZES[size] + 0.012
        x, y = centroids(mask_HW[None])[0]
        assert math.dist((x, y), (0.5, 0.5)) < 0.25 * SIZES[size]


@pytest.mark.parametrize("passing", [False, True])
def test_an_occlusion_hides_a_part_of_the_thing_behind_and_not_all_of_both(passing: bool) -> None:
    rng = random.Random(9)
    for _ in range(12):
        scene = sample_occlusion(rng, passing=passing)
        alone = [seen(Scene(scene.background, (thing,)), 17, 48) for thing in scene.things]
        hidden = (alone[0] & alone[1]).sum((1, 2)) / torch.minimum(alone[0].sum((1, 2)), alone[1].sum((1, 2)))
        assert hidden.max() > (0.3 if passing else 0.03)
        assert hidden.min() < (0.15 if passing else 0.7)


def test_sizes_that_cannot_be_are_refused() -> None:
    packed = pack(scenes(1, 12))
    for wrong in ({"frames": 0}, {"frames": 1, "size": 0}, {"frames": 1, "fps": 0.0}):
        with pytest.raises(ValueError, match=r"must be|got"):
            render(packed, **wrong)


def test_a_smaller_picture_is_the_larger_one_shrunk() -> None:
    packed = pack(scenes(12, 8))
    small, large = render(packed, 1, 64)[:, :, 0], render(packed, 1, 128)[:, :, 0]
    error = (small - avg_pool2d(large, 2)).square().mean((1, 2, 3))
    assert (10 * torch.log10(4 / error)).min() > 32


def rgb_at(scene: Scene, row: int, column: int, reach: int = 0) -> Rgb:
    """The mean colour around a place of the first frame of 128x128."""
    pixels_CHW = render(pack([scene]), 1)[0, :, 0, row - reach : row + reach + 1, column - reach : column + reach + 1]
    red, green, blue = ((pixels_CHW + 1) * 127.5).mean((1, 2)).tolist()
    return red, green, blue


@pytest.mark.parametrize(("gradient", "row", "column"), [("plain", 64, 64), ("across", 64, 125), ("down", 125, 64)])
def test_the_background_has_its_colours(gradient: str, row: int, column: int) -> None:
    scene = Scene(Background("peach", gradient, "light blue"), ())
    far = "peach" if gradient == "plain" else "light blue"
    assert distance(rgb_at(scene, row, column), BACKGROUNDS[far]) < 5
    assert distance(rgb_at(scene, 128 - row, 128 - column), BACKGROUNDS["peach"]) < 5
