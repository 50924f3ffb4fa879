"""Prompts of the shapes benchmark: sentences, the scenes that they tell, and what is checked of each.

The benchmark's own are prompts.jsonl beside this file: text to image after GenEval's categories, text to video after VBench's
dimensions, image to video; every class half of (colour, shape) pairs that training shows and half of held-out ones, half in
the plainest wording and half in varied ones. Users' own prompts have the same form.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from lumos.config import read_config, read_object
from lumos.evaluation.judge.judge import ATTRIBUTES
from lumos.files import text_of
from lumos.worlds.shapes.captions import canonical_caption
from lumos.worlds.shapes.motion import DIRECTIONS
from lumos.worlds.shapes.scene import HELD_OUT_PAIRS, Scene, sample_one

VERSION = 2  # of the prompts and the judge: scores of different versions must not be compared
BENCHMARK = Path(__file__).with_name("prompts.jsonl")
Task = Literal["text to image", "text to video", "image to video"]


@dataclass(frozen=True)
class Prompt:
    """One sentence and what it promises."""

    id: str
    task: Task
    split: str  # "seen" or "held-out" (colour, shape) pairs
    text: str
    # each class with the attributes of the judge that must all be right
    checks: Mapping[str, tuple[Annotated[str, Literal[tuple(ATTRIBUTES)]], ...]]
    scene: Scene
    given: Scene | None = field(default=None, metadata={"later": True})  # its first frame is the image to start from

    @property
    def frames(self) -> int:
        return 1 if self.task == "text to image" else 17


def benchmark() -> list[Prompt]:
    """All 608 prompts, always the same."""
    return prompts_in(BENCHMARK)


def smaller(prompts: Sequence[Prompt], part: int = 6) -> list[Prompt]:
    """Every sixth prompt of each class and split, and of image to video the eight that share the first image."""
    seen: dict[tuple[str, ...], int] = {}
    kept = []
    for prompt in prompts:
        key = (prompt.split, prompt.task, *prompt.checks)
        number = seen[key] = seen.get(key, -1) + 1
        if number % part == 0 if prompt.given is None else number < 8:
            kept.append(prompt)
    return kept


def one_object(count: int = 64) -> list[Prompt]:
    """Held-out (colour, shape) pairs moving in each of the eight directions: for colour and direction alone."""
    prompts = []
    for i in range(count):
        rng = random.Random(f"lumos shapes benchmark 1, one object moving, held-out, {i}")
        scene = sample_one(rng, motion=tuple(DIRECTIONS)[i % 8], pair=HELD_OUT_PAIRS[(i + i // 8) % len(HELD_OUT_PAIRS)])
        checks = {"colour": ("colour",), "direction": ("direction",)}
        prompts.append(Prompt(f"one-{i:02d}", "text to video", "held-out", canonical_caption(scene), checks, scene))
    return prompts


def to_lines(prompts: Sequence[Prompt]) -> str:
    """One line of JSON per prompt."""
    documents = ({name: value for name, value in asdict(prompt).items() if value is not None} for prompt in prompts)
    return "".join(json.dumps(document) + "\n" for document in documents)


def prompts_in(path: Path) -> list[Prompt]:
    """Prompts in the form of `to_lines`. ValueError naming file, line and rule for anything else, and for none."""
    lines = text_of(path).splitlines()
    prompts = [_prompt(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    ids = [prompt.id for prompt in prompts]
    if not ids:
        raise ValueError(f"{path} must hold at least one prompt, one per line, got none")
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(f"ids in {path} must differ, got {twice[0]!r} twice; rename one")
    return prompts


def _prompt(line: str, where: str) -> Prompt:
    prompt = read_config(Prompt, read_object(line, where), where)
    if not prompt.checks or (prompt.task == "image to video") != (prompt.given is not None):
        raise ValueError(f"{where}: a prompt has checks, one of image to video, and no other, a given scene, got {line[:60]!r}")
    if not (prompt.id.replace("-", "").isalnum() and prompt.text.strip()):
        raise ValueError(f"{where}: an id has letters, digits and -, a text has words, got {prompt.id!r} and {prompt.text!r}")
    for scene in filter(None, (prompt.scene, prompt.given)):
        count, ground = len(scene.things), scene.background
        if not 1 <= count <= 3 or (scene.relation != "none" and count != 2):
            raise ValueError(f"{where}: a scene has 1 to 3 things, 2 when they are in a relation, got {count}")
        if ground.gradient != "plain" and not ground.other:
            raise ValueError(f"{where}: a gradient has two colours, got {ground.colour} alone")
    return prompt
