"""The first thing to measure of a model: 64 held-out one-object prompts, dominant colour and direction of motion from pixels.

`python -m lumos.evaluation.one_object --weights tiny` prints both shares with their counts. Neither function of the judge
that is used here knows the scene.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.prompts import one_object
from lumos.evaluation.scores import wilson
from lumos.generate import Generator
from lumos.shapes.judge import direction, dominant_colour
from lumos.video import contact_sheet


def measure_one_object(
    generator: Generator,
    count: int = 64,
    seed: int = 0,
    batch: int = 16,
    sampler: SamplerConfig | None = None,
    sheet: Path | None = None,
) -> dict[str, Any]:
    """Shares of clips of 17 frames whose dominant colour and direction of motion are as told, and what was seen instead.

    sheet: a PNG to draw all clips on.
    """
    prompts = one_object(count)
    pixels, seen = [], []
    for start in range(0, count, batch):
        texts = [prompt.text for prompt in prompts[start : start + batch]]
        pixels_BCFHW = generator(texts, frames=17, seed=seed + start, sampler=sampler).cpu()
        seen += [(dominant_colour(pixels_CFHW), direction(pixels_CFHW)) for pixels_CFHW in pixels_BCFHW]
        pixels += list(pixels_BCFHW) if sheet else []
        print(f"{len(seen)} of {count} clips", file=sys.stderr, flush=True)
    wanted = [(prompt.scene.things[0].colour, prompt.scene.things[0].motion) for prompt in prompts]
    if sheet:
        captions = [f"{prompt.text} (saw {colour}, {way})" for prompt, (colour, way) in zip(prompts, seen, strict=True)]
        contact_sheet(torch.stack(pixels), captions).save(sheet)
    wrong = [
        {"prompt": prompt.text, "colour": saw[0], "direction": saw[1]}
        for prompt, want, saw in zip(prompts, wanted, seen, strict=True)
        if want != saw
    ]
    shares = {
        name: _share([want[i] == saw[i] for want, saw in zip(wanted, seen, strict=True)])
        for i, name in enumerate(("colour", "direction"))
    }
    return {**shares, "wrong": wrong}


def _share(right: list[bool]) -> dict[str, float]:
    low, high = wilson(sum(right), len(right))
    return {"right": sum(right), "of": len(right), "score": sum(right) / len(right), "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description="Dominant colour and direction of motion over held-out one-object prompts.")
    parser.add_argument("--weights", default="tiny", help="name of weights in the package, or a folder (default: tiny)")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--count", type=int, default=64, help="prompts (default: 64)")
    parser.add_argument("--batch", type=int, default=16, help="clips at a time (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--sheet", type=Path, default=None, help="PNG to draw all clips on")
    args = parser.parse_args()
    generator = Generator.from_folder(args.weights, args.device)
    report = measure_one_object(generator, args.count, args.seed, args.batch, sheet=args.sheet)
    for name in ("colour", "direction"):
        share = report[name]
        print(
            f"{name}: {share['right']} of {share['of']} right, {100 * share['score']:.1f} % "
            f"(95 %: {100 * share['low']:.1f} to {100 * share['high']:.1f})"
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
