"""Scenes in words: a grammar of many wordings, each true of its scene.

`caption` draws one at random and may leave things out (background, size, speed, texture; seldom the motion); it never says
what is not so. `canonical_caption` is the plainest wording, the kind people type. Lowercase English, at most about 40 words.
"""

import random

from lumos.worlds.english import article, gerund, listed, plural, third_person
from lumos.worlds.shapes.motion import DIRECTIONS, IN_PLACE
from lumos.worlds.shapes.scene import Background, Scene
from lumos.worlds.shapes.thing import Thing

# How things are called; one of the words is drawn, those with *2 twice as often. What is not here is called by its name.
_WORDS = """
    circle = circle*2, disc, dot
    cross = cross*2, plus sign
    ring = ring*2, hoop, donut
    crescent = crescent*2, crescent moon, moon
    diamond = diamond*2, rhombus
    teal = teal, turquoise, cyan
    purple = purple*2, violet
    gray = gray, grey
    small = small*2, little, tiny
    medium = medium-sized
    large = large, big*2, huge
    stripes = striped
    dots = dotted, spotted, polka-dot
    checks = checkered, checked
    with dots = with dots, with spots
    with checks = with checks, with a checkered pattern
    slowly = slowly*2, gently
    quickly = quickly*2, fast, rapidly
    two = two*3, 2, a pair of
    three = three*3, 3, a group of three
    left of = to the left of*2, left of, on the left of
    right of = to the right of*2, right of, on the right of
    above = above*2, over
    below = below*2, under, beneath
    travel = move*3, slide, glide, drift, travel, go, float
    pass = pass*3, move, slide, glide, go
    while = while, and, as, and, while
    video = there is, we see, a video of, a short clip of, an animation of, a scene with
    image = there is, we see, a picture of, an image of, a drawing of, a scene with
    background = background*3, backdrop
    on = on*3, against, over
"""
# What a motion is called.
_MOTION_VERBS = """
    still = stay still*2, do not move, stand still, rest in place, stay in place, sit still
    up = rise*2, climb, climb up
    down = fall, sink, fall down, sink down
    circling = move in a circle, move in circles, go around in a circle, circle around, move clockwise in a circle
    bouncing = bounce*2, bounce up and down, hop up and down, jump up and down
    growing = grow*2, get bigger, become larger, expand, grow in size
    shrinking = shrink*2, get smaller, become smaller, shrink in size
    spinning = spin*2, rotate, turn around, spin around, rotate in place, spin clockwise
    fading in = fade in*2, appear, fade into view, become visible
    fading out = fade out*2, fade away, disappear, vanish
    blinking = blink*2, flash, blink on and off, flash on and off
"""
# Where what travels goes.
_TAILS = """
    left = to the left*2, left, leftward, towards the left, from right to left
    right = to the right*2, right, rightward, towards the right, from left to right
    up = up*2, upward, upwards, towards the top
    down = down*2, downward, downwards, towards the bottom
""" + "\n".join(
    f"{way} {side} = {way} and to the {side}, diagonally {way} and to the {side}, to the {upper} {side}, "
    f"towards the {top} {side}, {way} and {side}"
    for way, upper, top in (("up", "upper", "top"), ("down", "lower", "bottom"))
    for side in ("left", "right")
)


def _word_table(text: str) -> dict[str, tuple[str, ...]]:
    lines = [line.split(" = ") for line in text.strip().splitlines()]
    entries = {name.strip(): [entry.partition("*") for entry in words.split(", ")] for name, words in lines}
    return {name: tuple(word for word, _, times in words for _ in range(int(times or 1))) for name, words in entries.items()}


WORDS, MOTION_VERBS, TAILS = _word_table(_WORDS), _word_table(_MOTION_VERBS), _word_table(_TAILS)
COUNTS = {2: "two", 3: "three"}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def caption(scene: Scene, rng: random.Random, image: bool = False) -> str:
    """One of many true captions.

    image: describe the first frame alone (what is seen at time 0, nothing about motion) instead of the clip.
    """
    if image:
        return _image_caption(scene, rng)
    if len(scene.things) == 1:
        body = _one(scene.things[0], rng)
    elif _alike(scene):
        body = _many(scene, rng)
    elif len(scene.things) == 3:
        body = _three(scene, rng)
    elif scene.relation in ("in front of", "behind"):
        body = _occlusion(scene, rng)
    else:
        body = _two(scene, rng)
    return _with_background(body, scene.background, rng, 0.45)


def canonical_caption(scene: Scene) -> str:
    """The plainest true caption: colours, shapes, count, relation and motions; always the same one."""
    first = scene.things[0]
    if _alike(scene):
        verb = "" if first.motion == "still" else " " + _plain_verb(first)
        return f"{COUNTS[len(scene.things)]} {first.colour} {plural(first.shape)}{verb}"
    names = [f"{thing.colour} {thing.shape}" for thing in scene.things]
    moves = [third_person(_plain_verb(thing)) for thing in scene.things]
    nouns = [article(name) for name in names]
    if scene.relation != "none":
        relation = WORDS.get(scene.relation, (scene.relation,))[0]
        if first.motion in DIRECTIONS and scene.relation in ("in front of", "behind"):
            return f"{nouns[0]} passes {relation} {nouns[1]}"
        nouns = [f"{nouns[0]} {relation} {nouns[1]}"]
    moving = [i for i, thing in enumerate(scene.things) if thing.motion != "still"]
    if not moving:
        return listed(nouns)
    if scene.relation == "none" and len(moving) == len(nouns):
        return listed([f"{noun} {move}" for noun, move in zip(nouns, moves, strict=True)])
    return f"{listed(nouns)}, {listed([f'the {names[i]} {moves[i]}' for i in moving])}"


def _alike(scene: Scene) -> bool:
    return len(scene.things) > 1 and len({(t.colour, t.shape, t.size, t.texture, t.motion, t.speed) for t in scene.things}) == 1


def _plain_verb(thing: Thing) -> str:
    return f"move {TAILS[thing.motion][0]}" if thing.motion in DIRECTIONS else MOTION_VERBS[thing.motion][0]


def _say(name: str, rng: random.Random) -> str:
    return rng.choice(WORDS.get(name, (name,)))


def _noun(thing: Thing, rng: random.Random, shape: str = "", many: bool = False, detail: float = 0.6) -> str:
    """Colour and shape (in the word given) with size and texture, each said with probability `detail`; no article."""
    shape = shape or _say(thing.shape, rng)
    noun = f"{_say(thing.colour, rng)} {plural(shape) if many else shape}"
    if thing.texture != "plain" and rng.random() < detail + 0.1:
        before = rng.random() < 0.7
        noun = f"{_say(thing.texture, rng)} {noun}" if before else f"{noun} {_say(f'with {thing.texture}', rng)}"
    changes_size = thing.motion in ("growing", "shrinking")
    if not changes_size and rng.random() < (0.1 if thing.size == "medium" else detail):
        noun = f"{_say(thing.size, rng)} {noun}"
    return noun


def _move(thing: Thing, rng: random.Random) -> str:
    """What the thing does, in the plain form, with speed."""
    if thing.motion in TAILS and not (thing.motion in MOTION_VERBS and rng.random() < 0.3):
        verb, tail = _say("travel", rng), rng.choice(TAILS[thing.motion])
    else:
        verb, _, tail = rng.choice(MOTION_VERBS[thing.motion]).partition(" ")
    if thing.speed == "normally" or rng.random() < 0.25:
        return f"{verb} {tail}".strip()
    adverb = _say(thing.speed, rng)
    if tail and adverb != "fast" and rng.random() < 0.5 and verb in WORDS["travel"]:
        return f"{verb} {adverb} {tail}"
    return f"{verb} {tail} {adverb}" if tail else f"{verb} {adverb}"


def _place(thing: Thing, rng: random.Random) -> str:
    """Where a thing that stays in place is, after a space, or nothing when there is no short word for it."""
    side = "left" if thing.x < 0.36 else "right" if thing.x > 0.64 else ""
    level = "top" if thing.y < 0.36 else "bottom" if thing.y > 0.64 else ""
    other = "upper" if level == "top" else "lower"
    words: tuple[str, ...] = ()
    if side and level:
        words = (f"in the {level} {side} corner", f"in the {level} {side}", f"at the {level} {side}", f"in the {other} {side}")
    elif side:
        words = (f"on the {side}", f"on the {side} side")
    elif level:
        words = (f"at the {level}", f"near the {level}")
    elif abs(thing.x - 0.5) < 0.08 and abs(thing.y - 0.5) < 0.08:
        words = ("in the middle", "in the center")
    return f" {rng.choice(words)}" if words else ""


def _one(thing: Thing, rng: random.Random) -> str:
    noun, move = _noun(thing, rng), _move(thing, rng)
    place = _place(thing, rng) if thing.motion in IN_PLACE and rng.random() < 0.25 else ""
    draw = rng.random()
    if thing.motion == "still" and draw < 0.5:
        if rng.random() < 0.25:
            return f"{_say('video', rng)} {article(noun)}{place}"
        return article(rng.choice(("still ", "motionless ", "", "", "", "")) + noun) + place
    if place or draw < 0.50:
        return f"{article(noun)}{place} {third_person(move)}"
    if draw < 0.62:
        return f"{noun} {gerund(move)}"
    if draw < 0.85:
        return f"{article(noun)} {'is ' if rng.random() < 0.1 else ''}{gerund(move)}"
    return f"{_say('video', rng)} {article(noun)} {gerund(move) if draw < 0.94 else f'that {third_person(move)}'}"


def _many(scene: Scene, rng: random.Random) -> str:
    thing, count = scene.things[0], len(scene.things)
    start = f"{_say(COUNTS[count], rng)} {_noun(thing, rng, many=True)}"
    if thing.motion == "still" and rng.random() < 0.75:
        return f"{_say('video', rng).replace('is', 'are')} {start}" if rng.random() < 0.2 else start
    move, draw = _move(thing, rng), rng.random()
    if draw < 0.85:
        return f"{start} {move if draw < 0.5 else gerund(move)}"
    return f"{start} {'all' if count == 3 else 'both'} {move}"


def _two(scene: Scene, rng: random.Random) -> str:
    things, relation = list(scene.things), scene.relation
    if rng.random() < 0.4:
        things, relation = things[::-1], OPPOSITE.get(relation, relation)
    one, other = things
    shapes = [_say(thing.shape, rng) for thing in things]
    nouns = [article(_noun(thing, rng, shape, detail=0.4)) for thing, shape in zip(things, shapes, strict=True)]
    together = one.motion == other.motion and one.speed == other.speed and rng.random() < 0.7
    if relation == "none":
        if together:
            return f"{nouns[0]} and {nouns[1]} {'both ' if rng.random() < 0.5 else ''}{_move(one, rng)}"
        moves = [_move(thing, rng) for thing in things]
        draw = rng.random()
        joint = f" {_say('while', rng)} " if draw < 0.8 else " and " if draw < 0.9 else ". "
        form = gerund if 0.8 <= draw < 0.9 else third_person
        return joint.join(f"{noun} {form(move)}" for noun, move in zip(nouns, moves, strict=True))
    verb = "is " if rng.random() < 0.15 else ""
    start = f"{nouns[0]} {verb}{_say(relation, rng)} {nouns[1]}"
    if one.motion == other.motion == "still":
        return start if verb or rng.random() < 0.8 else f"{_say('video', rng)} {start}"
    if together:
        return f"{start}, both {gerund(_move(one, rng))}"
    names = shapes if one.shape != other.shape else [f"{thing.colour} {thing.shape}" for thing in things]
    said = [thing.motion != "still" or rng.random() < 0.3 for thing in things]
    order = (0, 1) if rng.random() < 0.6 else (1, 0)
    told = " and ".join(f"the {names[i]} {third_person(_move(things[i], rng))}" for i in order if said[i])
    return f"{start}{', ' if rng.random() < 0.7 else '. '}{told}"


def _occlusion(scene: Scene, rng: random.Random) -> str:
    mover, other = scene.things
    nouns = [article(_noun(thing, rng, detail=0.4)) for thing in (mover, other)]
    if mover.motion not in DIRECTIONS:
        return _covering(nouns, scene.relation, rng)
    verb = _say("pass", rng)
    adverb = f" {rng.choice(WORDS['quickly'][:2])}" if mover.speed == "quickly" and rng.random() < 0.4 else ""
    tails = TAILS[mover.motion]
    way = rng.choice((*tails[:2], f"moving {tails[0]}")) if rng.random() < 0.45 else ""
    if way and not way.startswith("moving") and rng.random() < 0.5:
        return f"{nouns[0]} {third_person(_say('travel', rng))} {way}{adverb}, passing {scene.relation} {nouns[1]}"
    way = f", {way if way.startswith('moving') else 'going ' + way}" if way else ""
    form = gerund(verb) if rng.random() < 0.2 else third_person(verb)
    return f"{nouns[0]} {form}{adverb} {scene.relation} {nouns[1]}{way}"


def _covering(nouns: list[str], relation: str, rng: random.Random) -> str:
    front, back = nouns if relation == "in front of" else nouns[::-1]
    draw = rng.random()
    if draw < 0.8:
        return f"{front} in front of {back}" if draw < 0.45 else f"{back} behind {front}"
    return f"{front} partly covers {back}" if draw < 0.9 else f"{back} partly hidden behind {front}"


def _three(scene: Scene, rng: random.Random) -> str:
    things = list(scene.things)
    rng.shuffle(things)
    moving = [thing for thing in things if thing.motion != "still"]
    start = listed([article(_noun(thing, rng, detail=0.25)) for thing in things])
    if rng.random() < 0.15:
        start = f"{_say('video', rng)} {start}"
    if not moving:
        return start
    move = f"the {moving[0].colour} {moving[0].shape} {third_person(_move(moving[0], rng))}"
    others = ", the others stay still" if rng.random() < 0.2 else ""
    return f"{start}{', ' if rng.random() < 0.6 else '. '}{move}{others}"


def _with_background(body: str, background: Background, rng: random.Random, often: float) -> str:
    if rng.random() >= often:
        return body + ("." if rng.random() < 0.15 else "")
    name, other = background.colour, background.other
    gradient = background.gradient != "plain"
    if gradient:
        kind = rng.choice((f"{name} and {other}", f"{name} to {other} gradient", f"{other} and {name} gradient"))
    else:
        kind = rng.choice(("plain ", "", "", "", "")) + name
    ground = _say("background", rng)
    draw = rng.random()
    if draw < 0.65:
        return f"{body} {_say('on', rng)} {article(kind)} {ground}"
    if draw < 0.85 and not body.startswith(WORDS["video"] + WORDS["image"]):
        return f"{rng.choice(('on', 'against'))} {article(kind)} {ground}, {body}"
    return f"{body}. the background is a gradient of {name} and {other}" if gradient else f"{body}. the {ground} is {name}"


def _image_caption(scene: Scene, rng: random.Random) -> str:
    """The first frame in words."""
    seen = [thing for thing in scene.things if thing.motion != "fading in"]
    if not seen:
        return _with_background("nothing", scene.background, rng, 1.0)
    nouns = [_noun(thing, rng, detail=0.5) for thing in seen]
    both = [article(noun) for noun in nouns]
    if len(seen) == 1:
        body = both[0] + (_place(seen[0], rng) if seen[0].motion != "circling" and rng.random() < 0.4 else "")
    elif _alike(scene):
        body = f"{_say(COUNTS[len(seen)], rng)} {_noun(seen[0], rng, many=True)}"
    elif len(seen) == 3 or len(seen) != len(scene.things) or scene.relation == "none":
        rng.shuffle(both)
        body = listed(both)
    elif scene.relation in ("in front of", "behind"):
        moving = any(thing.motion in DIRECTIONS for thing in seen)
        body = listed(both) if moving else _covering(both, scene.relation, rng)
    else:
        swapped = rng.random() < 0.4
        one, other = both[::-1] if swapped else both
        body = f"{one} {_say(OPPOSITE[scene.relation] if swapped else scene.relation, rng)} {other}"
    if not body.startswith("there") and rng.random() < 0.25:
        opening = _say("image", rng)
        body = f"{opening.replace('is', 'are') if _alike(scene) else opening} {body}"
    return _with_background(body, scene.background, rng, 0.5)
