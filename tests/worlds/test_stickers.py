"""The stickers world, on pictures made here: what captions say is what is seen."""

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from lumos.worlds.shapes.motion import DIRECTIONS
from lumos.worlds.shapes.scene import Background
from lumos.worlds.stickers.captions import caption
from lumos.worlds.stickers.library import load_stickers
from lumos.worlds.stickers.render import Pictures, pack, render
from lumos.worlds.stickers.scene import STICKER_MOTIONS, WHITE, PlacedSticker, Scene, Sticker, is_kept_back, sample_scene

ALONE = ("cat", "an orange cat walking", "a cat on a white background")
STICKERS = (Sticker("cat", ALONE), Sticker("red heart emoji", ("red heart emoji",), mirror=False), Sticker("", ("people",)))
RED, GREEN = (255, 0, 0, 255), (0, 255, 0, 255)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """A red sticker; one whose left half is green, the rest unseen, in its second frame; and one of nothing."""
    frames = torch.zeros(4, 4, 32, 32, dtype=torch.uint8)
    frames[0] = torch.tensor(RED, dtype=torch.uint8)[:, None, None]
    frames[2, :, :, :16] = torch.tensor(GREEN, dtype=torch.uint8)[:, None, None]
    return Pictures(frames, torch.tensor([0, 1, 3]), torch.tensor([1, 2, 1]), fps=4.0)


def middle_of(pixels_CFHW: torch.Tensor) -> list[tuple[float, float]]:
    """Where the red lies in each frame, as shares of the frame (x, y)."""
    found = []
    for frame in pixels_CFHW.unbind(1):
        rows, columns = ((frame[0] > 0.5) & (frame[1] < 0)).nonzero().unbind(1)
        found.append((float(columns.float().mean() + 0.5) / frame.shape[2], float(rows.float().mean() + 0.5) / frame.shape[1]))
    return found


@pytest.mark.parametrize("motion", DIRECTIONS)
def test_a_sticker_moves_as_its_motion_says_and_stays_inside(pictures: Pictures, motion: str) -> None:
    rng = random.Random(motion)
    while True:
        scene = sample_scene(rng, STICKERS)
        if len(scene.things) == 1 and scene.things[0].motion == motion:
            break
    scene = Scene(Background("dark blue"), (PlacedSticker(**{**vars(scene.things[0]), "sticker": 0}),))
    (x, y), *_, (last_x, last_y) = middle_of(render(pack([scene]), pictures, frames=25, size=64)[0])
    way_x, way_y = DIRECTIONS[motion]
    assert (last_x - x) * way_x + (last_y - y) * way_y > 0.1
    assert abs((last_x - x) * way_y - (last_y - y) * way_x) < 0.02
    radius = scene.things[0].radius
    assert all(radius - 0.02 < value < 1 - radius + 0.02 for value in (x, y, last_x, last_y))


def test_own_animation_mirror_and_opacity_are_seen(pictures: Pictures) -> None:
    ground = Background("dark blue")
    plain, mirrored = (Scene(ground, (PlacedSticker(1, "full", mirrored=value),)) for value in (False, True))
    one, other = render(pack([plain, mirrored]), pictures, frames=4, size=32, fps=8.0)
    green = [(clip[1] > 0.5).float().mean(1) for clip in (one, other)]  # share of rows, [frame, column]
    assert green[0][:2].max() == 0 and green[0][2:, :14].min() == 1 and green[0][2:, 18:].max() == 0  # from 0.25 s on
    assert torch.equal(green[1], green[0].flip(1))
    late = Scene(ground, (PlacedSticker(1, "full", start=0.25),))  # this much of the animation is over at time 0
    assert (render(pack([late]), pictures, frames=1, size=32)[0, 1, 0, :, :14] > 0.5).all()
    assert one[2, 0, 0, 0] == pytest.approx(84 / 127.5 - 1, abs=0.01)  # unseen parts show the ground


def test_small_stickers_are_averaged_not_picked(pictures: Pictures) -> None:
    chequered = pictures.frames.clone()
    chequered[0, :3] = 255 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2)
    scene = Scene(Background(WHITE), (PlacedSticker(0, "small"),))
    pixels = render(pack([scene]), pictures._replace(frames=chequered), frames=1, size=32)[0, :, 0]
    assert float(pixels[:, 14:18, 14:18].std()) < 0.2 and abs(float(pixels[:, 14:18, 14:18].mean())) < 0.2


def manifest(folder: Path, **changes: object) -> Path:
    """Of a half transparent picture, and of an animation of three frames of 0.1, 0.2 and 0.1 s."""
    Image.new("RGBA", (8, 8), (200, 100, 0, 128)).save(folder / "still.png")
    frames = [Image.new("RGBA", (8, 8), (shade, 0, 0, 255)) for shade in (50, 150, 250)]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:], duration=[100, 200, 100], lossless=True)
    known = {"noun": "cat", "captions": ["a cat"], "mirror": True} | (changes if changes.pop("every", False) else {})
    rows = [{"path": "still.png", **known}, {"path": "moving.webp", **known, **changes}]
    (folder / "stickers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "stickers.jsonl"


def test_pictures_are_read_at_their_times_with_their_opacity(tmp_path: Path) -> None:
    stickers, pictures = load_stickers(manifest(tmp_path), size=4, fps=10.0)
    assert [sticker.animated for sticker in stickers] == [False, True]
    assert pictures.first_N.tolist() == [0, 1] and pictures.count_N.tolist() == [1, 4]
    assert pictures.frames[0, :, 0, 0].tolist() == pytest.approx([100, 50, 0, 128], abs=1)  # times opacity
    assert pictures.frames[1:, 0, 0, 0].tolist() == [50, 150, 150, 250]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"noun": 3}, "line 2 must be an object"),
        ({"noun": "", "every": True}, "one of them with a noun, got none"),
        ({"captions": []}, "line 2 must be an object"),
        ({"mirror": "yes"}, "line 2 must be an object"),
        ({"path": "nothing.webp"}, "nothing.webp must be a picture"),
        ({"path": "stickers.jsonl"}, "stickers.jsonl must be a picture"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_stickers(manifest(tmp_path, **changes), size=4, fps=10.0)


def test_captions_are_true_and_held_out_pairs_are_kept() -> None:
    rng, motions = random.Random(0), set()
    for _ in range(2000):
        scene = sample_scene(rng, STICKERS)
        words = caption(scene, STICKERS, rng)
        first = scene.things[0]
        assert "white background" not in words or scene.ground.colour == WHITE
        assert first.size == "full" or all(STICKERS[thing.sticker].noun for thing in scene.things)
        assert not any(is_kept_back(STICKERS[thing.sticker].noun, thing.motion) for thing in scene.things)
        assert not any(thing.mirrored and not STICKERS[thing.sticker].mirror for thing in scene.things)
        opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}.get(first.motion)
        if len(scene.things) == 1 and opposite and "from" not in words:
            assert f"to the {opposite}" not in words and f"{opposite}ward" not in words
        motions.add(first.motion)
        unseen = sample_scene(rng, STICKERS, held_out=True)
        assert is_kept_back(STICKERS[unseen.things[0].sticker].noun, unseen.things[0].motion)
    assert motions == set(STICKER_MOTIONS)
