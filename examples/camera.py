"""The same sentences and seeds without and with an adapter, side by side: examples/camera.md says where the adapter comes from.

    python examples/camera.py --lora runs/camera/lora --out before_after.png

Left: the weights alone. Right: with the adapter. The last two sentences are in no caption.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from lumos.config import PACKAGED
from lumos.evaluation.run import usual_batch
from lumos.generate import Generator
from lumos.media.sheet import contact_sheet

PROMPTS = (
    "a person signs the word milk",
    "a woman in an orange sweater signs book",
    "a man in a black sweater with a white skull signs no",
    "a white car driving up on a grey road, seen from above",
    "a red car on a road",
    "an empty grey road seen from above",
    "a woman in an orange sweater signs milk",
    "two cars on a grey road",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=PACKAGED, help=f"what the adapter was trained on (default: {PACKAGED})")
    parser.add_argument("--lora", type=Path, required=True, help="the adapter: RUN/lora")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--count", type=int, default=len(PROMPTS), help=f"sentences (default: {len(PROMPTS)})")
    parser.add_argument("--seed", type=int, default=0, help="of the first sentence; the next have the next (default: 0)")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda if there is one)")
    args = parser.parse_args()
    prompts = PROMPTS[: args.count]
    sides = []
    for name, lora in (("without", None), ("with adapter", args.lora)):
        generator = Generator.from_folder(args.weights, args.device, lora=lora)
        size = usual_batch(generator.device)
        made = []
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            made.append(generator(part, frames=25, seed=[args.seed + start + i for i in range(len(part))]).cpu())
        sides.append(contact_sheet(torch.cat(made), [f"{prompt} ({name})" for prompt in prompts]))
    sheet = Image.new("RGB", (sum(side.width for side in sides), sides[0].height), "white")
    sheet.paste(sides[0], (0, 0))
    sheet.paste(sides[1], (sides[0].width, 0))
    sheet.save(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
