"""Scenes of stickers in words: many wordings, each true of its scene. Lowercase English.

What a sticker does by itself is said only by its own captions, of it alone; a placed one is named and its motion told.
"""

import random
from collections.abc import Sequence

from lumos.worlds.english import article, gerund, listed, plural, third_person
from lumos.worlds.shapes.captions import COUNTS, MOTION_VERBS, TAILS, WORDS
from lumos.worlds.stickers.scene import WHITE, PlacedSticker, Scene, Sticker

JUMPS = ("jump", "jump up and down", "hop", "bounce", "bounce up and down")
WHITE_GROUND = "on a white background"  # what some of a sticker's own captions say
FLIES = ("fly up", "rise", "move up", "go up", "fly upward", "move upwards")


def caption(scene: Scene, stickers: Sequence[Sticker], rng: random.Random, image: bool = False) -> str:
    """One of many true captions. image: of the first frame alone."""
    first = scene.things[0]
    if first.size == "full":
        white = scene.ground.colour == WHITE
        words = rng.choice([words for words in stickers[first.sticker].captions if white or WHITE_GROUND not in words])
        return words if white else _on_ground(words, scene, rng, 0.7)
    if len(scene.things) == 1:
        return _on_ground(_one(first, stickers, rng, image), scene, rng, 0.5)
    if len({thing.sticker for thing in scene.things}) == 1:
        return _on_ground(_alike(scene, stickers, rng, image), scene, rng, 0.4)
    nouns = [article(_noun(thing, stickers, rng, 0.25)) for thing in scene.things]
    if image:
        return _on_ground(listed(nouns), scene, rng, 0.4)
    moves = [third_person(_move(thing, rng)) if thing.motion != "still" else "" for thing in scene.things]
    if not any(moves):
        return _on_ground(listed(nouns), scene, rng, 0.4)
    if all(moves):
        told = rng.choice((" and ", " while ", ", ")).join(f"{noun} {move}" for noun, move in zip(nouns, moves, strict=True))
        return _on_ground(told, scene, rng, 0.3)
    mover = next(i for i, move in enumerate(moves) if move)
    name = stickers[scene.things[mover].sticker].noun
    return _on_ground(f"{listed(nouns)}, the {name} {moves[mover]}", scene, rng, 0.3)


def _one(thing: PlacedSticker, stickers: Sequence[Sticker], rng: random.Random, image: bool) -> str:
    # What is small is always said to be: who says nothing of its size wants to see it well.
    noun = article(_noun(thing, stickers, rng, 1.0 if thing.size == "small" else 0.6))
    if image or (thing.motion == "still" and rng.random() < 0.8):
        return rng.choice(("", "", "", "a picture of ", "a drawing of ")) + noun if image else noun
    move = _move(thing, rng)
    return f"{noun} {third_person(move) if rng.random() < 0.65 else gerund(move)}"


def _alike(scene: Scene, stickers: Sequence[Sticker], rng: random.Random, image: bool) -> str:
    first, count = scene.things[0], len(scene.things)
    many = f"{rng.choice(WORDS[COUNTS[count]])} {plural(_noun(first, stickers, rng, 0.25))}"
    if image or first.motion == "still":
        return many
    move = _move(first, rng)
    if scene.things[1].motion != "still":
        return f"{many} {move if rng.random() < 0.6 else gerund(move)}"
    return f"{many}, one of them {gerund(move)}" if rng.random() < 0.7 else f"{many}, one {third_person(move)}"


def _noun(thing: PlacedSticker, stickers: Sequence[Sticker], rng: random.Random, detail: float) -> str:
    noun = stickers[thing.sticker].noun
    if thing.size != "medium" and thing.motion not in ("growing", "shrinking") and rng.random() < detail:
        noun = f"{rng.choice(WORDS[thing.size])} {noun}"
    return noun


def _move(thing: PlacedSticker, rng: random.Random) -> str:
    """What is done to the sticker, in the plain form, with speed."""
    if thing.motion == "bouncing":
        move = rng.choice(JUMPS)
    elif thing.motion == "up" and rng.random() < 0.5:
        move = rng.choice(FLIES)
    elif thing.motion in TAILS:
        move = f"{rng.choice(WORDS['travel'])} {rng.choice(TAILS[thing.motion])}"
    else:
        move = rng.choice(MOTION_VERBS[thing.motion])
    if thing.speed == "normally" or thing.motion == "still" or rng.random() < 0.3:
        return move
    return f"{move} {rng.choice(WORDS[thing.speed])}"


def _on_ground(words: str, scene: Scene, rng: random.Random, often: float) -> str:
    if rng.random() >= often:
        return words
    name, other = scene.ground.colour, scene.ground.other
    kind = rng.choice((f"{name} and {other}", f"{name} to {other} gradient")) if other else name
    return f"{words} {rng.choice(WORDS['on'])} {article(kind)} {rng.choice(WORDS['background'])}"
