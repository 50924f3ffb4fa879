"""Scenes in words: a grammar of many wordings, each true of its scene.

`caption` draws one at random and may leave things out (background, size, speed, texture; seldom the motion); it never says
what is not so. `canonical_caption` is the plainest wording, the kind people type. Lowercase English, at most about 40 words.
"""

import random

from lumos.worlds.shapes.motion import DIRECTIONS, IN_PLACE
from lumos.worlds.shapes.scene import Background, Scene
from lumos.worlds.shapes.thing import Thing

# How things are called. The first word is the name itself and is used most.
SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc", "dot"),
    "cross": ("cross", "cross", "plus sign"),
    "ring": ("ring", "ring", "hoop", "donut"),
    "crescent": ("crescent", "crescent", "crescent moon", "moon"),
    "diamond": ("diamond", "diamond", "rhombus"),
}
COLOUR_WORDS = {"teal": ("teal", "turquoise", "cyan"), "purple": ("purple", "purple", "violet"), "gray": ("gray", "grey")}
SIZE_WORDS = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("medium-sized",),
    "large": ("large", "big", "big", "huge"),
}
TEXTURE_BEFORE = {
    "stripes": ("striped",),
    "dots": ("dotted", "spotted", "polka-dot"),
    "checks": ("checkered", "checked"),
}
TEXTURE_AFTER = {
    "stripes": ("with stripes",),
    "dots": ("with dots", "with spots"),
    "checks": ("with checks", "with a checkered pattern"),
}
PLURALS = {"cross": "crosses", "rhombus": "rhombuses"}
COUNT_WORDS = {2: ("two", "two", "two", "2", "a pair of"), 3: ("three", "three", "three", "3", "a group of three")}

# Motions: verbs in the plain form, and what may follow them.
TRAVELS = ("move", "move", "move", "slide", "glide", "drift", "travel", "go", "float")
TAILS = {
    "left": ("to the left", "to the left", "left", "leftward", "towards the left", "from right to left"),
    "right": ("to the right", "to the right", "right", "rightward", "towards the right", "from left to right"),
    "up": ("up", "up", "upward", "upwards", "towards the top"),
    "down": ("down", "down", "downward", "downwards", "towards the bottom"),
}
CORNERS = ("{0} and to the {1}", "diagonally {0} and to the {1}", "to the {2} {1}", "towards the {3} {1}", "{0} and {1}")
for vertical, words in {"up": ("up", "upper", "top"), "down": ("down", "lower", "bottom")}.items():
    for side in ("left", "right"):
        TAILS[f"{vertical} {side}"] = tuple(corner.format(words[0], side, words[1], words[2]) for corner in CORNERS)
VERBS = {
    "still": ("stay still", "stay still", "do not move", "stand still", "rest in place", "stay in place", "sit still"),
    "up": ("rise", "rise", "climb", "climb up"),
    "down": ("fall", "sink", "fall down", "sink down"),
    "circling": ("move in a circle", "move in circles", "go around in a circle", "circle around", "move clockwise in a circle"),
    "bouncing": ("bounce", "bounce", "bounce up and down", "hop up and down", "jump up and down"),
    "growing": ("grow", "grow", "get bigger", "become larger", "expand", "grow in size"),
    "shrinking": ("shrink", "shrink", "get smaller", "become smaller", "shrink in size"),
    "spinning": ("spin", "spin", "rotate", "turn around", "spin around", "rotate in place", "spin clockwise"),
    "fading in": ("fade in", "fade in", "appear", "fade into view", "become visible"),
    "fading out": ("fade out", "fade out", "fade away", "disappear", "vanish"),
    "blinking": ("blink", "blink", "flash", "blink on and off", "flash on and off"),
}
SPEED_WORDS = {"slowly": ("slowly", "slowly", "gently"), "quickly": ("quickly", "quickly", "fast", "rapidly")}
THIRD_PERSON = {"do": "does", "go": "goes"}
GERUNDS = {"sit": "sitting", "get": "getting", "spin": "spinning", "hop": "hopping"}
JOINING = ("while", "and", "as", "and", "while")

RELATION_WORDS = {
    "left of": ("to the left of", "to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "to the right of", "right of", "on the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under", "beneath"),
    "in front of": ("in front of",),
    "behind": ("behind",),
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
OPENINGS = ("there is", "we see", "a video of", "a short clip of", "an animation of", "a scene with")
IMAGE_OPENINGS = ("there is", "we see", "a picture of", "an image of", "a drawing of", "a scene with")


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


def canonical_caption(scene: Scene, image: bool = False) -> str:
    """The plainest true caption: colours, shapes, count, relation and motions; always the same one.

    image: leave the motions out.
    """
    first = scene.things[0]
    if _alike(scene):
        verb = "" if image or first.motion == "still" else " " + _plain_verb(first, plural=True)
        return f"{('two', 'three')[len(scene.things) - 2]} {first.colour} {_plural(first.shape)}{verb}"
    nouns = [_article(f"{thing.colour} {thing.shape}") for thing in scene.things]
    if scene.relation != "none":
        relation = RELATION_WORDS[scene.relation][0]
        if first.motion in DIRECTIONS and scene.relation in ("in front of", "behind"):
            return f"{nouns[0]} and {nouns[1]}" if image else f"{nouns[0]} passes {relation} {nouns[1]}"
        nouns = [f"{nouns[0]} {relation} {nouns[1]}"]
    if image or all(thing.motion == "still" for thing in scene.things):
        return _joined(nouns)
    if scene.relation == "none" and all(thing.motion != "still" for thing in scene.things):
        return _joined([f"{noun} {_plain_verb(thing)}" for noun, thing in zip(nouns, scene.things, strict=True)])
    moving = [f"the {thing.colour} {thing.shape} {_plain_verb(thing)}" for thing in scene.things if thing.motion != "still"]
    return f"{_joined(nouns)}, {_joined(moving)}"


def _alike(scene: Scene) -> bool:
    return len(scene.things) > 1 and len({(t.colour, t.shape, t.size, t.texture, t.motion, t.speed) for t in scene.things}) == 1


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _plain_verb(thing: Thing, plural: bool = False) -> str:
    verb = f"move {TAILS[thing.motion][0]}" if thing.motion in DIRECTIONS else VERBS[thing.motion][0]
    return verb if plural else _third(verb)


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeio" else "a ") + noun


def _plural(noun: str) -> str:
    head, _, last = noun.rpartition(" ")
    last = PLURALS.get(last, last + "s")
    return f"{head} {last}" if head else last


def _third(phrase: str) -> str:
    """ "move up" -> "moves up"."""
    verb, _, rest = phrase.partition(" ")
    verb = THIRD_PERSON.get(verb, verb + ("es" if verb.endswith(("sh", "ch", "ss")) else "s"))
    return f"{verb} {rest}".strip()


def _gerund(phrase: str) -> str:
    """ "move up" -> "moving up"."""
    if phrase == "do not move":
        return "not moving"
    verb, _, rest = phrase.partition(" ")
    verb = GERUNDS.get(verb) or (verb[:-1] if verb.endswith("e") else verb) + "ing"
    return f"{verb} {rest}".strip()


def _noun(thing: Thing, rng: random.Random, shape: str = "", plural: bool = False, detail: float = 0.6) -> str:
    """Colour and shape (in the word given) with size and texture, each said with probability `detail`; no article."""
    shape = shape or rng.choice(SHAPE_WORDS.get(thing.shape, (thing.shape,)))
    noun = f"{rng.choice(COLOUR_WORDS.get(thing.colour, (thing.colour,)))} {_plural(shape) if plural else shape}"
    if thing.texture != "plain" and rng.random() < detail + 0.1:
        if rng.random() < 0.7:
            noun = f"{rng.choice(TEXTURE_BEFORE[thing.texture])} {noun}"
        else:
            noun = f"{noun} {rng.choice(TEXTURE_AFTER[thing.texture])}"
    changes_size = thing.motion in ("growing", "shrinking")
    if not changes_size and rng.random() < (0.1 if thing.size == "medium" else detail):
        noun = f"{rng.choice(SIZE_WORDS[thing.size])} {noun}"
    return noun


def _move(thing: Thing, rng: random.Random) -> str:
    """What the thing does, in the plain form, with speed."""
    if thing.motion in TAILS and not (thing.motion in VERBS and rng.random() < 0.3):
        verb, tail = rng.choice(TRAVELS), rng.choice(TAILS[thing.motion])
    else:
        verb, _, tail = rng.choice(VERBS[thing.motion]).partition(" ")
    if thing.speed == "normally" or rng.random() < 0.25:
        return f"{verb} {tail}".strip()
    adverb = rng.choice(SPEED_WORDS[thing.speed])
    if tail and adverb != "fast" and rng.random() < 0.5 and verb in TRAVELS:
        return f"{verb} {adverb} {tail}"
    return f"{verb} {tail} {adverb}" if tail else f"{verb} {adverb}"


def _place(thing: Thing, rng: random.Random) -> str:
    """Where a thing that stays in place is, or nothing when there is no short word for it."""
    side = "left" if thing.x < 0.36 else "right" if thing.x > 0.64 else ""
    level = "top" if thing.y < 0.36 else "bottom" if thing.y > 0.64 else ""
    if side and level:
        other = "upper" if level == "top" else "lower"
        return rng.choice(("in the {1} {0} corner", "in the {1} {0}", "at the {1} {0}", "in the {2} {0}")).format(
            side, level, other
        )
    if side:
        return rng.choice((f"on the {side}", f"on the {side} side"))
    if level:
        return rng.choice((f"at the {level}", f"near the {level}"))
    if abs(thing.x - 0.5) < 0.08 and abs(thing.y - 0.5) < 0.08:
        return rng.choice(("in the middle", "in the center"))
    return ""


def _one(thing: Thing, rng: random.Random) -> str:
    noun, move, place = _noun(thing, rng), _move(thing, rng), ""
    if thing.motion in IN_PLACE and rng.random() < 0.25:
        place = f" {_place(thing, rng)}".rstrip()
    draw = rng.random()
    if thing.motion == "still" and draw < 0.5:
        if rng.random() < 0.25:
            return f"{rng.choice(OPENINGS)} {_article(noun)}{place}"
        return f"{_article(rng.choice(('still ', 'motionless ', '', '', '', '')) + noun)}{place}"
    if place or draw < 0.50:
        return f"{_article(noun)}{place} {_third(move)}"
    if draw < 0.62:
        return f"{noun} {_gerund(move)}"
    if draw < 0.85:
        return f"{_article(noun)} {'is ' if rng.random() < 0.1 else ''}{_gerund(move)}"
    if draw < 0.94:
        return f"{rng.choice(OPENINGS)} {_article(noun)} {_gerund(move)}"
    return f"{rng.choice(OPENINGS)} {_article(noun)} that {_third(move)}"


def _many(scene: Scene, rng: random.Random) -> str:
    thing, count = scene.things[0], len(scene.things)
    start = f"{rng.choice(COUNT_WORDS[count])} {_noun(thing, rng, plural=True)}"
    if thing.motion == "still" and rng.random() < 0.75:
        return f"{rng.choice(OPENINGS).replace('is', 'are')} {start}" if rng.random() < 0.2 else start
    move = _move(thing, rng)
    draw = rng.random()
    if draw < 0.5:
        return f"{start} {move}"
    if draw < 0.85:
        return f"{start} {_gerund(move)}"
    return f"{start} {'all' if count == 3 else 'both'} {move}"


def _two(scene: Scene, rng: random.Random) -> str:
    things, relation = list(scene.things), scene.relation
    if rng.random() < 0.4:
        things, relation = things[::-1], OPPOSITE.get(relation, relation)
    one, other = things
    shapes = [rng.choice(SHAPE_WORDS.get(thing.shape, (thing.shape,))) for thing in things]
    nouns = [_article(_noun(thing, rng, shape, detail=0.4)) for thing, shape in zip(things, shapes, strict=True)]
    together = one.motion == other.motion and one.speed == other.speed and rng.random() < 0.7
    if relation == "none":
        if together:
            return f"{nouns[0]} and {nouns[1]} {'both ' if rng.random() < 0.5 else ''}{_move(one, rng)}"
        return _two_moves(nouns, [_move(thing, rng) for thing in things], rng)
    verb = "is " if rng.random() < 0.15 else ""
    start = f"{nouns[0]} {verb}{rng.choice(RELATION_WORDS[relation])} {nouns[1]}"
    if one.motion == other.motion == "still":
        return start if verb or rng.random() < 0.8 else f"{rng.choice(OPENINGS)} {start}"
    if together:
        return f"{start}, both {_gerund(_move(one, rng))}"
    names = [shapes[0], shapes[1]] if one.shape != other.shape else [f"{thing.colour} {thing.shape}" for thing in things]
    told = [thing.motion != "still" or rng.random() < 0.3 for thing in things]
    order = [0, 1] if rng.random() < 0.6 else [1, 0]
    moves = " and ".join(f"the {names[i]} {_third(_move(things[i], rng))}" for i in order if told[i])
    return f"{start}, {moves}" if rng.random() < 0.7 else f"{start}. {moves}"


def _two_moves(nouns: list[str], moves: list[str], rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.8:
        return f"{nouns[0]} {_third(moves[0])} {rng.choice(JOINING)} {nouns[1]} {_third(moves[1])}"
    if draw < 0.9:
        return f"{nouns[0]} {_gerund(moves[0])} and {nouns[1]} {_gerund(moves[1])}"
    return f"{nouns[0]} {_third(moves[0])}. {nouns[1]} {_third(moves[1])}"


def _occlusion(scene: Scene, rng: random.Random) -> str:
    mover, other = scene.things
    nouns = [_article(_noun(thing, rng, detail=0.4)) for thing in (mover, other)]
    if mover.motion not in DIRECTIONS:
        return _covering(nouns, scene.relation, rng)
    verb = rng.choice(("pass", "pass", "pass", "move", "slide", "glide", "go"))
    adverb = f" {rng.choice(SPEED_WORDS['quickly'][:2])}" if mover.speed == "quickly" and rng.random() < 0.4 else ""
    way = rng.choice((*TAILS[mover.motion][:2], f"moving {TAILS[mover.motion][0]}")) if rng.random() < 0.45 else ""
    if way and not way.startswith("moving") and rng.random() < 0.5:
        return f"{nouns[0]} {_third(rng.choice(TRAVELS))} {way}{adverb}, passing {scene.relation} {nouns[1]}"
    way = f", {way if way.startswith('moving') else 'going ' + way}" if way else ""
    form = _gerund(verb) if rng.random() < 0.2 else _third(verb)
    return f"{nouns[0]} {form}{adverb} {scene.relation} {nouns[1]}{way}"


def _covering(nouns: list[str], relation: str, rng: random.Random) -> str:
    front, back = nouns if relation == "in front of" else nouns[::-1]
    draw = rng.random()
    if draw < 0.45:
        return f"{front} in front of {back}"
    if draw < 0.8:
        return f"{back} behind {front}"
    if draw < 0.9:
        return f"{front} partly covers {back}"
    return f"{back} partly hidden behind {front}"


def _three(scene: Scene, rng: random.Random) -> str:
    things = list(scene.things)
    rng.shuffle(things)
    moving = [thing for thing in things if thing.motion != "still"]
    nouns = [_article(_noun(thing, rng, detail=0.25)) for thing in things]
    start = f"{rng.choice(OPENINGS)} {_joined(nouns)}" if rng.random() < 0.15 else _joined(nouns)
    if not moving:
        return start
    move = _third(_move(moving[0], rng))
    named = f"the {moving[0].colour} {moving[0].shape}"
    others = ", the others stay still" if rng.random() < 0.2 else ""
    return f"{start}, {named} {move}{others}" if rng.random() < 0.6 else f"{start}. {named} {move}{others}"


def _with_background(body: str, background: Background, rng: random.Random, often: float) -> str:
    if rng.random() >= often:
        return body + ("." if rng.random() < 0.15 else "")
    name, other = background.colour, background.other
    gradient = background.gradient != "plain"
    if gradient:
        kind = rng.choice((f"{name} and {other}", f"{name} to {other} gradient", f"{other} and {name} gradient"))
    else:
        kind = rng.choice(("plain ", "", "", "", "")) + name
    ground = rng.choice(("background", "background", "background", "backdrop"))
    draw = rng.random()
    if draw < 0.65:
        return f"{body} {rng.choice(('on', 'on', 'on', 'against', 'over'))} {_article(kind)} {ground}"
    if draw < 0.85 and not body.startswith(OPENINGS + IMAGE_OPENINGS):
        return f"{rng.choice(('on', 'against'))} {_article(kind)} {ground}, {body}"
    if gradient:
        return f"{body}. the background is a gradient of {name} and {other}"
    return f"{body}. the {ground} is {name}"


def _image_caption(scene: Scene, rng: random.Random) -> str:
    """The first frame in words."""
    seen = [thing for thing in scene.things if thing.motion != "fading in"]
    if not seen:
        return _with_background("nothing", scene.background, rng, 1.0)
    nouns = [_noun(thing, rng, detail=0.5) for thing in seen]
    moving = any(thing.motion in DIRECTIONS for thing in seen)
    if len(seen) == 1:
        body = _article(nouns[0])
        if seen[0].motion != "circling" and rng.random() < 0.4:
            body = f"{body} {_place(seen[0], rng)}".rstrip()
    elif _alike(scene):
        body = f"{rng.choice(COUNT_WORDS[len(seen)])} {_noun(seen[0], rng, plural=True)}"
    elif len(seen) == 3 or len(seen) != len(scene.things) or scene.relation == "none":
        rng.shuffle(nouns)
        body = _joined([_article(noun) for noun in nouns])
    elif scene.relation in ("in front of", "behind"):
        both = [_article(noun) for noun in nouns]
        body = _joined(both) if moving else _covering(both, scene.relation, rng)
    else:
        relation = scene.relation
        if rng.random() < 0.4:
            nouns, relation = nouns[::-1], OPPOSITE[relation]
        body = f"{_article(nouns[0])} {rng.choice(RELATION_WORDS[relation])} {_article(nouns[1])}"
    if not body.startswith("there") and rng.random() < 0.25:
        opening = rng.choice(IMAGE_OPENINGS)
        body = f"{opening.replace('is', 'are') if _alike(scene) else opening} {body}"
    return _with_background(body, scene.background, rng, 0.5)
