"""The fixed prompts by which models of the three worlds are judged, written to worlds_prompts.jsonl beside this file.

    python -m research.worlds_prompts --stickers emoji/stickers.jsonl --creatures creatures.zip

Each line is a prompt, its list, and what must be seen. Drawn with fixed seeds before any such model was looked at; those of
stickers in words that no caption has are in worlds_own_words.txt. A creature prompt's scene can be drawn again by its number.
"""

import argparse
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from lumos.worlds.creatures.captions import caption, direction
from lumos.worlds.creatures.library import Body, load_library
from lumos.worlds.creatures.scene import Scene, sample_scene
from lumos.worlds.creatures.subjects import SUBJECTS
from lumos.worlds.english import Plainest, article, third_person
from lumos.worlds.shapes.captions import MOTION_VERBS, TAILS
from lumos.worlds.shapes.motion import DIRECTIONS
from lumos.worlds.stickers.scene import is_kept_back

HERE = Path(__file__).parent
PROMPTS, OWN_WORDS = HERE / "worlds_prompts.jsonl", HERE / "worlds_own_words.txt"
SEED = 20261126
BY_NAME, IN_OTHER_WORDS, CREATURES = "stickers, by name", "stickers, in other words", "creatures"
SEEN_MOTIONS, UNSEEN_MOTIONS = "stickers, seen motions", "stickers, held-out motions"
UNSEEN_CREATURES = "creatures, held-out pairs"
COUNTS = {BY_NAME: 200, SEEN_MOTIONS: 100, UNSEEN_MOTIONS: 100, CREATURES: 200, UNSEEN_CREATURES: 100}


@dataclass(frozen=True)
class Asked:
    """One prompt and what it asks for; "" for what it does not say."""

    list: str
    text: str
    subject: str  # a sticker's noun, or a creature's name
    motion: str = ""  # of a sticker
    action: str = ""  # of a creature
    way: str = ""  # of a creature: left, right, nearer, farther
    number: int = -1  # of a creature's scene

    @property
    def world(self) -> str:
        return self.list.partition(",")[0]


def read_prompts() -> list[Asked]:
    return [Asked(**json.loads(line)) for line in PROMPTS.read_text("utf-8").splitlines()]


def scene_of(asked: Asked, bodies: dict[str, Body]) -> Scene:
    """The scene of a creature prompt, which training never draws."""
    return sample_scene(bodies, SEED, asked.number, unseen=asked.list == UNSEEN_CREATURES)


def plain_caption(noun: str, motion: str) -> str:
    """What people type: "an octopus moves to the left"."""
    verb = f"move {TAILS[motion][0]}" if motion in TAILS else MOTION_VERBS[motion][0]
    return f"{article(noun)} {third_person(verb)}"


def draw_prompts(nouns: list[str], bodies: dict[str, Body]) -> list[Asked]:
    """All lists. nouns: of animated stickers, each once."""
    rng = random.Random(SEED)
    found = [Asked(BY_NAME, article(noun), noun) for noun in rng.sample(nouns, COUNTS[BY_NAME])]
    own = (line.split(" | ") for line in OWN_WORDS.read_text("utf-8").splitlines())
    found += [Asked(IN_OTHER_WORDS, text, noun) for text, noun in own]
    for name in (SEEN_MOTIONS, UNSEEN_MOTIONS):
        pairs = [(noun, motion) for noun in nouns for motion in (*DIRECTIONS, "growing", "shrinking")]
        kept = [pair for pair in pairs if is_kept_back(*pair) == (name == UNSEEN_MOTIONS)]
        found += [Asked(name, plain_caption(*pair), *pair) for pair in rng.sample(kept, COUNTS[name])]
    for name in (CREATURES, UNSEEN_CREATURES):
        number, wanted = 0, len(found) + COUNTS[name]
        while len(found) < wanted:
            scene = scene_of(Asked(name, "", "", number=number), bodies)
            (item, *others), number = scene.creatures, number + 1
            if not others and SUBJECTS[item.file].kind != "plant":
                told = SUBJECTS[item.file].name, "", item.action, direction(scene, item), number - 1
                found.append(Asked(name, caption(scene, Plainest()), *told))
    return found


def is_animated(path: Path) -> bool:
    if path.suffix == ".json":
        return True
    with Image.open(path) as image:
        return getattr(image, "n_frames", 1) > 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stickers", type=Path, required=True, help="manifest of the stickers")
    parser.add_argument("--creatures", type=Path, required=True, help="folder or zip of GLB files")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.stickers.read_text("utf-8").splitlines()]
    nouns = sorted({row["noun"] for row in rows if row["noun"] and is_animated(Path(row["path"]))})
    prompts = draw_prompts(nouns, load_library(args.creatures).bodies)
    PROMPTS.write_text("".join(json.dumps(asdict(asked)) + "\n" for asked in prompts), "utf-8")
    print(f"{len(prompts)} prompts in {PROMPTS}")


if __name__ == "__main__":
    main()
