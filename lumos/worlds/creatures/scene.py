"""Scenes of the creatures world: plain data that says who is where, what they do, and where the camera is.

A scene is the exact truth of its clip: captions.py puts it into words, render.py into pixels. Lengths are metres, angles
radians; y points up, and a body of heading 0 looks along z, one of heading pi / 2 along x.
"""

import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from types import ModuleType
from typing import Any

import numpy as np

from lumos.worlds.creatures.library import Body
from lumos.worlds.creatures.subjects import ACTIONS, SUBJECTS

FOCAL = 1.6  # of the camera, in half heights of the picture


@dataclass(frozen=True)
class Item:
    """One body: what it is, what it does, and its way, straight or along an arc. The renderer's have tensors for numbers."""

    file: str  # as in subjects.py
    action: str = "stand"
    x: Any = 0.0
    y: Any = 0.0
    z: Any = 0.0
    heading: Any = 0.0
    speed: Any = 0.0
    turn: Any = 0.0  # radians per second
    phase: Any = 0.0  # seconds into the animation at first
    rate: Any = 1.0  # of the animation
    scale: Any = 1.0


@dataclass(frozen=True)
class Camera:
    """Looks from `distance` at a point over the origin; azimuth 0 is on the side of z, pi / 2 on that of x."""

    azimuth: Any
    elevation: Any
    distance: Any
    look_y: Any = 0.0  # height of the point
    circling: Any = 0.0  # radians per second
    approach: Any = 0.0  # share of the distance per second
    follow: Any = False  # goes where the first creature goes


@dataclass(frozen=True)
class Scene:
    """One or two creatures, or one plant, in a place."""

    place: str
    time: str
    creatures: tuple[Item, ...]
    camera: Camera
    scenery: tuple[Item, ...] = ()
    sun: float = 0.0  # azimuth


SECONDS = 2.0  # that a scene is made for: what is said of it holds at least so long
# Kinds of subjects, and how often each is drawn.
KINDS = {"beast": 45, "fish": 24, "person": 13, "robot": 9, "flyer": 4, "vehicle": 2, "plant": 3}
LAND = ("grass", "snow", "sand", "forest", "leaves", "rock", "tiles")
MOVING = ("walk", "run", "drive", "swim", "dart", "fly", "leap", "roll")
FIGHTING = ("attack", "butt", "slash", "punch", "kick")
AIMS = {0.5: 26, -0.5: 26, 0.0: 12, 1.0: 8, 0.25: 9, -0.25: 9, 0.75: 5, -0.75: 5}  # half turns from the camera, and how often
GROWING = {
    "grass": ("CommonTree_[0-9]", "BirchTree_[0-9]", "Bush", "Flowers", "Grass", "Corn"),
    "forest": ("CommonTree_[0-9]", "BirchTree_[0-9]", "CommonTree_[0-9]", "Bush_[0-9]"),
    "leaves": (".*Tree_Autumn", ".*Tree_Autumn", "BushBerries"),
    "snow": (".*Tree_Snow", ".*Dead_Snow", "Bush_Snow"),
    "sand": ("Cactus",),
    "rock": (".*Tree_Dead_[0-9]", "Bush_[0-9]", "Grass"),
}


def held_out(scene: Scene) -> bool:
    """Whether a subject is where, or does what, training never shows it: one in ten of the pairs, by a fixed rule."""
    pairs = []
    for item in scene.creatures:
        name, kind = SUBJECTS[item.file].name, SUBJECTS[item.file].kind
        pairs += [f"{name} does {item.action}"] * (kind not in ("plant", "vehicle"))
        pairs += [f"{name} on {scene.place}"] * (kind != "fish")  # fish are under water
    return any(sha256(pair.encode()).digest()[0] % 10 == 0 for pair in pairs)


def way(item: Item, seconds: Any, of: ModuleType = np) -> tuple[Any, Any, Any]:
    """Where an item is after so many seconds: straight on, or along an arc. of: numpy, or torch for tensors."""
    half = item.turn * seconds / 2
    gone = item.speed * seconds * of.sinc(half / math.pi)
    return item.x + gone * of.sin(item.heading + half), item.y, item.z + gone * of.cos(item.heading + half)


def seen(scene: Scene, x: Any, y: Any, z: Any, seconds: Any) -> tuple[Any, Any, Any]:
    """A place in the picture: to the right and up, from -1 to 1 within it, and its depth in metres (render.py's `project`)."""
    camera, first = scene.camera, scene.creatures[0]
    if camera.follow:
        now_x, _, now_z = way(first, seconds)
        x, z = x - now_x + first.x, z - now_z + first.z
    azimuth, distance = camera.azimuth + camera.circling * seconds, camera.distance * (1 - camera.approach * seconds)
    sin, cos, rise, level = np.sin(azimuth), np.cos(azimuth), math.sin(camera.elevation), math.cos(camera.elevation)
    y, along = y - camera.look_y, x * sin + z * cos
    depth = distance - along * level - y * rise
    near = FOCAL / np.maximum(depth, 1e-9)
    return (x * cos - z * sin) * near, (y * level - along * rise) * near, depth


def shows(scene: Scene, plant: Item) -> bool:
    """Whether a plant is behind the creatures and well in the picture, at first or at last."""
    middle = SUBJECTS[plant.file].metres * plant.scale / 3
    across, up, depth = seen(scene, plant.x, middle, plant.z, np.array([0.0, SECONDS]))
    return bool(((depth > scene.camera.distance) & (abs(across) < 0.85) & (abs(up) < 0.95)).any())


def sample_scene(bodies: Mapping[str, Body], seed: int, number: int, unseen: bool = False) -> Scene:
    """Scene `number` of a seed, of the bodies that a library has; unseen: one with a held-out pair, otherwise never one."""
    rng = random.Random(f"{seed} {number} {unseen}")
    names: dict[str, dict[str, list[str]]] = {}
    for file in bodies:
        if SUBJECTS[file].kind != "cover":
            names.setdefault(SUBJECTS[file].kind, {}).setdefault(SUBJECTS[file].name, []).append(file)
    for _ in range(1000):
        scene = _draw(rng, bodies, names)
        if held_out(scene) == unseen:
            return scene
    raise ValueError("these bodies make no scene of this kind; load more files")


def _draw(rng: random.Random, bodies: Mapping[str, Body], names: dict[str, dict[str, list[str]]]) -> Scene:
    kind = rng.choices(list(names), [KINDS[kind] for kind in names])[0]
    file = rng.choice(rng.choice(list(names[kind].values())))
    action = _pick_action(rng, bodies[file])
    place = _pick_place(rng, kind, action)
    time = rng.choices(("day", "dusk", "night"), (60, 20, 20))[0]
    azimuth = rng.uniform(-math.pi, math.pi)
    creatures: tuple[Item, ...] = (_creature(rng, file, bodies[file], action, azimuth),)
    if kind != "plant" and rng.random() < 0.25:
        creatures = _two(rng, bodies, names, creatures[0], azimuth)
    camera, creatures = _camera(rng, bodies, creatures, azimuth)
    scene = Scene(place, time, creatures, camera, sun=azimuth + camera.circling + rng.uniform(-1.1, 1.1))
    scene = replace(scene, scenery=_scenery(rng, bodies, scene))
    if place == "forest" and not any(shows(scene, plant) for plant in scene.scenery):
        return replace(scene, place="grass", scenery=())  # no forest is seen
    return scene


def _pick_action(rng: random.Random, body: Body) -> str:
    moving = [action for action in body.gaits if action in MOVING]
    resting = [action for action in body.gaits if action not in MOVING]
    chosen = moving if moving and (not resting or rng.random() < 0.55) else resting
    return rng.choices(chosen, [{"eat": 2.5, "fall": 0.4}.get(action, 1.0) for action in chosen])[0]


def _pick_place(rng: random.Random, kind: str, action: str) -> str:
    if kind == "fish":
        return rng.choice(("sand", "rock", "tiles")) if action == "flop" else "water"
    return rng.choice(LAND[:-1] if kind in ("plant", "vehicle") else LAND)


def _creature(rng: random.Random, file: str, body: Body, action: str, azimuth: float) -> Item:
    """Someone at the origin, seen from a drawn side by a camera at this azimuth."""
    gait = body.gaits[action]
    aim = rng.choices(list(AIMS), list(AIMS.values()))[0]
    heading = azimuth + math.pi * aim + rng.uniform(-0.2, 0.2)
    rate = rng.uniform(0.85, 1.15)
    phase = rng.uniform(0, gait.seconds)
    if ACTIONS[action].once:
        phase = -rng.uniform(0, 0.4)
    elif action == "eat":  # begins and ends with a look around
        phase = gait.seconds * rng.uniform(0.05, 0.5)
    lifted = SUBJECTS[file].kind in ("fish", "flyer") and action not in ("flop", "fall")
    y = body.size * rng.uniform(0.15, 0.7) if lifted else 0.0
    speed = gait.speed * rate if action in MOVING else 0.0
    turn = rng.choice((-1, 1)) * rng.uniform(0.35, 0.8) if action in ("walk", "swim", "fly") and rng.random() < 0.2 else 0.0
    return Item(file, action, y=y, heading=heading, speed=speed, turn=turn, phase=phase, rate=rate)


def _two(
    rng: random.Random, bodies: Mapping[str, Body], names: dict[str, dict[str, list[str]]], first: Item, azimuth: float
) -> tuple[Item, ...]:
    """The first with one more: like it, behind it, fighting it, or with something of its own to do."""
    size, fish = bodies[first.file].size, SUBJECTS[first.file].kind == "fish"
    kinds = ("fish",) if fish else ("beast", "person", "robot", "flyer")
    files = (file for kind in kinds for group in names.get(kind, {}).values() for file in group)
    file = rng.choice([file for file in files if size / 2 < bodies[file].size < size * 2] or [first.file])
    body = bodies[file]
    if first.speed > 0:
        first = replace(first, turn=0.0)
        file = first.file if first.action not in body.gaits or rng.random() < 0.5 else file
        second = replace(first, file=file, phase=first.phase + rng.uniform(0.2, 0.8))
        second = replace(second, rate=min(1.4, max(0.7, first.speed / bodies[file].gaits[first.action].speed)))
        gap, sin, cos = 0.55 * (bodies[file].size + size), math.sin(first.heading), math.cos(first.heading)
        if abs(math.sin(first.heading - azimuth)) > 0.6:  # one behind the other, as seen from the side
            return first, replace(second, x=-1.15 * gap * sin, z=-1.15 * gap * cos)
        gap *= 0.8 if first.file == file else 1.0  # side by side
        return first, replace(second, x=gap * cos, z=-gap * sin)
    gap = 0.5 * (body.size + size) * rng.uniform(1.0, 1.2)
    fights = [action for action in FIGHTING if action in body.gaits]
    if first.action in FIGHTING and fights and rng.random() < 0.6:
        second = _creature(rng, file, body, rng.choice(fights), azimuth)
        first, second = replace(first, heading=azimuth + math.pi / 2), replace(second, heading=azimuth - math.pi / 2)
        gap *= 0.9
    else:
        resting = [action for action in body.gaits if action not in MOVING and action != "flop"]
        if rng.random() < 0.35 or not resting or first.action == "flop":
            second = replace(first, phase=first.phase + rng.uniform(0.2, 0.8))
        else:
            second = _creature(rng, file, body, rng.choice(resting), azimuth)
    x, z = gap * math.cos(azimuth) / 2, -gap * math.sin(azimuth) / 2
    return replace(first, x=-x, z=-z), replace(second, x=x, z=z)


def _camera(
    rng: random.Random, bodies: Mapping[str, Body], creatures: tuple[Item, ...], azimuth: float
) -> tuple[Camera, tuple[Item, ...]]:
    """A camera that has them in its picture for all of the time, and the creatures, moved to where it looks."""
    first, last = creatures[0], creatures[-1]
    gaits = [bodies[item.file].gaits[item.action] for item in creatures]
    size = max(max(bodies[item.file].size, 1.5 * gait.reach) for item, gait in zip(creatures, gaits, strict=True))
    length = first.speed * SECONDS
    apart = math.hypot(last.x - first.x, last.z - first.z)
    draw, follow, circling, approach = rng.random(), False, 0.0, 0.0
    if first.speed:
        follow = draw < (0.25 if length + apart < 1.7 * size else 0.65 if length + apart < 2.7 * size else 0.95)
        circling = rng.choice((-1, 1)) * rng.uniform(0.3, 0.6) if rng.random() < (0.3 if follow else 0.12) else 0.0
    elif draw < 0.3:
        circling = rng.choice((-1, 1)) * rng.uniform(0.3, 0.75)
    elif draw < 0.5:
        approach = rng.choice((0.22, 0.22, -0.3))
    high = max(item.y + gait.top for item, gait in zip(creatures, gaits, strict=True))
    low = min(item.y for item in creatures)
    gone = 0.0 if follow else length
    sin, cos = abs(math.sin(first.heading - azimuth)), abs(math.cos(first.heading - azimuth))
    size *= 1.0 if circling or first.turn else 0.6 + 0.4 * sin  # shorter from the front
    reach = max((size + apart + gone * sin) / 2, (high - low) / 2)
    distance = FOCAL * reach / rng.triangular(0.5, 1.0, 0.85) + size * 0.25 + gone * cos * 0.7
    distance /= 1 - max(approach, 0.0) * SECONDS
    elevation = rng.choices((rng.uniform(0.04, 0.14), rng.uniform(0.14, 0.4), rng.uniform(0.55, 0.95)), (25, 60, 15))[0]
    # The way's middle, of both creatures, lies at the origin.
    end_x, _, end_z = way(first, 0.0 if follow else SECONDS)
    x, z = (first.x + last.x + end_x - first.x) / 2, (first.z + last.z + end_z - first.z) / 2
    creatures = tuple(replace(item, x=float(item.x - x), z=float(item.z - z)) for item in creatures)
    return Camera(azimuth, elevation, distance, (high + low) / 2, circling, approach, follow), creatures


def _scenery(rng: random.Random, bodies: Mapping[str, Body], scene: Scene) -> tuple[Item, ...]:
    """Plants of the place behind and beside the creatures, never between them and the camera."""
    patterns, camera, first = GROWING.get(scene.place, ()), scene.camera, scene.creatures[0]
    scale = min(2.5, max(0.3, camera.distance / 7))
    items: list[Item] = []
    count = rng.choice((0, 1, 2, 3)) + (3 if scene.place in ("forest", "leaves") else 0)
    for _ in range(count if patterns and SUBJECTS[first.file].kind != "plant" else 0):
        pattern = rng.choice(patterns)
        files = [file for file in bodies if re.match(f"nature_pack/{pattern}", file)]
        if not files:
            continue
        file = rng.choice(files)
        for _ in range(8):
            seconds = rng.uniform(0, SECONDS)
            depth = camera.distance * (rng.uniform(0.9, 2.0) if bodies[file].high < 1 else rng.uniform(1.5, 4.0))
            aside = rng.uniform(-1.0, 1.0) * depth / FOCAL
            back = camera.distance * math.cos(camera.elevation) - depth
            now_x, _, now_z = way(first, seconds if camera.follow else 0.0)
            at = camera.azimuth + camera.circling * seconds
            x = float(now_x - first.x + back * math.sin(at) + aside * math.cos(at))
            z = float(now_z - first.z + back * math.cos(at) - aside * math.sin(at))
            item = Item(file, x=x, z=z, heading=rng.uniform(-math.pi, math.pi), scale=scale * rng.uniform(0.8, 1.2))
            if _is_clear(scene, bodies, item) and all(math.hypot(x - one.x, z - one.z) > 0.3 * camera.distance for one in items):
                items.append(item)
                break
    return tuple(items)


def _is_clear(scene: Scene, bodies: Mapping[str, Body], plant: Item) -> bool:
    """Whether a plant stands neither in a creature's way nor between it and the camera."""
    body, seconds = bodies[plant.file], np.linspace(0, 1.1 * SECONDS, 7)
    across, _, depth = seen(scene, plant.x, 0.0, plant.z, seconds)
    hides = (depth > 0) & (depth < 0.6 * scene.camera.distance)
    for item in scene.creatures:
        x, _, z = way(item, seconds)
        here, _, far = seen(scene, x, 0.0, z, seconds)
        size = 0.6 * bodies[item.file].size
        gap = 0.6 * max(body.wide, body.long) * plant.scale + size
        beside = abs(across * depth - here * far) / FOCAL > gap
        hides |= (np.hypot(plant.x - x, plant.z - z) <= gap) | ((depth > 0) & (depth < far + size) & ~beside)
    return not hides.any()
