"""Animated emoji -> a manifest for `lumos prepare`: examples/emoji.md says where the files come from, and what to do next.

python examples/emoji.py emoji/assets emoji/data.json emoji/clips.jsonl
python examples/emoji.py emoji/assets emoji/data.json emoji/stickers.jsonl noto/

In: a folder of CODEPOINTS.webp, emojibase's names and keywords, and emoji_seen.txt beside this file: what somebody who looked
at the clips saw. Out: a line for each animated emoji, skin-tone variants left out, with about ten captions as people would type
them, and whether they stay true in a mirror. With a folder of CODEPOINTS.json (Lottie) the manifest is one of the stickers world:
still emoji and the Lotties too, and the noun of each, where it can be talked about.
"""

import json
import re
import sys
from pathlib import Path

from PIL import Image

SEEN = Path(__file__).with_name("emoji_seen.txt")
SKIN_TONES = re.compile("1f3f[b-f]")
ONE_WAY_GROUPS = (2, 8, 9)  # components, symbols and flags: writing, arrows
ONE_WAY = re.compile(
    r"\b(left|right|leftwards|rightwards|o.?clock|quarter|waxing|waning|crescent|keycap|button|arrow|input|music|musical"
    r"|flag|hundred|clock|watch|calendar|newspaper|mark|letter|abc)\b"
)
# Chat words and half phrases among the keywords: they say when an emoji is sent, not what it shows.
CHATTER = re.compile(
    r"adorbs|apprehend|ask|babe|bad|bae|bestie|bff|bro|citation|closed|cya|date|dating|double|dunno|feels|goo|good"
    r"|goodnight|gtg|handle|haha|hehe|hold|identical|ily|know|later|lit|litaf|lmao|lol|mad|move|night|nice|not|oh"
    r"|omg|over|outtie|point|probing|pulled|range|rofl|roflmao|smh|something|sorry|soulmate|tale|tee|together|tool"
    r"|ttfn|ttyl|twinsies|undercover|way|what|whatever|wow|xoxo|yolo|you|young|zodiac"
)
# "A red heart" is a caption of the built-in shapes, too; here it says that an emoji is meant.
SHAPE = re.compile(
    r"^((?:an? |two )?(?:shining )?(?:(?:red|orange|yellow|green|blue|purple|pink|brown|black|white) )?(?:heart|star))(s?)"
    r"(?= on a | in | jumping| beating| getting| growing| sparkling|,|$)"
)
WHO = re.compile(r"(man|woman|person)\b[: ]*")
CLOCK = re.compile(r"(o'clock|-thirty)$")
MEMBERS = {"family": "a family of", "kiss": "a kiss between", "couple with heart": "a couple with a heart,"}
NEEDS_ARTICLE = "veil|turban|tuxedo|white cane|skullcap|headscarf|halo|manual|motorized|thermometer|monocle|ribbon|bow|suit"
NO_ARTICLE = re.compile(
    r"(men|women|people|two (?=h)|mrs?|mx|santa|zzz|thumbs|star-struck|rolling|fog|wood|fire$|breast-feeding|high voltage|palms"
    r"|nail polish|hundred points)(?![a-z])"
)


def main(assets: Path, names: Path, out: Path, lotties: Path | None = None) -> None:
    known = {key(entry["hexcode"]): entry for entry in json.loads(names.read_text("utf-8"))}
    lines, unnamed = [], 0
    for path in (*sorted(assets.glob("*.webp")), *(sorted(lotties.glob("*.json")) if lotties else [])):
        entry = known.get(key(path.stem))
        if SKIN_TONES.search(path.stem) or (lotties is None and not is_animated(path)):
            continue
        if entry is None:
            unnamed += 1
            continue
        moving = path.suffix == ".webp" and is_animated(path)
        if path.suffix == ".webp" and not moving and entry.get("group") in ONE_WAY_GROUPS:
            continue  # hundreds of flags, letters and arrows that nobody would ask for
        words = captions(entry, seen=moving)  # what was seen was seen in the WebP; a Lottie may move otherwise
        line = {"path": str(path.absolute()), "captions": words, "mirror": may_be_mirrored(entry)}
        lines.append(line if lotties is None else {**line, "noun": noun(entry)})
    out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(f"{len(lines)} emoji in {out}, {unnamed} without a name left out")


def is_animated(path: Path) -> bool:
    with Image.open(path) as image:
        return getattr(image, "n_frames", 1) > 1


def noun(entry: dict) -> str:
    """What follows "a small": "octopus", "man with a beard"; empty for what has no such word, or looks other in a mirror."""
    thing = in_words(plain(entry["label"]))
    if not re.match("an? ", thing) or entry.get("group") in ONE_WAY_GROUPS or ONE_WAY.search(thing):
        return ""
    return re.sub("^an? ", "", SHAPE.sub(_as_emoji, thing))


def captions(entry: dict, seen: bool = True) -> list[str]:
    """The name, alone and in sentences; what was seen in the clip; the keywords. All are true of the same clip."""
    label = plain(entry["label"])
    thing, told = in_words(label), seen_in(label) if seen else []
    found = [label.replace(":", ""), thing, f"{label.replace(':', '')} emoji", f"an animated emoji of {thing}"]
    found += [f"{thing} on a white background", f"a cartoon of {thing}", *told, f"an emoji of {told[0]}" if told else ""]
    bare = re.sub("^an? ", "", thing)
    if bare != thing:
        found += [f"an animated {bare}"]
    found += [f"{told[-1]}, animated"] if told else []
    words = [plain(tag) for tag in entry.get("tags", []) if tag.isalpha() and len(tag) > 2 and not CHATTER.fullmatch(tag)]
    new = [word for word in words if word not in re.split(r"\W", label)]
    if new:
        found += [f"{thing}, {', '.join(new[:3])}"]
    if new and not told:
        found += [f"{thing}, {' and '.join(new[-2:])}", f"{new[0]} {label} emoji"]
    return list(dict.fromkeys(SHAPE.sub(_as_emoji, caption) for caption in found if caption))


def _as_emoji(shape: re.Match) -> str:
    return f"{shape[1]} emojis" if shape[2] else f"{shape[1]} emoji"


def seen_in(label: str) -> list[str]:
    """What somebody saw in the clip of this name. `* cook` stands for cook, man cook, woman cook and person cook."""
    if CLOCK.search(label):
        return ["a round grey clock with turning hands", f"a clock showing {label}"]
    lines = dict(line.split(": ", 1) for line in SEEN.read_text("utf-8").splitlines())
    if label.startswith("family:"):
        return ["a happy family", f"a family with {label.count(',') + 1} people"]
    who = WHO.match(label)
    does = label[who.end() :] if who else label
    found = lines.get(label) or lines.get(f"* {does}") or lines.get(label.split(":")[0]) or ""
    return [words for words in found.replace("WHO", f"a {who[1] if who else 'person'}").split("; ") if words]


def in_words(label: str) -> str:
    """The name as one would say it: an octopus, men wrestling, a man getting a haircut, a family of a man and a boy."""
    members = re.match("(family|couple with heart|kiss): (.*)", label)
    if members:
        *first, last = (f"a {member}" for member in members[2].split(", "))
        return f"{MEMBERS[members[1]]} {', '.join(first)} and {last}"
    if CLOCK.search(label):
        return f"a clock at {label}"
    label = re.sub("^(man|woman|person): bald$", r"bald \1", label)
    label = re.sub(r": beard$", " with a beard", label).replace(":", " with")
    label = re.sub(r"^((?:man|woman|person) [a-z]+ing) (?!weights|no|ok|water|handball|hands)", r"\1 a ", label)
    label = re.sub(rf"\b(with|in) (?=({NEEDS_ARTICLE})\b)", r"\1 a ", label)
    head = re.split(r" (?:with|in|on|of|and|holding|behind) ", label)[0].split()
    person = re.match(r"(man|woman|person|face)\b", label)
    many = re.search(r"[^suo]s$", head[-1]) or (head[-1].endswith("ing") and len(head) > 1)
    if NO_ARTICLE.match(label) or (many and not person):
        return label
    return f"{'an' if re.match('(?!uni|one|ewe)[aeiou]|hour', label) else 'a'} {label}"


def may_be_mirrored(entry: dict) -> bool:
    """Whether its captions stay true in a mirror: no writing, clocks, flags, or anything called left or right."""
    words = " ".join(plain(word) for word in [entry["label"], *entry.get("tags", [])])
    return entry.get("group") not in ONE_WAY_GROUPS and not ONE_WAY.search(words)


def plain(text: str) -> str:
    """Lower case without typographic marks."""
    return " ".join(re.sub(r"[^a-z0-9',.:!-]+", " ", text.lower().replace("\u2019", "'")).split())


def key(hexcode: str) -> str:
    """Code points in lower case; the variation selector comes and goes, so it does not count."""
    return hexcode.lower().replace("_", "-").replace("-fe0f", "").lstrip("0")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
