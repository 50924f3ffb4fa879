"""Contact sheets of prompts chosen beforehand: new weights, and old ones beside them, for the eye.

    python -m research.worlds_sheets --weights NEW --old OLD --out runs/sheets

24 prompts of each world, the emoji of benchmarks/sheets.py, and 12 that mix worlds: a JPEG each, five frames of a clip,
the new weights left. Each prompt has one seed, and nothing is drawn again.
"""

import argparse
import sys
import zlib
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.sheets import emoji_captions, shapes_prompts
from lumos.evaluation.run import usual_batch
from lumos.generate import Generator
from lumos.known_words import in_known_words
from lumos.media.sheet import contact_sheet
from research.worlds_prompts import CREATURES, SEEN_MOTIONS, read_prompts

COUNT, SIDE, COLUMNS = 24, 112, 5
MIXED = (
    "a fox beside a red circle",
    "a blue star moves over an octopus",
    "a horse gallops on a yellow background",
    "a rocket flies up in the snow",
    "two cats and a green triangle",
    "a knight and a pizza",
    "an emoji of a dog in a forest",
    "a shark swims past a pink heart",
    "a robot dancing on a light blue background",
    "a penguin walks on snow at night",
    "a large yellow moon above a wolf at night",
    "a striped square bounces beside a frog",
)


def sheets() -> dict[str, list[str]]:
    lists = {name: [asked.text for asked in read_prompts() if asked.list == name][:COUNT] for name in (CREATURES, SEEN_MOTIONS)}
    shapes = [prompt.text for prompt in shapes_prompts()]
    emoji = [caption for caption, _ in emoji_captions()]
    return {
        "shapes": shapes,
        "emoji": emoji,
        "stickers": lists[SEEN_MOTIONS],
        "creatures": lists[CREATURES],
        "mixed": list(MIXED),
    }


def made(generator: Generator, prompts: list[str]) -> Tensor:
    """COLUMNS small frames of each prompt's clip, [B, 3, COLUMNS, SIDE, SIDE]."""
    parts = []
    size = usual_batch(generator.device)
    for first in range(0, len(prompts), size):
        told = [in_known_words(prompt, generator.text.words).prompt for prompt in prompts[first : first + size]]
        pixels = generator(told, seed=[zlib.crc32(prompt.encode()) for prompt in prompts[first : first + size]])
        every = torch.linspace(0, pixels.shape[2] - 1, COLUMNS).round().long()
        frames = pixels[:, :, every.to(pixels.device)].float().transpose(1, 2).flatten(0, 1)
        parts.append(interpolate(frames, (SIDE, SIDE), mode="area").unflatten(0, (-1, COLUMNS)).transpose(1, 2).cpu())
        print(f"{first + len(told)} of {len(prompts)}", file=sys.stderr, flush=True)
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="the new weights")
    parser.add_argument("--old", help="weights to show beside them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sheets")
    parser.add_argument("--count", type=int, default=COUNT, help="prompts of each sheet")
    parser.add_argument("--device", default=None)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    generators = [Generator.from_folder(name, args.device) for name in filter(None, (args.weights, args.old))]
    for name, prompts in sheets().items():
        pictures = [contact_sheet(made(each, prompts[: args.count]), prompts[: args.count]) for each in generators]
        sheet = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height), "white")
        for number, picture in enumerate(pictures):
            sheet.paste(picture, (number * pictures[0].width, 0))
        sheet.save(args.out / f"{name}.jpg", quality=88)
        print(args.out / f"{name}.jpg")


if __name__ == "__main__":
    main()
