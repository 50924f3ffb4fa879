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

from lumos.worlds.creatures.library import Body
from lumos.worlds.creatures.subjects import ACTIONS, SUBJECTS

FOCAL = 1.6  # of the camera, in half heights of the picture


@dataclass(frozen=True)
class Item:
    """One body: what it is, what it does, and its way, straight or along an arc."""

    file: str  # as in subjects.py
    action: str = "stand"
    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    heading: float = 0.0
    speed: float = 0.0
    turn: float = 0.0  # radians per second
    phase: float = 0.0  # seconds into the animation at first
    rate: float = 1.0  # of the animation
    scale: float = 1.0


@dataclass(frozen=True)
class Camera:
    """Looks from `distance` at a point; azimuth 0 is on the side of z, pi / 2 on that of x."""

    azimuth: float
    elevation: float
    distance: float
    look_x: float = 0.0
    look_y: float = 0.0
    look_z: float = 0.0
    circling: float = 0.0  # radians per second
    approach: float = 0.0  # share of the distance per second
    follow: bool = False  # goes where the first creature goes


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
    return any(_unseen(item, scene.place) for item in scene.creatures)


def _unseen(item: Item, place: str) -> bool:
    subject = SUBJECTS[item.file]
    pairs = [f"{subject.name} does {item.action}"] * (subject.kind not in ("plant", "vehicle"))
    pairs += [f"{subject.name} on {place}"] * (subject.kind != "fish")  # fish are under water
    return any(sha256(pair.encode()).digest()[0] % 10 == 0 for pair in pairs)


def sample_scene(bodies: Mapping[str, Body], seed: int, number: int, unseen: bool = False) -> Scene:
    """Scene `number` of a seed, of the bodies that a library has; unseen: one with a held-out pair, otherwise never one."""
    rng = random.Random(f"{seed} {number} {unseen}")
    names: dict[str, dict[str, list[str]]] = {}
    for file in bodies:
        if SUBJECTS[file].kind == "cover":
            continue
        names.setdefault(SUBJECTS[file].kind, {}).setdefault(SUBJECTS[file].name, []).append(file)
    for _ in range(1000):
        scene = _draw(rng, bodies, names)
        if held_out(scene) == unseen:
            return scene
    raise ValueError("these bodies make no scene of this kind; load more files")


def _draw(rng: random.Random, bodies: Mapping[str, Body], names: dict[str, dict[str, list[str]]]) -> Scene:
    kind = rng.choices(list(names), [KINDS[kind] for kind in names])[0]
    file = rng.choice(rng.choice(list(names[kind].values())))
    action = _action(rng, bodies[file])
    place = _place(rng, kind, action)
    time = rng.choices(("day", "dusk", "night"), (60, 20, 20))[0]
    azimuth = rng.uniform(-math.pi, math.pi)
    first = _creature(rng, file, bodies[file], action, azimuth)
    creatures: tuple[Item, ...] = (first,)
    if kind != "plant" and rng.random() < 0.25:
        creatures = _two(rng, bodies, names, first, azimuth)
    camera, creatures = _camera(rng, bodies, creatures, azimuth)
    scene = Scene(place, time, creatures, camera, sun=azimuth + camera.circling + rng.uniform(-1.1, 1.1))
    scene = replace(scene, scenery=_scenery(rng, bodies, scene))
    if place == "forest" and not any(shows(scene, plant) for plant in scene.scenery):
        return replace(scene, place="grass", scenery=())  # no forest is seen
    return scene


def _action(rng: random.Random, body: Body) -> str:
    moving = [action for action in body.gaits if action in MOVING]
    resting = [action for action in body.gaits if action not in MOVING]
    chosen = moving if moving and (not resting or rng.random() < 0.55) else resting
    return rng.choices(chosen, [{"eat": 2.5, "fall": 0.4}.get(action, 1.0) for action in chosen])[0]


def _place(rng: random.Random, kind: str, action: str) -> str:
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
    size = max(body.wide, body.high, body.long)
    lifted = SUBJECTS[file].kind in ("fish", "flyer") and action not in ("flop", "fall")
    y = size * rng.uniform(0.15, 0.7) if lifted else 0.0
    speed = gait.speed * rate if action in MOVING else 0.0
    turn = rng.choice((-1, 1)) * rng.uniform(0.35, 0.8) if action in ("walk", "swim", "fly") and rng.random() < 0.2 else 0.0
    return Item(file, action, y=y, heading=heading, speed=speed, turn=turn, phase=phase, rate=rate)


def _two(
    rng: random.Random, bodies: Mapping[str, Body], names: dict[str, dict[str, list[str]]], first: Item, azimuth: float
) -> tuple[Item, ...]:
    """The first with one more: like it, behind it, fighting it, or with something of its own to do."""
    size = _size(bodies[first.file])
    fish = SUBJECTS[first.file].kind == "fish"
    others = [
        file
        for kind in ("beast", "person", "robot", "flyer", "fish")
        for files in names.get(kind, {}).values()
        for file in files
        if (kind == "fish") == fish and size / 2 < _size(bodies[file]) < size * 2
    ]
    file = rng.choice(others or [first.file])
    body = bodies[file]
    if first.speed > 0:
        first = replace(first, turn=0.0)
        file = first.file if first.action not in body.gaits or rng.random() < 0.5 else file
        second = replace(first, file=file, phase=first.phase + rng.uniform(0.2, 0.8))
        gait = bodies[file].gaits[first.action]
        second = replace(second, rate=min(1.4, max(0.7, first.speed / gait.speed)))
        gap = 0.55 * (_size(bodies[file]) + size)
        if abs(math.sin(first.heading - azimuth)) > 0.6:  # one behind the other, as seen from the side
            gap *= 1.15
            return first, replace(second, x=-gap * math.sin(first.heading), z=-gap * math.cos(first.heading))
        gap *= 0.8 if first.file == file else 1.0  # side by side
        return first, replace(second, x=gap * math.cos(first.heading), z=-gap * math.sin(first.heading))
    gap = 0.5 * (_size(body) + size) * rng.uniform(1.0, 1.2)
    fights = [action for action in FIGHTING if action in body.gaits]
    if first.action in FIGHTING and fights and rng.random() < 0.6:
        second = _creature(rng, file, body, rng.choice(fights), azimuth)
        second = replace(second, heading=azimuth - math.pi / 2)
        first = replace(first, heading=azimuth + math.pi / 2)
        gap *= 0.9
    else:
        resting = [action for action in body.gaits if action not in MOVING and action != "flop"]
        if rng.random() < 0.35 or not resting or first.action == "flop":
            second = replace(first, phase=first.phase + rng.uniform(0.2, 0.8))
        else:
            second = _creature(rng, file, body, rng.choice(resting), azimuth)
    across_x, across_z = gap * math.cos(azimuth) / 2, -gap * math.sin(azimuth) / 2
    return replace(first, x=-across_x, z=-across_z), replace(second, x=across_x, z=across_z)


def _size(body: Body) -> float:
    return max(body.wide, body.high, body.long)


def _camera(
    rng: random.Random, bodies: Mapping[str, Body], creatures: tuple[Item, ...], azimuth: float
) -> tuple[Camera, tuple[Item, ...]]:
    """A camera that has them in its picture for all of the time, and the creatures, moved to where it looks."""
    first = creatures[0]
    gaits = [bodies[item.file].gaits[item.action] for item in creatures]
    size = max(max(_size(bodies[item.file]), 1.5 * gait.reach) for item, gait in zip(creatures, gaits, strict=True))
    length = first.speed * SECONDS
    apart = math.hypot(creatures[-1].x - first.x, creatures[-1].z - first.z)
    draw = rng.random()
    if first.speed:
        follow = draw < (0.25 if length + apart < 1.7 * size else 0.65 if length + apart < 2.7 * size else 0.95)
        circling = rng.choice((-1, 1)) * rng.uniform(0.3, 0.6) if rng.random() < (0.3 if follow else 0.12) else 0.0
        approach = 0.0
    else:
        follow = False
        circling = rng.choice((-1, 1)) * rng.uniform(0.3, 0.75) if draw < 0.3 else 0.0
        approach = rng.choice((0.22, 0.22, -0.3)) if 0.3 <= draw < 0.5 else 0.0
    high = max(item.y + gait.top for item, gait in zip(creatures, gaits, strict=True))
    low = min(item.y for item in creatures)
    gone = 0.0 if follow else length
    off = first.heading - azimuth
    size *= 1.0 if circling or first.turn else 0.6 + 0.4 * abs(math.sin(off))  # shorter from the front
    reach = max((size + apart + gone * abs(math.sin(off))) / 2, (high - low) / 2)
    distance = FOCAL * reach / rng.triangular(0.5, 1.0, 0.85) + size * 0.25 + gone * abs(math.cos(off)) * 0.7
    distance *= {True: 1 / (1 - approach * SECONDS), False: 1.0}[approach > 0]
    elevation = rng.choices((rng.uniform(0.04, 0.14), rng.uniform(0.14, 0.4), rng.uniform(0.55, 0.95)), (25, 60, 15))[0]
    # The way's middle, of both creatures, lies at the origin.
    middle_x, middle_z = (sum(getattr(item, axis) for item in creatures) / len(creatures) for axis in "xz")
    half_x, half_z = (value / 2 for value in way(replace(first, x=0.0, z=0.0), 0.0 if follow else SECONDS))
    creatures = tuple(replace(item, x=item.x - middle_x - half_x, z=item.z - middle_z - half_z) for item in creatures)
    return Camera(azimuth, elevation, distance, 0.0, (high + low) / 2, 0.0, circling, approach, follow), creatures


def way(item: Item, seconds: float) -> tuple[float, float]:
    """Where an item is on the ground, x and z, after so many seconds."""
    half = item.turn * seconds / 2
    gone = item.speed * seconds * (math.sin(half) / half if half else 1.0)
    return item.x + gone * math.sin(item.heading + half), item.z + gone * math.cos(item.heading + half)


def seen(scene: Scene, x: float, y: float, z: float, seconds: float) -> tuple[float, float, float]:
    """A place in the picture: to the right and up, from -1 to 1 within it, and its depth in metres (render.py's `project`)."""
    camera, first = scene.camera, scene.creatures[0]
    now_x, now_z = way(first, seconds) if camera.follow else (first.x, first.z)
    azimuth, distance = camera.azimuth + camera.circling * seconds, camera.distance * (1 - camera.approach * seconds)
    sin, cos, rise, level = math.sin(azimuth), math.cos(azimuth), math.sin(camera.elevation), math.cos(camera.elevation)
    x, y, z = x - camera.look_x - now_x + first.x, y - camera.look_y, z - camera.look_z - now_z + first.z
    along = x * sin + z * cos
    depth = distance - along * level - y * rise
    near = FOCAL / depth if depth > 0 else math.inf
    return (x * cos - z * sin) * near, (y * level - along * rise) * near, depth


def _scenery(rng: random.Random, bodies: Mapping[str, Body], scene: Scene) -> tuple[Item, ...]:
    """Plants of the place behind and beside the creatures, never between them and the camera."""
    patterns = GROWING.get(scene.place, ())
    camera = scene.camera
    scale = min(2.5, max(0.3, camera.distance / 7))
    items: list[Item] = []
    count = rng.choice((0, 1, 2, 3)) + (3 if scene.place in ("forest", "leaves") else 0)
    for _ in range(count if patterns and SUBJECTS[scene.creatures[0].file].kind != "plant" else 0):
        pattern = rng.choice(patterns)
        files = [file for file in bodies if re.match(f"nature_pack/{pattern}", file)]
        if not files:
            continue
        file = rng.choice(files)
        body = bodies[file]
        small = body.high < 1
        for _ in range(8):
            seconds = rng.uniform(0, SECONDS)
            depth = camera.distance * (rng.uniform(0.9, 2.0) if small else rng.uniform(1.5, 4.0))
            aside = rng.uniform(-1.0, 1.0) * depth / FOCAL
            at = camera.azimuth + camera.circling * seconds
            now = way(scene.creatures[0], seconds if camera.follow else 0.0)
            back = camera.distance * math.cos(camera.elevation) - depth
            x = (now[0] - scene.creatures[0].x) + back * math.sin(at) + aside * math.cos(at)
            z = (now[1] - scene.creatures[0].z) + back * math.cos(at) - aside * math.sin(at)
            item = Item(file, x=x, z=z, heading=rng.uniform(-math.pi, math.pi), scale=scale * rng.uniform(0.8, 1.2))
            if _clear(scene, bodies, item) and all(math.hypot(x - one.x, z - one.z) > 0.3 * camera.distance for one in items):
                items.append(item)
                break
    return tuple(items)


def shows(scene: Scene, plant: Item) -> bool:
    """Whether a plant is behind the creatures and well in the picture, at first or at last."""
    for seconds in (0.0, SECONDS):
        across, up, depth = seen(scene, plant.x, SUBJECTS[plant.file].metres * plant.scale / 3, plant.z, seconds)
        if depth > scene.camera.distance and abs(across) < 0.85 and abs(up) < 0.95:
            return True
    return False


def _clear(scene: Scene, bodies: Mapping[str, Body], plant: Item) -> bool:
    """Whether a plant stands neither in a creature's way nor between it and the camera."""
    body = bodies[plant.file]
    radius = 0.6 * max(body.wide, body.long) * plant.scale
    for step in range(7):
        seconds = SECONDS * 1.1 * step / 6
        across, _, depth = seen(scene, plant.x, 0.0, plant.z, seconds)
        for item in scene.creatures:
            x, z = way(item, seconds)
            here, _, far = seen(scene, x, 0.0, z, seconds)
            size = 0.6 * _size(bodies[item.file])
            apart = math.hypot(plant.x - x, plant.z - z) > radius + size
            beside = abs(across * depth / FOCAL - here * far / FOCAL) > radius + size
            if not apart or (depth < far + size and depth > 0 and not beside):
                return False
        if 0 < depth < 0.6 * scene.camera.distance:
            return False
    return True
