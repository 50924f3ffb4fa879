"""`lumos evaluate`: a weights folder -> scores, with everything that they rest on in a folder."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumos.cli.options import UsageError, argument, choose, option, report, required, with_settings

REPORTS = {"distances": "distances.json", "tokenizer": "tokenizer.json"}  # files that must not be there yet
MARKS = ("right", "wrong", "unclear")


@dataclass(frozen=True)
class EvaluateArgs:
    """Score a model, or make the files that public benchmarks score. After Ctrl-C the same command goes on
    (distances and tokenizer start anew).

    lumos evaluate shapes --weights tiny --out runs/scores
    lumos evaluate shapes --weights runs/a/model --out runs/quick --quick --set steps=8 --set guidance=2
    lumos evaluate distances --weights tiny --out runs/distances
    torchrun --nproc-per-node 8 -m lumos evaluate vbench --prompts vbench_full_info.json --weights lumos-1b --out runs/vbench
    """

    what: str = argument(
        "shapes: the built-in benchmark, 608 prompts judged from pixels; distances: FVD-like and others, to the shapes world; "
        "tokenizer: PSNR and SSIM; geneval, vbench, vbench-i2v: files for their own tools, from their own --prompts"
    )
    out: Path = required("folder for all that is made; a half-done one is gone on with")
    weights: str = option("tiny", "name of weights in the package, or a folder")
    quick: bool = option(False, "about a sixth of the prompts (shapes, distances)")
    only: str | None = option(
        None, "one class (counting), one task (text to image), or one-object; a wrong one lists them", "all"
    )
    prompts: Path | None = option(
        None, "the suite's prompt file; for shapes own prompts in the form of OUT/prompts.jsonl", "none"
    )
    rewrites: Path | None = option(
        None, "JSON object from a suite's prompts to longer ones that the model is told instead", "none"
    )
    images: Path | None = option(None, "folder of the images that vbench-i2v starts from", "none")
    samples: int | None = option(None, "files for each prompt of a suite", "4 for geneval, 5 for vbench (25 for flickering)")
    features: Path | None = option(None, "I3D as TorchScript, for distances; the file runs its own code", "EfficientNet-Lite0")
    set: tuple[str, ...] = option(
        (), "change one setting of the model's sampler, NAME=VALUE; repeat for more; a wrong one lists them"
    )
    seed: int = option(0, "the same seed gives the same videos")
    batch: int | None = option(None, "videos at a time (shapes: four times as many images)", "104 on CUDA, else 4")
    workers: int | None = option(None, "processes that judge beside the one that generates", "0 on the CPU, up to 14 with a GPU")
    device: str | None = option(None, "where to compute: cpu, cuda, cuda:1", "cuda if there is one, else cpu")
    json: bool = option(False, "print one JSON document as the last line of stdout")


def run_evaluate(args: EvaluateArgs) -> None:
    kinds = {"shapes": run_shapes, "distances": run_distances, "tokenizer": run_tokenizer}
    for name in REPORTS:
        if args.what == name and (args.out / REPORTS[name]).exists():
            raise FileExistsError(f"{args.out / REPORTS[name]} exists; name another folder with --out")
    run = choose("benchmark", args.what, {**kinds, **dict.fromkeys(("geneval", "vbench", "vbench-i2v"), run_suite)})
    needs = {"rewrites": run_suite, "images": run_suite, "samples": run_suite, "features": run_distances, "only": run_shapes}
    for name, of in needs.items():
        if getattr(args, name) is not None and run is not of:
            raise UsageError(f"--{name} has no meaning for {args.what}; leave it out")
    run(args)


def run_shapes(args: EvaluateArgs) -> None:
    from lumos.evaluation.card import write_card
    from lumos.evaluation.shapes import evaluate_shapes
    from lumos.generate import Generator

    generator = Generator.from_folder(args.weights, args.device)
    sampler = with_settings(generator.config.sampler, args.set)
    scores = evaluate_shapes(
        generator, args.out, args.quick, args.only, args.prompts, sampler, args.seed, args.batch, args.workers
    )
    files = {"report": str(args.out / "report.html")}
    if not (args.quick or args.only or args.prompts):
        own = Path(args.weights)
        # weights of the package are left as they are installed
        files["card"] = str(write_card(own if own.is_dir() else args.out, args.out, generator, scores))
    if args.json:
        kept = ("settings", "overall", "splits", "tasks", "classes", "seconds")
        report({**{name: scores[name] for name in kept}, **files}, True)
    else:
        report({**table(scores), **files}, False)


def run_suite(args: EvaluateArgs) -> None:
    from lumos.evaluation.public import SuiteRun, generate_suite, place_of_process
    from lumos.generate import Generator

    if args.prompts is None:
        raise UsageError(f"{args.what} needs --prompts FILE, its own prompt file; see docs/evaluation.md for where it comes from")
    rank, world, local = place_of_process()
    device = args.device if args.device or world == 1 else _device_of(local)
    generator = Generator.from_folder(args.weights, device)
    run = SuiteRun(args.what, args.prompts, args.out, args.samples, args.rewrites, args.images, args.seed, args.batch)
    done = generate_suite(generator, run, with_settings(generator.config.sampler, args.set), rank, world)
    if rank == 0:
        report(done if args.json else {"wrote": f"{done['files']} of {done['of']} files in {done['folder']}"}, args.json)


def run_distances(args: EvaluateArgs) -> None:
    from lumos.evaluation.distances import efficientnet_features, i3d_features, measure_distances
    from lumos.evaluation.prompts import benchmark, prompts_in, smaller
    from lumos.generate import Generator

    prompts = prompts_in(args.prompts) if args.prompts else benchmark()
    generator = Generator.from_folder(args.weights, args.device)
    sampler = with_settings(generator.config.sampler, args.set)
    network = i3d_features(args.features, generator.device) if args.features else efficientnet_features(generator.device)
    name = "I3D" if args.features else "EfficientNet-Lite0"
    chosen = smaller(prompts) if args.quick else prompts
    found = measure_distances(generator, chosen, network, name, sampler, args.seed, args.batch, _tell)
    _finish(args, REPORTS["distances"], found)


def run_tokenizer(args: EvaluateArgs) -> None:
    from lumos.evaluation.distances import measure_tokenizer
    from lumos.generate import pick_device
    from lumos.tokenizer.model import load_tokenizer
    from lumos.weights import find_weights

    tokenizer = load_tokenizer(find_weights(args.weights, "tokenizer"))
    _finish(
        args,
        REPORTS["tokenizer"],
        measure_tokenizer(tokenizer, pick_device(args.device), 8 if args.quick else 64, seed=args.seed),
    )


def table(scores: dict[str, Any]) -> dict[str, str]:
    """Scores as lines for the eye."""
    lines = {}
    for name, entry in {"overall": scores["overall"], **scores["splits"], **scores["classes"]}.items():
        of = sum(entry[mark] for mark in MARKS)
        lines[name] = f"{100 * entry['score']:.1f} % ({100 * entry['low']:.0f} to {100 * entry['high']:.0f}) of {of}"
    return lines


def _finish(args: EvaluateArgs, name: str, found: dict[str, Any]) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / name).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    report({**found, "report": str(args.out / name)}, args.json)


def _device_of(local: int) -> str:
    import torch

    return f"cuda:{local}" if torch.cuda.is_available() else "cpu"


def _tell(done: int, total: int) -> None:
    print(f"{done} of {total} clips", file=sys.stderr, flush=True)
