"""The fixed, versioned prompts of the shapes benchmark: sentences, the scenes that they tell, and what is checked of each.

Text to image after GenEval's categories, text to video after VBench's dimensions, image to video; every class half of
(colour, shape) pairs that training shows and half of held-out ones, half in the plainest wording and half in varied ones.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lumos.evaluation.judge.judge import ATTRIBUTES
from lumos.worlds.shapes.captions import canonical_caption, caption
from lumos.worlds.shapes.motion import DIAGONAL, DIRECTIONS, STRAIGHT
from lumos.worlds.shapes.palette import COLOURS
from lumos.worlds.shapes.scene import (
    HELD_OUT_PAIRS,
    SEEN_PAIRS,
    Background,
    Scene,
    freeze,
    from_json,
    sample_count,
    sample_occlusion,
    sample_one,
    sample_three,
    sample_two,
    to_json,
)
from lumos.worlds.shapes.thing import SPINNERS

VERSION = 2  # of the prompts and the judge: scores of different versions must not be compared
SPLITS = ("seen", "held-out")
ONE_KIND_EACH = ("still", "circling", "bouncing", "growing", "shrinking", "spinning", "fading in", "fading out", "blinking")
TOLD = ("left", "right", "up", "down", "circling", "bouncing", "blinking", "fading out")  # of the same image
ADVERBS = ("slowly", "gently", "quickly", "fast", "rapidly")
Task = Literal["text to image", "text to video", "image to video"]
# Each class with the attributes of the judge that must all be right.
Checks = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Prompt:
    """One sentence of the benchmark. `given` is the scene whose first frame is the image to start from."""

    id: str
    task: Task
    split: str
    text: str
    scene: Scene
    checks: Checks
    given: Scene | None = None

    @property
    def frames(self) -> int:
        return 1 if self.task == "text to image" else 17


def benchmark() -> list[Prompt]:
    """All 608 prompts, always the same."""
    prompts: list[Prompt] = []
    for split in SPLITS:
        prompts += _images(split) + _videos(split) + _continued(split)
    return prompts


def smaller(prompts: Sequence[Prompt], part: int = 6) -> list[Prompt]:
    """Every sixth prompt of each class and split, and of image to video those that share an image."""
    seen: dict[tuple[str, ...], int] = {}
    kept = []
    for prompt in prompts:
        key = (prompt.split, prompt.task, *prompt.checks)
        number = seen[key] = seen.get(key, -1) + 1
        if number % part == 0 if prompt.given is None else number < len(TOLD):
            kept.append(prompt)
    return kept


def one_object(count: int = 64) -> list[Prompt]:
    """Held-out (colour, shape) pairs moving in each of the eight directions: for colour and direction alone."""
    prompts = []
    for i in range(count):
        rng = _rng("one object moving", "held-out", i)
        scene = sample_one(rng, motion=tuple(DIRECTIONS)[i % 8], pair=HELD_OUT_PAIRS[(i + i // 8) % len(HELD_OUT_PAIRS)])
        checks: Checks = {"colour": ("colour",), "direction": ("direction",)}
        prompts.append(Prompt(f"one-{i:02d}", "text to video", "held-out", canonical_caption(scene), scene, checks))
    return prompts


def to_lines(prompts: Sequence[Prompt]) -> str:
    """One line of JSON a prompt."""
    lines = []
    for prompt in prompts:
        values = {
            "id": prompt.id,
            "task": prompt.task,
            "split": prompt.split,
            "text": prompt.text,
            "checks": prompt.checks,
            "scene": json.loads(to_json(prompt.scene)),
        }
        if prompt.given is not None:
            values["given"] = json.loads(to_json(prompt.given))
        lines.append(json.dumps(values) + "\n")
    return "".join(lines)


def digest_of(prompts: Sequence[Prompt]) -> str:
    """Changes when any prompt does."""
    return hashlib.sha256(to_lines(prompts).encode()).hexdigest()[:16]


def prompts_in(path: Path) -> list[Prompt]:
    """Prompts in the form of `to_lines`. ValueError naming file, line and rule for anything else, and for none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be a text file with one JSON document a line, got other bytes; give a .jsonl file"
        ) from error
    prompts = [_prompt(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise ValueError(f"{path} must hold at least one prompt, one a line, got none; write one")
    ids = [prompt.id for prompt in prompts]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ValueError(f"ids in {path} must differ, got {twice[0]!r} twice; rename one")
    return prompts


def _prompt(line: str, where: str) -> Prompt:
    try:
        values: dict[str, Any] = json.loads(line)
        checks = {str(name): tuple(attributes) for name, attributes in values["checks"].items()}
        given = from_json(json.dumps(values["given"])) if "given" in values else None
        scene = from_json(json.dumps(values["scene"]))
        prompt = Prompt(values["id"], values["task"], values["split"], values["text"], scene, checks, given)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        form = "id, task, split, text, checks, scene"
        raise ValueError(f"{where} must be a JSON document with {form}, got {line[:60]!r} ({error}); mend the line") from None
    unknown = sorted(set().union(*checks.values()) - set(ATTRIBUTES))
    if unknown or not checks:
        raise ValueError(f"{where}: checks must name attributes ({', '.join(ATTRIBUTES)}), got {unknown}; correct them")
    if prompt.task not in ("text to image", "text to video", "image to video") or (prompt.task == "image to video") != (
        given is not None
    ):
        raise ValueError(f"{where}: only an image to video prompt has a given scene, got task {prompt.task!r}; correct it")
    if not (isinstance(prompt.id, str) and prompt.id.replace("-", "").isalnum() and str(prompt.text).strip()):
        raise ValueError(
            f"{where}: an id has letters, digits and -, a text has words, got {prompt.id!r} and {prompt.text!r}; correct it"
        )
    return prompt


def _rng(kind: str, split: str, number: int) -> random.Random:
    return random.Random(f"lumos shapes benchmark 1, {kind}, {split}, {number}")  # version 2 kept the prompts


def _images(split: str) -> list[Prompt]:
    """180 a split: six classes of 30."""
    held = split == "held-out"
    pairs = HELD_OUT_PAIRS if held else SEEN_PAIRS
    coloured = [[pair for pair in pairs if pair[0] == colour] for colour in COLOURS]
    relations = ("left of", "right of", "above", "below")

    def of_colour(rng: random.Random, i: int) -> Scene:
        choice = coloured[i % len(coloured)] or list(pairs)
        return sample_one(rng, motion="still", pair=rng.choice(choice))

    def bound(rng: random.Random, i: int) -> Scene:
        while True:
            scene = sample_two(rng, relation="none", held_out=held)
            if scene.things[0].shape != scene.things[1].shape:
                return scene

    classes: list[tuple[str, tuple[str, ...], Callable[[random.Random, int], Scene]]] = [
        ("one object", ("count", "colour", "shape"), lambda rng, i: sample_one(rng, motion="still", held_out=held)),
        ("two objects", ("count", "shape"), lambda rng, i: sample_two(rng, relation="none", held_out=held)),
        ("counting", ("count", "shape"), lambda rng, i: sample_count(rng, count=2 + i % 2, motion="still", held_out=held)),
        ("colour", ("colour",), of_colour),
        ("position", ("shape", "position"), lambda rng, i: sample_two(rng, relation=relations[i % 4], held_out=held)),
        ("colour binding", ("count", "binding"), bound),
    ]
    prompts = []
    for name, attributes, draw in classes:
        for i in range(30):
            rng = _rng(name, split, i)
            scene = freeze(draw(rng, i))
            text = caption(scene, rng, image=True) if i % 2 else canonical_caption(scene, image=True)
            prompts.append(Prompt(_id(name, split, i), "text to image", split, text, scene, {name: attributes}))
    return prompts


def _videos(split: str) -> list[Prompt]:
    """100 a split."""
    held = split == "held-out"
    prompts = []

    def add(name: str, i: int, scene: Scene, text: str, checks: Checks) -> None:
        prompts.append(Prompt(_id(name, split, i), "text to video", split, text, scene, checks))

    for i in range(24):
        rng = _rng("direction", split, i)
        scene = sample_one(rng, motion=(*STRAIGHT, *DIAGONAL)[i % 8], held_out=held)
        add("direction", i, scene, _text(scene, rng, i), {"motion direction": ("direction",)})
    for i in range(22):
        rng = _rng("kind", split, i)
        scene = sample_one(rng, motion=ONE_KIND_EACH[i % 9], held_out=held)
        text = canonical_caption(scene) + " stays still" if scene.things[0].motion == "still" else _text(scene, rng, i // 9)
        add("kind", i, scene, text, {"motion kind": ("motion",)})
    for i in range(18):
        rng = _rng("speed", split, i)
        motion = (*STRAIGHT, "circling", "bouncing", "growing", "shrinking", "fading out")[i % 9]
        scene = sample_one(rng, motion=motion, speed=("slowly", "quickly")[i // 9], held_out=held)
        plain = f"{canonical_caption(scene)} {scene.things[0].speed}"
        text = _varied(scene, rng, ADVERBS) if i % 2 else plain
        add("speed", i, scene, text, {"speed": ("motion", "speed")})
    for i in range(12):
        rng = _rng("permanence", split, i)
        scene = _lasting(rng, held, i)
        checks: Checks = {"object permanence": ("count", "permanence"), "wholeness": ("wholeness",)}
        add("permanence", i, scene, _text(scene, rng, i), checks)
    for i in range(12):
        rng = _rng("occlusion", split, i)
        scene = sample_occlusion(rng, relation=("in front of", "behind")[i // 2 % 2], passing=True, held_out=held)
        add("occlusion", i, scene, _text(scene, rng, i), {"occlusion": ("count", "occlusion")})
    for i in range(12):
        rng = _rng("background", split, i)
        scene = sample_one(rng, held_out=held)
        ground = scene.background.colour
        scene = replace(scene, background=Background(ground))
        plain = f"{canonical_caption(scene)} on {'an' if ground[0] in 'aeio' else 'a'} {ground} background"
        text = _varied(scene, rng, ("background", "backdrop")) if i % 2 else plain
        add("background", i, scene, text, {"background steadiness": ("background", "steadiness"), "flicker": ("flicker",)})
    return prompts


def _lasting(rng: random.Random, held: bool, i: int) -> Scene:
    """Two or three things, none of which fades or blinks."""
    while True:
        scene = sample_three(rng, held_out=held) if i % 3 == 2 else sample_two(rng, relation="none", held_out=held)
        if not any(thing.motion in ("fading in", "fading out", "blinking") for thing in scene.things):
            return scene


def _continued(split: str) -> list[Prompt]:
    """Image to video, 24 a split: three images, each with eight motions, so that they make one batch."""
    prompts = []
    pairs = [pair for pair in (HELD_OUT_PAIRS if split == "held-out" else SEEN_PAIRS) if pair[1] in SPINNERS]
    for image, pair in enumerate(_rng("images", split, 0).sample(pairs, 3)):
        rng = _rng("image", split, image)
        start = freeze(sample_one(rng, motion="still", pair=pair))
        thing = replace(start.things[0], x=round(rng.uniform(0.42, 0.58), 3), y=round(rng.uniform(0.42, 0.58), 3), size="medium")
        start = replace(start, things=(replace(thing, texture="plain"),))
        for i, motion in enumerate(TOLD):
            told = replace(start, things=(replace(start.things[0], motion=motion, reach=0.3),))
            checks: Checks = {
                "keeps the image": ("count", "colour", "shape", "background"),
                "moves as told": ("motion", "direction"),
            }
            name = _id("image-to-video", split, image * len(TOLD) + i)
            prompts.append(Prompt(name, "image to video", split, canonical_caption(told), told, checks, given=start))
    return prompts


def _text(scene: Scene, rng: random.Random, i: int) -> str:
    return caption(scene, rng) if i % 2 else canonical_caption(scene)


def _varied(scene: Scene, rng: random.Random, words: tuple[str, ...]) -> str:
    """A varied caption that has one of the words."""
    while True:
        text = caption(scene, rng)
        if any(word in text for word in words):
            return text


def _id(name: str, split: str, i: int) -> str:
    return f"{name.replace(' ', '-')}-{split.replace('-', '')}-{i:02d}"
