"""The creatures world, on boxes made here: no models are in the repository."""

import json
import random
import struct
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from lumos.worlds.creatures import captions
from lumos.worlds.creatures.glb import read_glb
from lumos.worlds.creatures.library import Library, load_library
from lumos.worlds.creatures.render import cameras, pack, project, render
from lumos.worlds.creatures.scene import Camera, Item, Scene, held_out, sample_scene, seen, way
from lumos.worlds.creatures.subjects import SUBJECTS
from lumos.worlds.english import Plainest, plural

CORNERS = np.array(list(product((-0.5, 0.5), (0.0, 1.0), (-1.0, 1.0))), np.float32)  # x, y, z
MIDDLE = np.array([0, 0.5, 0], np.float32)
FACES = np.array([int(digit) for digit in "013032467475045051237276026064157173"], np.uint16)


def tiny_glb(colour: tuple[float, float, float] = (0.8, 0.1, 0.1), **changes: object) -> bytes:
    """A GLB of a box on one bone, with animations; changes replace parts of its JSON."""
    times = np.array([0.0, 0.5, 1.0], np.float32)
    steps = np.array([[0, 0, 0], [0, 0.3, -1], [0, 0, 0]], np.float32)
    joints, weights = np.zeros((8, 4), np.uint8), np.tile(np.array([1, 0, 0, 0], np.float32), (8, 1))
    blocks = [CORNERS, FACES, joints, weights, np.eye(4, dtype=np.float32).reshape(1, 16), times, steps, CORNERS - MIDDLE]
    kinds, components = ("VEC3", "SCALAR", "VEC4", "VEC4", "MAT4", "SCALAR", "VEC3", "VEC3"), {"f": 5126, "H": 5123, "B": 5121}
    views, accessors, binary = [], [], b""
    for number, (block, kind) in enumerate(zip(blocks, kinds, strict=True)):
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": block.nbytes})
        component = components[block.dtype.char]
        accessors.append({"bufferView": number, "componentType": component, "count": len(block), "type": kind})
        binary += block.tobytes() + b"\0" * (-block.nbytes % 4)
    attributes = {"POSITION": 0, "JOINTS_0": 2, "WEIGHTS_0": 3, "NORMAL": 7}
    moves = {"samplers": [{"input": 5, "output": 6}], "channels": [{"sampler": 0, "target": {"node": 1, "path": "translation"}}]}
    content = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": len(binary)}],
        "bufferViews": views,
        "accessors": accessors,
        "nodes": [{"name": "Box", "mesh": 0, "skin": 0}, {"name": "Bone"}],
        "skins": [{"joints": [1], "inverseBindMatrices": 4}],
        "materials": [{"pbrMetallicRoughness": {"baseColorFactor": [*colour, 1]}}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": 1, "material": 0}]}],
        "animations": [{"name": f"Armature|{name}", **moves} for name in ("Idle", "Walk", "Jump", "Attack", "Death")],
    } | changes
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


FOX, WOLF, TREE = "animals_pack/Fox", "animals_pack/Wolf", "nature_pack/CommonTree_3"
SEVERAL = (FOX, WOLF, "animals_pack/Husky", "cute_fish_pack/Koi", "kaykit_adventurers/Mage", TREE)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("creatures")
    for number, name in enumerate(SEVERAL):
        path = folder / f"{name}.glb"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tiny_glb((0.9, 0.05, 0.05) if number == 0 else (0.05, 0.05, 0.9)))
    return load_library(folder)


def shown(*creatures: Item, distance: float = 5.0, scenery: tuple[Item, ...] = ()) -> Scene:
    return Scene("tiles", "day", creatures, Camera(0.0, 0.2, distance, look_y=0.25), scenery)


def test_scene_is_a_function_of_seed_and_number(library: Library) -> None:
    drawn = [sample_scene(library.bodies, 5, number) for number in range(40)]
    assert drawn[39] == sample_scene(library.bodies, 5, 39) != sample_scene(library.bodies, 6, 39)
    assert len(set(drawn)) == 40


def test_held_out_pairs_are_drawn_only_when_asked_for(library: Library) -> None:
    for number in range(60):
        assert not held_out(sample_scene(library.bodies, 1, number))
        assert held_out(sample_scene(library.bodies, 1, number, unseen=True))


def test_an_arc_is_as_long_as_the_way_and_ends_in_its_direction() -> None:
    x, _, z = way(Item(FOX, heading=0.3, speed=1.5, turn=0.8), np.linspace(0, 2, 401))
    assert np.hypot(np.diff(x), np.diff(z)).sum() == pytest.approx(2 * 1.5, rel=1e-4)
    assert np.arctan2(x[-1] - x[-2], z[-1] - z[-2]) == pytest.approx(0.3 + 2 * 0.8, abs=0.01)


def test_plants_stand_in_nobody_s_way_or_view(library: Library) -> None:
    drawn = [sample_scene(library.bodies, 8, number) for number in range(300)]
    assert sum(len(scene.scenery) for scene in drawn) > 50
    for scene, time in product(drawn, (0.0, 1.1, 2.2)):
        for plant, item in product(scene.scenery, scene.creatures):
            x, _, z = way(item, time)
            assert np.hypot(plant.x - x, plant.z - z) > 0.6 * library.bodies[item.file].size
            assert not 0 < seen(scene, plant.x, 0.0, plant.z, time)[2] < 0.6 * scene.camera.distance


@pytest.mark.parametrize("most", [64, 10**9])
def test_drawing_in_a_batch_equals_drawing_alone(library: Library, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    scenes = [sample_scene(library.bodies, 2, number) for number in range(4)]
    monkeypatch.setattr("lumos.worlds.creatures.render.MOST_TRIANGLES", most)  # each clip by itself, or all at once
    together = render(pack(scenes, library), library, 3, 48)
    assert together.shape == (4, 3, 3, 48, 48) and together.min() >= -1 and together.max() <= 1
    for number, alone in enumerate(scenes):
        assert (render(pack([alone], library), library, 3, 48)[0] - together[number]).abs().max() < 1e-3


def test_nearer_hides_farther_in_either_order(library: Library) -> None:
    near, far = Item(FOX, z=1.0), Item(WOLF, z=-1.0, scale=1.2)
    for pair in ((near, far), (far, near)):
        middle = render(pack([shown(*pair)], library), library, 1, 64)[0, :, 0, 30:34, 30:34]
        assert middle[0].mean() > middle[2].mean()  # red before blue
    alone = render(pack([shown(far)], library), library, 1, 64)[0, :, 0, 30:34, 30:34]
    assert alone[2].mean() > alone[0].mean()


def test_bodies_stand_on_the_ground_and_throw_a_shadow(library: Library) -> None:
    scene = Scene("snow", "day", (Item(FOX),), Camera(0.0, 0.3, 4.0, look_y=0.3), sun=1.5)
    empty = Scene("snow", "day", (Item(FOX, x=90.0),), scene.camera, sun=1.5)
    there, bare = (render(pack([one], library), library, 1, 96)[0, :, 0] for one in (scene, empty))
    red = (there[0] - there[2] > 0.5).nonzero()
    _, up, _ = seen(scene, 0.0, 0.0, 0.5 * library.bodies[FOX].long, 0.0)
    assert abs(red[:, 0].max() - 48 * (1 - up)) < 3  # the lowest pixel is where the near side meets the ground
    darker = (there - bare).sum(0) < -0.2  # the sun is on the right
    assert darker[:, :40].sum() > 20 and not darker[:, 56:].any()


def test_places_in_the_picture_are_the_same_in_words_and_pixels(library: Library) -> None:
    seconds = torch.tensor([0.0, 0.7, 1.9])
    for number in range(30):
        drawn = sample_scene(library.bodies, 3, number)
        packed = pack([drawn], library)
        camera = cameras(packed, seconds)
        for frame, time in enumerate(seconds.tolist()):
            x, _, z = way(drawn.creatures[-1], time)
            point = torch.tensor([x, 0.4, z])
            told = project(point, camera.eye_BF3[0, frame], camera.axes_BF33[0, frame], 2)
            across, up, depth = seen(drawn, x, 0.4, z, time)
            assert told.tolist() == pytest.approx([1 + across, 1 - up, 1 / depth], abs=2e-3)


def test_directions_in_words_agree_with_the_way_in_the_picture(library: Library) -> None:
    told = set()
    for number in range(300):
        drawn = sample_scene(library.bodies, 4, number)
        mover = drawn.creatures[0]
        way_told = captions.direction(drawn, mover)
        told.add(way_told)
        words = captions.caption(drawn, Plainest())
        if len(drawn.creatures) == 1:
            assert ("to the left" in words, "to the right" in words) == (way_told == "left", way_told == "right")
        if way_told and not drawn.camera.follow:
            (x0, _, z0), (x1, _, z1) = (seen(drawn, *way(mover, time), time) for time in (0.0, 2.0))
            assert {"left": x1 < x0, "right": x1 > x0, "nearer": z1 < z0, "farther": z1 > z0}[way_told]
    assert told == {"left", "right", "nearer", "farther", ""}


def test_everything_that_a_caption_names_is_in_the_picture(library: Library) -> None:
    for number in range(800):
        drawn = sample_scene(library.bodies, 7, number)
        words = captions.caption(drawn, random.Random(number))
        for item in drawn.creatures:
            assert any(word in words or plural(word) in words for word in SUBJECTS[item.file].words)
            if not drawn.camera.follow:
                across, up, depth = seen(drawn, *way(item, 1.0), 1.0)
                assert depth > 0 and abs(across) < 1.0 and abs(up) < 1.3
        if "background" in words:
            ways = [[seen(drawn, plant.x, 1.0, plant.z, time) for time in (0.0, 2.0)] for plant in drawn.scenery]
            visible = [any(depth > 0 and abs(across) < 1 for across, _, depth in way_seen) for way_seen in ways]
            assert sum(visible) >= 1 + ("trees" in words)


def test_feet_do_not_slide(library: Library) -> None:
    body = library.bodies[FOX]
    assert body.gaits["walk"].speed == pytest.approx(1.0 / 0.5 * body.long / 2.0, rel=1e-3)  # the bone goes back by 1 in 0.5 s
    assert body.gaits["attack"].speed == 0


def _broken() -> dict[str, bytes]:
    whole = tiny_glb()
    parsed = json.loads(whole[20 : 20 + struct.unpack_from("<I", whole, 12)[0]])
    far = [dict(parsed["accessors"][0], count=10**9), *parsed["accessors"][1:]]
    deep = whole[:12] + struct.pack("<I4s", 400_000, b"JSON") + b"[" * 400_000
    return {
        "empty": b"",
        "not a GLB": b"<html>" * 9,
        "cut off": whole[: len(whole) // 2],
        "without data": whole[: 20 + struct.unpack_from("<I", whole, 12)[0]],
        "huge": tiny_glb(accessors=far),
        "a circle": tiny_glb(nodes=[{"mesh": 0, "children": [1]}, {"children": [0]}]),
        "two parents": tiny_glb(nodes=[{"mesh": 0, "children": [2]}, {"children": [2]}, {}]),
        "a list": tiny_glb(nodes=3),
        "too deep": deep,
        "no such mesh": tiny_glb(meshes=[]),
        "no such bone": tiny_glb(skins=[{"joints": [7], "inverseBindMatrices": 4}]),
        "negative": tiny_glb(bufferViews=[dict(view, byteOffset=-4) for view in parsed["bufferViews"]]),
        "not a number": whole.replace(np.float32(0.3).tobytes(), np.float32(np.nan).tobytes()),
    }


@pytest.mark.parametrize("name", _broken())
def test_a_damaged_file_is_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{FOX}.glb"
    path.parent.mkdir()
    path.write_bytes(_broken()[name])
    with pytest.raises(ValueError, match=f"{FOX}.glb: not a GLB") as error:
        load_library(tmp_path)
    assert "\n" not in str(error.value)


def test_points_and_lines_of_a_file_are_not_drawn_as_triangles() -> None:
    part = {"attributes": {"POSITION": 0, "JOINTS_0": 2, "WEIGHTS_0": 3, "NORMAL": 7}, "indices": 1, "material": 0}
    files = [tiny_glb(meshes=[{"primitives": [part, *lines]}]) for lines in ([], [part | {"mode": 1}])]
    alone, with_lines = (read_glb(file, lambda _: True, lambda _: False).surface.triangles_T3 for file in files)
    assert np.array_equal(alone, with_lines)


def test_a_folder_without_models_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="examples/creatures.md"):
        load_library(tmp_path)
