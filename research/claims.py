"""The paper's claims on small models: `python -m research.claims CLAIM ... --out FOLDER --minutes M`.

A claim is data: which models are trained (seed after seed, all for the same time), and with which settings each is sampled and
judged. Every model and score is a line of a file as soon as it is there; the same command goes on, other claims share models,
and the command ends by itself in time. `research/claims_report.py` makes tables and plots of the lines.
"""

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lumos.config import PACKAGED
from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.judge.judge import judge
from lumos.evaluation.prompts import Prompt
from lumos.evaluation.run import usual_batch, usual_workers, worker_pool
from lumos.files import add_line, read_lines
from lumos.generate import Generator, pick_device
from lumos.media.pixels import to_bytes, to_float
from lumos.tokenizer.model import load_tokenizer
from lumos.weights import find_weights
from research.latency import measure_latency
from research.small_runs import FPS, FULL, TOY, Scale, Size, Variant, World, claim_prompts, generator_from, train

RUNS, SCORES, LATENCY = "runs.jsonl", "scores.jsonl", "latency.jsonl"
SEEN = ("count", "colour", "shape", "motion", "direction", "wholeness", "steadiness", "flicker", "permanence")
ALL_RIGHT = ("count", "colour", "shape", "motion", "direction")  # of a prompt: what its words promise
SQUARE: Size = (128, 128)
TRAINED_SIZES: tuple[Size, ...] = (SQUARE, (96, 160), (160, 96))


@dataclass(frozen=True)
class Setting:
    """How a model is sampled: changes to the scale's sampler, length (None = as trained) and size (None = the first trained)."""

    label: str
    changes: dict[str, Any] = field(default_factory=dict)
    frames: int | None = None
    size: Size | None = None


@dataclass(frozen=True)
class Claim:
    """What is compared. `says` is the claim, the paper's unless `ours`."""

    says: str
    variants: tuple[Variant, ...]
    settings: tuple[Setting, ...]
    seeds: int = 3
    ours: bool = False


OWN = Setting("own")
BASE = Variant()
RATIOS = tuple(round(0.1 * i, 1) for i in range(10))

CLAIMS: dict[str, Claim] = {
    "rope": Claim(
        "1-D RoPE < M-RoPE < M-RoPE interleaved < MM-RoPE (scaled positions), in loss and quality",
        (BASE, Variant(rope="1d"), Variant(rope="m-rope"), Variant(rope="m-rope-interleaved")),
        (OWN,),
    ),
    "masks": Claim(
        "temporal tube masks (with a partly masked history) beat random ones and diffusion forcing: later frames are no easier",
        (BASE, Variant(mask="random"), Variant(mask="diffusion-forcing")),
        (OWN, Setting("history 0", {"history": 0.0})),
    ),
    "attention": Claim(
        "a frame whose ids all see each other beats purely causal attention", (BASE, Variant(causal=True)), (OWN,)
    ),
    "history": Claim(
        "a model trained with tubes collapses without a partly masked history, and is best near 0.7",
        (BASE, Variant(mask="random")),
        (
            *(Setting(f"random {ratio}", {"history": ratio}) for ratio in RATIOS),
            *(
                Setting(f"{places} {ratio}, no noise", {"history": ratio, "noise": 0.0, "sampler": kind})
                for ratio in (0.5, 0.7, 0.9)
                for places, kind in (("random", "paper"), ("periodic", "released"))
            ),
        ),
    ),
    "sampling": Claim(
        "more steps and some guidance help, then level off",
        (BASE,),
        tuple(
            Setting(f"{steps} steps, guidance {guidance}", {"steps": steps, "guidance": guidance})
            for steps in (4, 8, 16, 32)
            for guidance in (1.0, 2.0, 3.0, 5.0, 8.0)
        ),
    ),
    "longer": Claim(
        "a model makes more frames than it was trained on",
        (BASE,),
        tuple(Setting(f"{frames} frames", frames=frames) for frames in (17, 33, 49)),
    ),
    "optimizer": Claim(
        "Muon for the layers' matrices beats AdamW at equal time and learning rate",
        (BASE, Variant(muon=False)),
        (OWN,),
        ours=True,
    ),
    "aspect": Claim(
        "one model makes several aspect ratios, also unseen ones",
        (Variant(sizes=TRAINED_SIZES),),
        (
            *(Setting(f"{width}x{height}, seen", size=(height, width)) for height, width in TRAINED_SIZES),
            *(Setting(f"{width}x{height}, unseen", size=(height, width)) for height, width in ((96, 192), (192, 96), (128, 160))),
        ),
    ),
}


def run_claim(
    name: str,
    out: Path,
    world: World,
    end: float = math.inf,
    workers: int | None = None,
    seeds: int | None = None,
    first_seed: int = 0,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> bool:
    """Train and judge what a claim needs and `out` has not yet; True when all of it is there. ValueError for another `out`.

    end: time (`time.monotonic`) to be done at: nothing is begun that would take longer.
    """
    claim, scale = CLAIMS[name], world.scale
    out.mkdir(parents=True, exist_ok=True)
    _same_scale(out, scale)
    runs = {(line["variant"], line["seed"]) for line in read_lines(out / RUNS)}
    scores = {(line["variant"], line["seed"], line["label"], json.dumps(line["sampler"])) for line in read_lines(out / SCORES)}
    prompts, longest, slack = claim_prompts(scale.prompts), 0.0, 0.25 * scale.seconds
    with worker_pool(usual_workers(world.device) if workers is None else workers) as judges:
        # Seed after seed, so that a run that ends early has compared everything at least once.
        for seed, variant in itertools.product(range(first_seed, first_seed + (seeds or claim.seeds)), claim.variants):
            folder = out / "models" / f"{variant.name}_{seed}"
            if (variant.name, seed) not in runs:
                if time.monotonic() + scale.seconds + slack > end:
                    return _out_of_time(say)
                began = time.monotonic()
                curve = train(variant, seed, world, folder, say)
                add_line(out / RUNS, {"variant": variant.name, "seed": seed, **curve})
                slack = 1.1 * (time.monotonic() - began - scale.seconds)
            generator: Generator | None = None
            for setting in claim.settings:
                sampler = replace(scale.sampler, **setting.changes)
                if (variant.name, seed, setting.label, json.dumps(asdict(sampler))) in scores:
                    continue
                if time.monotonic() + 1.5 * longest > end:
                    return _out_of_time(say)
                began = time.monotonic()
                generator = generator or generator_from(folder, world.device)
                marks = score(generator, prompts, setting, sampler, scale, seed, judges)
                line = {"variant": variant.name, "seed": seed, "label": setting.label, "sampler": asdict(sampler), "marks": marks}
                add_line(out / SCORES, {**line, "frames": setting.frames, "size": setting.size})
                longest = max(longest, time.monotonic() - began)
                say(f"{variant.name}, seed {seed}, {setting.label}: {_percent(marks)}")
    return True


def score(
    generator: Generator,
    prompts: Sequence[Prompt],
    setting: Setting,
    sampler: SamplerConfig,
    scale: Scale,
    seed: int,
    workers: Executor,
) -> dict[str, list[int]]:
    """Generate and judge: [right, unclear, of] for every attribute, and for all that is told together ("all")."""
    video = generator.config.video
    height, width = setting.size or (video.height, video.width)
    waiting, batch = [], usual_batch(generator.device)
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        pixels_BCFHW = generator(
            [prompt.text for prompt in part],
            frames=setting.frames or scale.frames,
            seed=[1000 * seed + start + i for i in range(len(part))],
            sampler=sampler,
            height=height,
            width=width,
        )
        pairs = zip(part, to_bytes(pixels_BCFHW).numpy(), strict=True)
        waiting += [workers.submit(judged, prompt, rgb_CFHW) for prompt, rgb_CFHW in pairs]
    found = [future.result() for future in waiting]
    return {
        name: [sum(marks[name] is True for marks in of), sum(marks[name] is None for marks in of), len(of)]
        for name in ("all", *SEEN)
        if (of := [marks for marks in found if name in marks])
    }


def judged(prompt: Prompt, rgb_CFHW: np.ndarray) -> dict[str, bool | None]:
    """Marks of one clip; one that is not square is judged with its border repeated to a square."""
    _, _, height, width = rgb_CFHW.shape
    side = max(height, width)
    above, left = (side - height) // 2, (side - width) // 2
    square = np.pad(rgb_CFHW, ((0, 0), (0, 0), (above, side - height - above), (left, side - width - left)), mode="edge")
    verdict = judge(prompt.scene, to_float(torch.from_numpy(square)), FPS)
    return {"all": verdict.all_of(ALL_RIGHT), **{name: verdict.marks[name] for name in SEEN if name in verdict.marks}}


def _same_scale(out: Path, scale: Scale) -> None:
    path, text = out / "scale.json", json.dumps(asdict(scale), indent=1)
    if not path.exists():
        path.write_text(text, "utf-8")
    if path.read_text("utf-8") != text:
        raise ValueError(f"{out} holds models of another scale (see scale.json there); use the same options, or another folder")


def _out_of_time(say: Callable[[str], None]) -> bool:
    say("out of time; the same command goes on")
    return False


def _percent(marks: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {100 * right / of:.0f} %" for name, (right, _, of) in marks.items())


def main(words: Sequence[str] | None = None) -> None:
    names = [*CLAIMS, "latency", "all"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="+", choices=names, metavar="CLAIM", help=f"what to test: {', '.join(names)}")
    parser.add_argument("--out", type=Path, required=True, help="folder of results; several claims share one, and their models")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop by itself in this time (default: when all is done)")
    parser.add_argument("--seconds", type=float, default=None, help="training time of each model (default: 36)")
    parser.add_argument("--seeds", type=int, default=None, help="models of each kind (default: 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="to share seeds between cards or runs (default: 0)")
    parser.add_argument("--toy", action="store_true", help="sizes that show in seconds on a CPU that everything works")
    parser.add_argument("--tokenizer", default=PACKAGED, help="visual tokenizer: name of weights in the package, or a folder")
    parser.add_argument("--workers", type=int, help="judging processes (default: 0 on the CPU, up to 14 with a GPU)")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda if there is one)")
    args = parser.parse_args(words)
    scale = TOY if args.toy else FULL
    scale = replace(scale, seconds=args.seconds or scale.seconds)
    end, done = time.monotonic() + 60 * args.minutes, True
    try:
        device = pick_device(args.device)
        if {"latency", "all"} & set(args.claims):
            args.out.mkdir(parents=True, exist_ok=True)
            add_line(args.out / LATENCY, measure_latency(device, args.toy))
        world = World.make(load_tokenizer(find_weights(args.tokenizer, "tokenizer")), scale, device)
        for name in CLAIMS if "all" in args.claims else [name for name in args.claims if name != "latency"]:
            done &= run_claim(name, args.out, world, end, args.workers, args.seeds, args.first_seed)
    except (ValueError, OSError) as error:
        sys.exit(f"claims: {error}")
    except KeyboardInterrupt:
        sys.exit("claims: interrupted; the same command goes on")
    print("all there" if done else "not all there yet")


if __name__ == "__main__":
    main()
