"""The captions that examples/emoji.py makes: as people type them, of the right clip, and never those of the built-in shapes."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from examples import emoji
from lumos.data.manifest import read_manifest
from lumos.data.worlds import Shapes, sample_captions

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_name_has_several_short_captions() -> None:
    """Every name that emoji_seen.txt knows, for `* cook` that of a man."""
    lines = (EXAMPLES / "emoji_seen.txt").read_text("utf-8").splitlines()
    names = {line.split(": ")[0].replace("* ", "man ") for line in lines}
    assert len(names) == len(lines) > 500
    shapes = set(sample_captions([Shapes()], 2_000, 0))
    for name in names:
        captions = emoji.captions({"label": name, "tags": ["animal", "yolo", "143"]})
        assert len(captions) == len(set(captions)) >= 8, name
        for caption in captions:
            assert caption == caption.lower().strip() and len(caption.split()) <= 25 and "WHO" not in caption
            assert "yolo" not in caption and caption not in shapes


IN_WORDS = {
    "octopus": "an octopus",
    "unicorn": "a unicorn",
    "man getting haircut": "a man getting a haircut",
    "woman cook": "a woman cook",
    "people wrestling": "people wrestling",
    "family: man, woman, boy": "a family of a man, a woman and a boy",
    "person: bald": "a bald person",
    "seven-thirty": "a clock at seven-thirty",
}


def test_names_are_said_as_people_say_them() -> None:
    assert {label: emoji.in_words(label) for label in IN_WORDS} == IN_WORDS
    captions = emoji.captions({"label": "Toaster", "tags": ["bread", "kitchen"]})
    assert "toaster emoji" in captions and "a toaster, bread, kitchen" in captions


def rows_of(folder: Path, moving: list[str], still: list[str], *lottie: Path) -> list[dict[str, Any]]:
    """What emoji.py makes of a folder of pictures with these names."""
    frames = [Image.new("RGBA", (16, 16), colour) for colour in ("red", "blue")]
    for stem in moving:
        frames[0].save(folder / f"{stem}.webp", save_all=True, append_images=frames[1:], duration=100)
    for stem in still:
        frames[0].save(folder / f"{stem}.webp")
    known = [("1F419", "octopus", 3), ("1F44D", "thumbs up", 1), ("1F600", "grinning face", 0), ("2764", "red heart", 0)]
    known += [("1F448", "backhand index pointing left", 1), ("1F1EB-1F1EE", "flag: Finland", 9), ("1F45F", "running shoes", 5)]
    (folder / "data.json").write_text(json.dumps([{"hexcode": code, "label": name, "group": g} for code, name, g in known]))
    emoji.main(folder, folder / "data.json", folder / "rows.jsonl", *lottie)
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_moving_files_with_a_name_become_rows(tmp_path: Path) -> None:
    rows_of(tmp_path, ["1f419", "1f44d", "1f44d-1f3fb", "e000", "1f448"], ["1f600"])
    entries = read_manifest(tmp_path / "rows.jsonl")
    assert [Path(entry.path).stem for entry in entries] == ["1f419", "1f448", "1f44d"]
    assert [entry.mirror for entry in entries] == [True, False, True] and not any(entry.problem for entry in entries)


def test_stickers_are_still_ones_and_lotties_too_and_have_a_noun_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "lottie").mkdir()
    (tmp_path / "lottie/2764_fe0f.json").write_text("{}")
    lines = rows_of(tmp_path, ["1f419"], ["1f600", "1f1eb-1f1ee", "1f448", "1f45f"], tmp_path / "lottie")
    nouns = {Path(line["path"]).stem: line["noun"] for line in lines}
    assert nouns == {"1f419": "octopus", "1f600": "grinning face", "1f448": "", "1f45f": "", "2764_fe0f": "red heart emoji"}
    assert [Path(line["path"]).stem for line in lines if "waving" in str(line["captions"])] == ["1f419"]
