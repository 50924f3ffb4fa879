"""Scenes in words: many wordings, each true of what is seen. Directions come from the way in the picture, not in the world.

`caption` draws one at random and may leave out place, time, direction, camera and plants; with `Plainest` in place of chance it
is the plainest: who, what, which way, where. Lowercase English.
"""

import math
import random
from collections.abc import Callable

import numpy as np

from lumos.worlds.creatures.scene import FIGHTING, SECONDS, Item, Scene, seen, shows, way
from lumos.worlds.creatures.subjects import ACTIONS, SUBJECTS
from lumos.worlds.english import article, gerund, plural, third_person

PLACE_WORDS = {
    "grass": ("on grass", "on the grass", "in a meadow", "in a green field", "on a lawn"),
    "snow": ("in the snow", "in snow", "on snow", "in a snowy field", "in winter"),
    "sand": ("on sand", "on the sand", "in the desert", "on yellow sand"),
    "forest": ("in a forest", "in the forest", "in the woods", "on the forest floor"),
    "leaves": ("in an autumn forest", "on fallen leaves", "in the autumn woods", "in autumn"),
    "rock": ("on rock", "on rocky ground", "on gray stone", "on bare rock"),
    "tiles": ("on tiles", "on a tiled floor", "on a checkered floor"),
    "water": ("under water", "underwater", "in the sea", "in the ocean", "above the sea floor"),
}
LEAF_WORDS = ("on fallen leaves", "on orange leaves")  # where no tree of the autumn forest is seen
TIME_WORDS = {
    "day": ("by day", "during the day", "in daylight"),
    "dusk": ("at dusk", "at sunset", "in the evening"),
    "night": ("at night", "at night", "in the dark", "by moonlight"),
}
# Some say it otherwise: by the subject's name.
OWN_VERBS = {
    **{("walk", name): ("slither", "slither", "crawl") for name in ("snake", "angry snake")},
    ("walk", "spider"): ("walk", "crawl"),
    ("walk", "crab"): ("walk", "scuttle"),
    ("walk", "skull"): ("hop along", "bounce along"),
    ("walk", "flying robot"): ("fly", "hover along"),
    ("run", "flying robot"): ("fly fast", "fly"),
    ("stand", "flying robot"): ("hover in place", "hover"),
    **{("float", name): ("hover in place", "hover", "fly in place") for name in ("bee", "wasp")},
    **{("run", name): ("gallop", "run", "gallop") for name in ("horse", "white horse", "donkey", "cow", "bull", "deer", "stag")},
}
WAYS = {
    "left": ("to the left", "left", "towards the left", "from right to left"),
    "right": ("to the right", "right", "towards the right", "from left to right"),
    "nearer": ("towards the camera", "towards us", "closer"),
    "farther": ("away from the camera", "away from us", "away"),
}
FACINGS = {"left": "facing left", "right": "facing right", "nearer": "seen from the front", "farther": "seen from behind"}
CAMERA_WORDS = {
    "still": ("the camera is still", "static camera"),
    "circling": ("the camera circles around", "the camera circles", "the camera orbits"),
    "follow": ("the camera follows", "the camera moves along", "followed by the camera"),
    "approach": ("the camera moves closer", "the camera comes closer"),
    "retreat": ("the camera moves away", "the camera backs away"),
}
OPENINGS = ("there is", "we see", "a video of", "a short clip of", "an animation of", "a scene with")
VERB_FORMS: dict[str, Callable[[str], str]] = {"": str, "s": third_person, "ing": gerund}
IMAGE_OPENINGS = ("there is", "we see", "a picture of", "an image of", "a scene with")


def direction(scene: Scene, item: Item) -> str:
    """Which way someone goes in the picture: "left", "right", "nearer", "farther", or "" if it cannot be said.

    With a camera that goes along, it is left or right if that is where it looks all the time: the ground goes the other way.
    """
    if not item.speed:
        return ""
    if scene.camera.follow:
        told = facing(scene, item)
        return told if told in ("left", "right") else ""
    seconds = np.linspace(0, SECONDS, 5)
    across, _, depth = seen(scene, *way(item, seconds), seconds)
    for name, back, going, least in (("right", "left", across, 0.3), ("nearer", "farther", -depth, 0.3 * depth[0])):
        change = going[-1] - going[0]
        if abs(change) > least and (np.diff(going) * change > 0).all():
            return name if change > 0 else back
    return ""


def facing(scene: Scene, item: Item) -> str:
    """Which way someone looks in the picture all the time: "left", "right", "nearer" (at the camera), "farther", or ""."""
    camera, seconds = scene.camera, np.array([0, SECONDS / 2, SECONDS])
    angles = item.heading - camera.azimuth + (item.turn - camera.circling) * seconds
    for name, turn in (("right", math.pi / 2), ("left", -math.pi / 2), ("nearer", 0.0), ("farther", math.pi)):
        if (np.cos(angles - turn) > 0.8).all():
            return name
    return ""


def caption(scene: Scene, rng: random.Random, image: bool = False) -> str:
    """One of many true captions; image: of the first frame alone, without what is done."""
    opening = rng.choice(IMAGE_OPENINGS if image else OPENINGS) if rng.random() < 0.3 else ""
    body = _who(scene, rng)[0] if image else _who_does_what(scene, rng, gerund=bool(opening))
    if opening == "there is" and body.startswith("two "):
        opening = "there are"
    alone = scene.place == "leaves" and not any(shows(scene, plant) for plant in scene.scenery)
    where = "" if rng.random() < 0.2 else _pick(rng, LEAF_WORDS if alone else PLACE_WORDS[scene.place])
    unsaid = rng.random() < 0.25 if scene.time != "day" else rng.random() >= 0.12
    circumstances = [words for words in (where, "" if unsaid else _pick(rng, TIME_WORDS[scene.time])) if words]
    if rng.random() < 0.2:
        circumstances.reverse()
    details = _details(scene, rng, image)
    if circumstances and not opening and rng.random() < 0.12:
        text = f"{circumstances[0]}, " + " ".join([body, *circumstances[1:]])
    else:
        text = " ".join([*([opening] if opening else []), body, *circumstances])
    return ", ".join([text, *details])


def _pick(rng: random.Random, words: tuple[str, ...]) -> str:
    return rng.choice((words[0], *words))


def _who(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """All together, and each with its article."""
    first, last = (SUBJECTS[item.file] for item in (scene.creatures[0], scene.creatures[-1]))
    one = _pick(rng, first.words)
    if len(scene.creatures) == 1:
        return article(one), article(one), ""
    if first.name == last.name:
        return f"two {plural(one)}", article(one), f"another {one}"
    other = article(_pick(rng, last.words))
    return f"{article(one)} and {other}", article(one), other


def _who_does_what(scene: Scene, rng: random.Random, gerund: bool) -> str:
    first, last = scene.creatures[0], scene.creatures[-1]
    together, one, other = _who(scene, rng)
    if not other:
        return f"{one} {_does(scene, first, rng, 'ing' if gerund else 's')}"
    form = "ing" if gerund else ""
    faced = facing(scene, first) == "right" and facing(scene, last) == "left"
    if faced and first.action in FIGHTING and last.action in FIGHTING:
        return f"{together} {VERB_FORMS[form](_pick(rng, ('fight', 'fight each other')))}"
    x, z = last.x - first.x, last.z - first.z
    is_behind = first.speed > 0 and x * math.sin(first.heading) + z * math.cos(first.heading) < -0.8 * math.hypot(x, z)
    if rng.random() < 0.6 and is_behind:
        verb = rng.choice(("chase", "follow", "go after"))
        chaser, chased = (one, other) if other.startswith("another") else (other, one)
        return f"{chaser} {VERB_FORMS[form or 's'](verb)} {chased}"
    if first.action == last.action:
        return f"{together} {_does(scene, first, rng, form)}"
    both = [_does(scene, item, rng, form or "s") for item in (first, last)]
    return f"{one} {both[0]} and {other} {both[1]}"


def _does(scene: Scene, item: Item, rng: random.Random, form: str) -> str:
    """The verb in a form ("s", "ing" or plain), and which way."""
    verbs = OWN_VERBS.get((item.action, SUBJECTS[item.file].name), ACTIONS[item.action].verbs)
    verb = VERB_FORMS[form](_pick(rng, verbs))
    if item.speed:
        ways = {direction(scene, one) for one in scene.creatures}  # all go the same way
        told = ways.pop() if len(ways) == 1 else ""
        if told and rng.random() >= 0.15:
            return f"{verb} {_pick(rng, WAYS[told][: 3 if scene.camera.follow else None])}"
    return verb


def _details(scene: Scene, rng: random.Random, image: bool) -> list[str]:
    """What may be added: the side from which the camera looks, what it does, and the plants that are seen."""
    camera, first = scene.camera, scene.creatures[0]
    side = facing(scene, first) if len(scene.creatures) == 1 else ""
    told = []
    if camera.elevation > 0.5 and rng.random() < 0.5:
        told.append("seen from above")
    elif side and (image or not first.speed) and SUBJECTS[first.file].kind != "plant" and rng.random() < 0.35:
        told.append(FACINGS[side])
    does = "circling" if camera.circling else "follow" if camera.follow else "still"
    if camera.approach:
        does = "approach" if camera.approach > 0 else "retreat"
    if not image and rng.random() < (0.08 if does == "still" else 0.6):
        told.append(rng.choice(CAMERA_WORDS[does]))
    names = [SUBJECTS[item.file].name for item in scene.scenery if shows(scene, item)]
    if names and rng.random() < 0.3:
        plants = [plural(name) if names.count(name) > 1 else article(name) for name in sorted(set(names))]
        told.append("with " + " and ".join(plants[:2]) + " in the background")
    return told
