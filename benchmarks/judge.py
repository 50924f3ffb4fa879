"""How often the judge is right where the truth is known: on rendered clips, and on what a tokenizer makes of them.

`python benchmarks/judge.py` prints a share for every attribute; `--tokenizer none` judges the renders themselves. Wrong marks on
reconstructions are the judge's or the tokenizer's: `--sheet FILE` draws the clips with one, original above reconstruction.
"""

import argparse
import random
from collections import Counter, defaultdict
from pathlib import Path

import torch

from lumos.config import PACKAGED
from lumos.evaluation.judge.judge import judge
from lumos.generate import pick_device
from lumos.media.sheet import contact_sheet
from lumos.tokenizer.model import load_tokenizer
from lumos.weights import find_weights
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import Scene, sample_scene


def scenes_of(kind: str, count: int, seed: int) -> list[Scene]:
    """Random scenes, every second of held-out pairs: all kinds, of several things that differ, or with an order in depth."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        scene = sample_scene(rng, held_out=len(found) % 2 == 1)
        several = len({(thing.colour, thing.shape, thing.motion) for thing in scene.things}) > 1
        if kind == "all" or (several if kind == "several" else scene.relation in ("in front of", "behind")):
            found.append(scene)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("all", "several", "occlusion"), default="all", help="(default: all)")
    parser.add_argument("--clips", type=int, default=200, help="(default: 200)")
    parser.add_argument("--seed", type=int, default=13, help="(default: 13)")
    parser.add_argument("--tokenizer", default=PACKAGED, help=f"weights of the package, a folder, or none (default: {PACKAGED})")
    parser.add_argument("--sheet", type=Path, default=None, help="PNG of the clips with a mark that is not right")
    parser.add_argument("--device", default=None, help="cpu or cuda, of the tokenizer (default: cuda if there is one)")
    args = parser.parse_args()
    device = pick_device(args.device)
    tokenizer = None if args.tokenizer == "none" else load_tokenizer(find_weights(args.tokenizer, "tokenizer")).to(device)
    bf16 = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    marks: dict[str, Counter[bool | None]] = defaultdict(Counter)
    pictures, captions = [], []
    for scene in scenes_of(args.kind, args.clips, args.seed):
        pixels_BCFHW = truth_BCFHW = render(pack([scene]), 17)
        if tokenizer is not None:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                pixels_BCFHW = tokenizer.decode(tokenizer.encode(truth_BCFHW.to(device))).float().clamp(-1, 1).cpu()
        verdict = judge(scene, pixels_BCFHW[0])
        for name, mark in verdict.marks.items():
            marks[name][mark] += 1
        if verdict.notes and len(pictures) < 40:
            pictures.append(torch.cat([truth_BCFHW[0], pixels_BCFHW[0]], dim=2))
            captions.append(", ".join(verdict.notes))
    for name, counts in marks.items():
        of = counts.total()
        print(f"{name:<12} {100 * counts[True] / of:6.2f} % of {of}, {counts[False]} wrong, {counts[None]} unclear")
    if args.sheet and pictures:
        contact_sheet(torch.stack(pictures), captions, columns=9).save(args.sheet)


if __name__ == "__main__":
    main()
