"""Contact sheets of sentences to video and first frames to video, for the eye: 24 emoji captions and 24 of shapes.

    python benchmarks/sheets.py --weights runs/emoji/model --pictures emoji/pictures --out sheets/       (--count 2 to rehearse)

The captions were chosen before any model was trained on the emoji; each has one seed, and nothing is drawn again. Writes
SHEET.png (five frames of each clip) and SHEET.webp (all clips moving) for text_emoji, text_shapes, image_emoji and image_shapes.
Without --pictures (shards of emoji clips, examples/emoji.md) there is no image_emoji. Needs neither PyAV nor a GPU.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lumos.config import PACKAGED
from lumos.data.shards import ShardReader, open_shards
from lumos.evaluation.prompts import Prompt, benchmark
from lumos.evaluation.run import usual_batch
from lumos.generate import Generator
from lumos.media.picture import of_rgb
from lumos.media.pixels import to_float
from lumos.media.sheet import contact_sheet
from lumos.media.video import write_video
from lumos.worlds.shapes.render import pack, render

# In words that no training caption has, and the code points of the emoji whose first frame the image to video starts from.
NEW_WORDS = (
    ("a smiling octopus waving its arms", "1f419"),
    ("a little chick hatching from its egg", "1f423"),
    ("a blue whale squirting water into the air", "1f433"),
    ("a smiley that wears cool sunglasses", "1f60e"),
    ("a sad smiley crying a big tear", "1f622"),
    ("a smiley winking with its tongue out", "1f61c"),
    ("someone clapping their hands", "1f44f"),
    ("a birthday cake with three burning candles", "1f382"),
    ("a red alarm clock that rings", "23f0"),
    ("a rocket flying into space", "1f680"),
    ("a rain cloud with falling drops", "1f327-fe0f"),
    ("a snowman wearing a blue scarf", "26c4"),
)
# Captions of the training manifest.
KNOWN_WORDS = (
    ("a penguin waddling from side to side", "1f427"),
    ("a monkey covering its eyes", "1f648"),
    ("an animated unicorn", "1f984"),
    ("a face with tears of joy", "1f602"),
    ("an angry red smiley", "1f621"),
    ("red heart emoji", "2764-fe0f"),
    ("a broken heart", "1f494"),
    ("thumbs up", "1f44d"),
    ("a hand waving hello", "1f44b"),
    ("a cup of coffee", "2615"),
    ("christmas tree", "1f384"),
    ("a red race car driving fast", "1f3ce-fe0f"),
)
COUNT = len(NEW_WORDS) + len(KNOWN_WORDS)
FRAMES, SIDE = 25, 256


def emoji_captions() -> list[tuple[str, str]]:
    """New and known words in turn, so that a part of the list has both."""
    return [pair for both in zip(NEW_WORDS, KNOWN_WORDS, strict=True) for pair in both]


def shapes_prompts() -> list[Prompt]:
    """Every fourth held-out prompt of text to video, whatever it asks for."""
    held_out = [prompt for prompt in benchmark() if prompt.split == "held-out" and prompt.task == "text to video"]
    return held_out[::4][:COUNT]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=PACKAGED, help=f"name of weights in the package, or a folder (default: {PACKAGED})")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sheets")
    parser.add_argument("--pictures", default=None, help="picture shards of the emoji, for image_emoji")
    parser.add_argument("--count", type=int, default=COUNT, help=f"captions of each sheet (default: {COUNT})")
    parser.add_argument("--seed", type=int, default=0, help="of the first caption; the next have the next (default: 0)")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda if there is one)")
    args = parser.parse_args()
    if not 1 <= args.count <= COUNT:
        parser.error(f"--count must be 1 to {COUNT}, got {args.count}")
    generator = Generator.from_folder(args.weights, args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    emoji, shapes = emoji_captions()[: args.count], shapes_prompts()[: args.count]
    words = {"emoji": [caption for caption, _ in emoji], "shapes": [prompt.text for prompt in shapes]}
    first = {"shapes": [render(pack([prompt.scene]), 1, SIDE)[0] for prompt in shapes]}
    if args.pictures:
        first["emoji"] = first_frames(args.pictures, [stem for _, stem in emoji])
    for name, captions in words.items():
        save(args.out / f"text_{name}", generator, captions, from_text(generator, captions, args.seed))
    for name, frames in first.items():
        save(args.out / f"image_{name}", generator, words[name], from_image(generator, words[name], frames, args.seed))


def from_text(generator: Generator, captions: list[str], seed: int) -> Tensor:
    """Clips of captions, pixels_BCFHW."""
    size = usual_batch(generator.device)
    made = []
    for start in range(0, len(captions), size):
        part = captions[start : start + size]
        made.append(generator(part, frames=FRAMES, seed=[seed + start + i for i in range(len(part))]).cpu())
        say(f"{start + len(part)} of {len(captions)} from text")
    return torch.cat(made)


def from_image(generator: Generator, captions: list[str], first: list[Tensor], seed: int) -> Tensor:
    """Clips that go on from a frame each, one at a time, pixels_BCFHW."""
    made = []
    for number, (caption, given_CFHW) in enumerate(zip(captions, first, strict=True)):
        made.append(generator(caption, frames=FRAMES, seed=seed + number, given=given_CFHW).cpu())
        say(f"{number + 1} of {len(captions)} from an image")
    return torch.cat(made)


def first_frames(folder: str, stems: list[str]) -> list[Tensor]:
    """The first frame of each emoji, found by the name of the file that it was made from: pixels_CFHW of one frame."""
    index = open_shards(folder)
    sources = ShardReader(index, ["source"])
    rows = {Path(sources.row(row)["source"]).stem: row for row in reversed(range(len(index)))}
    reader = ShardReader(index, ["clip"])
    found = []
    for stem in stems:
        if stem not in rows:
            raise SystemExit(f"{folder} must hold the emoji {stem}, got none of that name; prepare all of them")
        rgb_HWC = reader.row(rows[stem])["clip"][0]
        found.append(to_float(torch.from_numpy(np.moveaxis(of_rgb(rgb_HWC).draw(SIDE, SIDE), 2, 0)))[:, None])
    return found


def save(stem: Path, generator: Generator, captions: list[str], pixels_BCFHW: Tensor) -> None:
    """Two columns of captions with five frames each, the odd ones left; and everything moving in six columns."""
    columns = [contact_sheet(pixels_BCFHW[side::2], captions[side::2]) for side in range(min(2, len(captions)))]
    sheet = Image.new("RGB", (sum(column.width for column in columns), max(column.height for column in columns)), "white")
    for number, column in enumerate(columns):
        sheet.paste(column, (number * columns[0].width, 0))
    sheet.save(stem.with_suffix(".png"))
    B, C, F, H, W = pixels_BCFHW.shape
    across = min(6, B)
    tiles = torch.cat([pixels_BCFHW, pixels_BCFHW.new_ones(-B % across, C, F, H, W)]).unflatten(0, (-1, across))
    moving_CFHW = tiles.permute(2, 3, 0, 4, 1, 5).reshape(C, F, -1, across * W)
    write_video(stem.with_suffix(".webp"), moving_CFHW, generator.config.video.fps, overwrite=True)
    print(stem.with_suffix(".png"), stem.with_suffix(".webp"))


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
