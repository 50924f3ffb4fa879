"""Animated emoji -> a manifest for `lumos prepare`: examples/emoji.md says where the files come from, and what to do next.

python examples/emoji.py emoji/assets emoji/data.json emoji/clips.jsonl

In: a folder of CODEPOINTS.webp and emojibase's names and keywords. Out: a line for each animated emoji, skin-tone variants left
out, with several captions, and whether they stay true in a mirror.
"""

import json
import re
import sys
from pathlib import Path

from PIL import Image

SKIN_TONES = re.compile("1f3f[b-f]")
ONE_WAY_GROUPS = (2, 8, 9)  # components, symbols and flags: writing, arrows
ONE_WAY = re.compile(
    r"\b(left|right|leftwards|rightwards|o.?clock|quarter|waxing|waning|crescent|keycap|button|arrow|input|music|musical"
    r"|flag|hundred|clock|watch|calendar|newspaper|mark|letter|abc)\b"
)


def main(assets: Path, names: Path, out: Path) -> None:
    known = {key(entry["hexcode"]): entry for entry in json.loads(names.read_text("utf-8"))}
    count = unnamed = 0
    with out.open("w", encoding="utf-8") as file:
        for path in sorted(assets.glob("*.webp")):
            entry = known.get(key(path.stem))
            if SKIN_TONES.search(path.stem):
                continue
            with Image.open(path) as image:
                if image.n_frames == 1:
                    continue
            if entry is None:
                unnamed += 1
                continue
            label, tags = plain(entry["label"]), [plain(tag) for tag in entry.get("tags", []) if tag.isalpha() and len(tag) > 2]
            mirror = entry.get("group") not in ONE_WAY_GROUPS and not ONE_WAY.search(" ".join([label, *tags]))
            line = {"path": str(path.absolute()), "captions": captions(label, tags), "mirror": mirror}
            file.write(json.dumps(line) + "\n")
            count += 1
    print(f"{count} animated emoji in {out}, {unnamed} without a name left out")


def captions(label: str, tags: list[str]) -> list[str]:
    """The name, the name in sentences, and with keywords: all true of the same clip."""
    thing = with_article(label)
    new = [tag for tag in tags if tag not in label.split()]
    found = [label, thing, f"{thing} on a white background", f"an animated emoji of {thing}", f"a cartoon of {thing}"]
    if new:
        found += [f"{thing}, {', '.join(new[:3])}", f"{label}: {', '.join(new[-3:])}", " ".join(tags[:5])]
        found += [f"an emoji of {thing}, {tag}" for tag in new[:2]]
    return list(dict.fromkeys(found))


def with_article(label: str) -> str:
    """An octopus, men wrestling, rolling on the floor: plurals and doings go without."""
    head = re.split(r" (?:with|in|on|of|and|holding|wearing|running|walking) ", label)[0].split()
    many = re.match(r"(men|women|people|hands|eyes)\b", label) or re.search(r"[^su]s$", head[-1])
    if many or head[-1].endswith(("ing", "struck")):
        return label
    return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def plain(text: str) -> str:
    """Lower case without typographic marks."""
    return " ".join(re.sub(r"[^a-z0-9',.!-]+", " ", text.lower().replace("\u2019", "'")).split())


def key(hexcode: str) -> str:
    """Code points in lower case; the variation selector comes and goes, so it does not count."""
    return hexcode.lower().replace("-fe0f", "").lstrip("0")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
