"""Scenes in words: a grammar of many wordings, each true of its scene.

`caption` draws one at random and may leave things out (background, size, speed, texture; seldom the motion); it never says
what is not so. `canonical_caption` is the plainest wording, the kind people type. Lowercase English, at most about 40 words.
"""

import random
from collections.abc import Sequence

from lumos.worlds.english import Plainest, article, listed, phrases, say, third_person
from lumos.worlds.shapes.motion import DIRECTIONS, IN_PLACE
from lumos.worlds.shapes.scene import Scene
from lumos.worlds.shapes.thing import Thing

# How things are called. What is not here is called by its name.
WORDS = phrases("""
    circle = circle*2 | disc | dot
    cross = cross*2 | plus sign
    ring = ring*2 | hoop | donut
    crescent = crescent*2 | crescent moon | moon
    diamond = diamond*2 | rhombus
    teal = teal | turquoise | cyan
    purple = purple*2 | violet
    gray = gray | grey
    small = small*2 | little | tiny
    medium = medium-sized
    large = large | big*2 | huge
    stripes = striped
    dots = dotted | spotted | polka-dot
    checks = checkered | checked
    with dots = with dots | with spots
    with checks = with checks | with a checkered pattern
    slowly = slowly*2 | gently
    quickly = quickly*2 | fast | rapidly
    two = two*3 | 2 | a pair of
    three = three*3 | 3 | a group of three
    left of = to the left of*2 | left of | on the left of
    right of = to the right of*2 | right of | on the right of
    above = above*2 | over
    below = below*2 | under | beneath
    travel = move*3 | slide | glide | drift | travel | go | float
    pass = pass*3 | move | slide | glide | go
    while = and*2 | while*2 | as
    background = background*3 | backdrop
    on = on*3 | against | over
    corner place = in the {level} {side} corner | in the {level} {side} | at the {level} {side} | in the {other} {side}
    side place = on the {side} | on the {side} side
    level place = at the {level} | near the {level}
    middle place = in the middle | in the center
""")
# What a motion is called.
MOTION_VERBS = phrases("""
    still = stay still*2 | do not move | stand still | rest in place | stay in place | sit still
    up = rise*2 | climb | climb up
    down = fall | sink | fall down | sink down
    circling = move in a circle | move in circles | go around in a circle | circle around | move clockwise in a circle
    bouncing = bounce*2 | bounce up and down | hop up and down | jump up and down
    growing = grow*2 | get bigger | become larger | expand | grow in size
    shrinking = shrink*2 | get smaller | become smaller | shrink in size
    spinning = spin*2 | rotate | turn around | spin around | rotate in place | spin clockwise
    fading in = fade in*2 | appear | fade into view | become visible
    fading out = fade out*2 | fade away | disappear | vanish
    blinking = blink*2 | flash | blink on and off | flash on and off
""")
# Where what travels goes.
TAILS = phrases("""
    left = to the left*2 | left | leftward | towards the left | from right to left
    right = to the right*2 | right | rightward | towards the right | from left to right
    up = up*2 | upward | upwards | towards the top
    down = down*2 | downward | downwards | towards the bottom
    up left = up and to the left | diagonally up and to the left | to the upper left
        | towards the top left | up and left
    up right = up and to the right | diagonally up and to the right | to the upper right
        | towards the top right | up and right
    down left = down and to the left | diagonally down and to the left | to the lower left
        | towards the bottom left | down and left
    down right = down and to the right | diagonally down and to the right | to the lower right
        | towards the bottom right | down and right
""")
# What is said of a scene, by its kind: noun, move and place of the first thing, `other` and `its move` of the second, `all`.
_SENTENCES = WORDS | phrases("""
    shown = we see | a video of | a short clip of | an animation of | a scene with
    pictured = we see | a picture of | an image of | a drawing of | a scene with
    video = there is | {shown}*5
    videos = there are | {shown}*5
    image = there is | {pictured}*5
    images = there are | {pictured}*5

    one picture = {a noun}{place}
    one still = {one picture}*4 | a still {noun}{place} | a motionless {noun}{place} | {video} {one picture}*2
    one = {one picture} {does move}*50 | {noun} {doing move}*12 | {a noun} {doing move}*21 | {a noun} is {doing move}*2
        | {video} {a noun} {doing move}*9 | {video} {a noun} that {does move}*6
    alike picture = {count} {many noun}
    alike still = {alike picture}*24 | {videos} {alike picture}*6 | {alike}*10
    alike = {alike picture} {move}*50 | {alike picture} {doing move}*35 | {alike picture} {each} {move}*15
    listed picture = {all}
    listed still = {all}*85 | {video} {all}*15
    listed = {listed still}, {told}*5 | {listed still}. {told}*3 | {listed still}, {told}, {others}
    two = {a noun} {does move} {while} {a other} {does its move}*8 | {a noun} {doing move} and {a other} {doing its move}
        | {a noun} {does move}. {a other} {does its move}
    two alike = {a noun} and {a other} {move} | {a noun} and {a other} both {move}
    related picture = {a noun} {relation} {a other}
    related some = {related picture}*85 | {a noun} is {relation} {a other}*15
    related still = {related some}*83 | {video} {related picture}*17
    related alike = {related some}, both {doing move}
    related = {related some}, {told}*7 | {related some}. {told}*3
    passes = {does pass}*4 | {doing pass}
    passing = {a noun} {passes}{fast} {relation} {a other}*55 | {a noun} {passes}{fast} {relation} {a other}, moving {way}*15
        | {a noun} {passes}{fast} {relation} {a other}, going {way}*15
        | {a noun} {does travel} {way}{fast}, passing {relation} {a other}*15
    in front of picture = {a noun} in front of {a other}*45 | {a other} behind {a noun}*35
        | {a noun} partly covers {a other}*10 | {a other} partly hidden behind {a noun}*10
    behind picture = {a noun} behind {a other}*35 | {a other} in front of {a noun}*45
        | {a other} partly covers {a noun}*10 | {a noun} partly hidden behind {a other}*10

    plain = {colour}*4 | plain {colour}
    gradient = {colour} and {its other} | {colour} to {its other} gradient | {its other} and {colour} gradient
    plain told = the {background} is {colour}
    gradient told = the background is a gradient of {colour} and {its other}
    on ground = {body} {on} {a ground} {background}*13 | {body}. {ground told}*3
    on or before ground = {on ground}*8 | on {a ground} {background}, {body} | against {a ground} {background}, {body}
""")
_OPENINGS = ("there", *_SENTENCES["shown"], *_SENTENCES["pictured"])
COUNTS = {1: "one", 2: "two", 3: "three"}
DETAIL = {1: 0.6, 2: 0.4, 3: 0.25}  # how often size and texture of one of so many things are said
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def caption(scene: Scene, rng: random.Random, image: bool = False) -> str:
    """One of many true captions.

    image: describe the first frame alone (what is seen at time 0, nothing about motion) instead of the clip.
    """
    things = [thing for thing in scene.things if not (image and thing.motion == "fading in")]
    relation = scene.relation if len(things) == 2 else "none"
    if relation == "none" or relation in OPPOSITE:
        rng.shuffle(things)
        relation = relation if things[:1] == [scene.things[0]] else OPPOSITE.get(relation, relation)
    body = "nothing"
    if things:
        alike = len(things) > 1 and len({(t.colour, t.shape, t.size, t.texture, t.motion, t.speed) for t in things}) == 1
        parts = _parts(things, relation, 0.5 if image else 0.6 if alike else DETAIL[len(things)], rng)
        body = say(_kind(things, relation, alike, image, rng), _SENTENCES, rng, parts)
        if image and rng.random() < 0.25:
            body = f"{say('images' if alike else 'image', _SENTENCES, rng)} {body}"
    if things and rng.random() >= (0.5 if image else 0.45):
        return body + ("." if rng.random() < 0.15 else "")
    ground = "plain" if scene.background.gradient == "plain" else "gradient"
    parts = {"body": body, "colour": scene.background.colour, "its other": scene.background.other}
    parts |= {"ground": say(ground, _SENTENCES, rng, parts), "ground told": say(f"{ground} told", _SENTENCES, rng, parts)}
    return say("on ground" if body.startswith(_OPENINGS) else "on or before ground", _SENTENCES, rng, parts)


def canonical_caption(scene: Scene) -> str:
    """The plainest true caption: colours, shapes, count, relation and motions; always the same one."""
    return caption(scene, Plainest())


def _kind(things: Sequence[Thing], relation: str, alike: bool, image: bool, rng: random.Random) -> str:
    """Which of _SENTENCES is said."""
    one, last = things[0], things[-1]
    moving = sum(thing.motion != "still" for thing in things)
    kind = "one" if len(things) == 1 else "alike" if alike else "related" if relation in OPPOSITE else "listed"
    if relation in ("in front of", "behind"):
        kind = relation
        if one.motion in DIRECTIONS:
            return "listed picture" if image else "passing"
    if image or kind == relation:
        return f"{kind} picture"
    if not moving and (kind != "one" or rng.random() >= 0.3):
        return f"{kind} still"
    if kind == "listed" and len(things) == 2 and not (moving < 2 and rng.random() >= 0.8):
        kind = "two"
    same = kind in ("two", "related") and (one.motion, one.speed) == (last.motion, last.speed)
    return f"{kind} alike" if same and rng.random() < 0.7 else kind


def _parts(things: Sequence[Thing], relation: str, detail: float, rng: random.Random) -> dict[str, str]:
    """What _SENTENCES leave open."""
    first, shapes = things[0], [say(thing.shape, WORDS, rng) for thing in things]
    nouns = [_noun(thing, rng, shape, detail) for thing, shape in zip(things, shapes, strict=True)]
    moves = [_move(thing, rng) for thing in things]
    short = relation != "none" and len(set(shapes)) == 2 and rng.random() < 0.9
    names = shapes if short else [f"{thing.colour} {thing.shape}" for thing in things]
    told = [
        f"the {name} {third_person(move)}"
        for thing, name, move in zip(things, names, moves, strict=True)
        if thing.motion != "still" or (relation != "none" and rng.random() < 0.3)
    ]
    return {
        "noun": nouns[0],
        "move": moves[0],
        "place": _place(first, rng) if first.motion in IN_PLACE and rng.random() < 0.3 else "",
        "other": nouns[-1],
        "its move": moves[-1],
        "all": listed([article(noun) for noun in nouns]),
        "count": say(COUNTS[len(things)], WORDS, rng),
        "each": "all" if len(things) == 3 else "both",
        "told": listed(told),
        "others": "the others stay still" if len(things) == 3 else "the other stays still",
        "relation": say(relation, WORDS, rng),
        "fast": " quickly" if first.speed == "quickly" and rng.random() < 0.4 else "",
        "way": TAILS.get(first.motion, ("",))[0],
    }


def _noun(thing: Thing, rng: random.Random, shape: str, detail: float) -> str:
    """Colour and shape (in the word given) with size and texture, each said with probability `detail`; no article."""
    noun = f"{say(thing.colour, WORDS, rng)} {shape}"
    if thing.texture != "plain" and rng.random() < detail + 0.1:
        before = rng.random() < 0.7
        noun = f"{say(thing.texture, WORDS, rng)} {noun}" if before else f"{noun} {say(f'with {thing.texture}', WORDS, rng)}"
    changes_size = thing.motion in ("growing", "shrinking")
    if not changes_size and rng.random() < (0.1 if thing.size == "medium" else detail):
        noun = f"{say(thing.size, WORDS, rng)} {noun}"
    return noun


def _move(thing: Thing, rng: random.Random) -> str:
    """What the thing does, in the plain form, with speed."""
    if thing.motion in TAILS and not (thing.motion in MOTION_VERBS and rng.random() < 0.3):
        verb, tail = say("travel", WORDS, rng), say(thing.motion, TAILS, rng)
    else:
        verb, _, tail = say(thing.motion, MOTION_VERBS, rng).partition(" ")
    if thing.speed == "normally" or rng.random() >= 0.75:
        return f"{verb} {tail}".strip()
    adverb = say(thing.speed, WORDS, rng)
    if tail and adverb != "fast" and rng.random() < 0.5 and verb in WORDS["travel"]:
        return f"{verb} {adverb} {tail}"
    return f"{verb} {tail} {adverb}" if tail else f"{verb} {adverb}"


def _place(thing: Thing, rng: random.Random) -> str:
    """Where a thing that stays in place is, after a space, or nothing when there is no short word for it."""
    side = "left" if thing.x < 0.36 else "right" if thing.x > 0.64 else ""
    level = "top" if thing.y < 0.36 else "bottom" if thing.y > 0.64 else ""
    is_middle = abs(thing.x - 0.5) < 0.08 and abs(thing.y - 0.5) < 0.08
    kind = "corner" if side and level else "side" if side else "level" if level else "middle" if is_middle else ""
    parts = {"side": side, "level": level, "other": "upper" if level == "top" else "lower"}
    return " " + say(f"{kind} place", WORDS, rng, parts) if kind else ""
