"""`lumos evaluate`: a weights folder -> scores, with everything that they rest on in a folder."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lumos.cli.options import UsageError, Word, choose, options_of, report, with_settings
from lumos.files import write_text

if TYPE_CHECKING:
    from lumos.diffusion.sampler import SamplerConfig
    from lumos.generate import Generator

PUBLIC = ("geneval", "vbench", "vbench-i2v")


@dataclass(frozen=True)
class EvaluateArgs:
    """Score a model, or make the files that public benchmarks score. After Ctrl-C the same command goes on (distances and
    tokenizer start anew).

    lumos evaluate shapes --weights tiny --out runs/scores
    lumos evaluate shapes --weights runs/a/model --out runs/quick --quick --set steps=8 --set guidance=2
    lumos evaluate distances --weights tiny --out runs/distances
    torchrun --nproc-per-node 8 -m lumos evaluate vbench --prompts vbench_full_info.json --weights lumos-1b --out runs/vbench
    """

    # shapes: the built-in benchmark, 608 prompts judged from pixels; distances: FVD-like and others, to the shapes world;
    # tokenizer: PSNR and SSIM; geneval, vbench, vbench-i2v: files for their own tools, from their own --prompts
    what: Word[str]
    out: Path  # folder for all that is made; a half-done one is gone on with
    weights: str = "tiny"  # name of weights in the package, or a folder
    quick: bool = False  # [shapes, distances, tokenizer] about a sixth of the prompts, an eighth of the clips
    # [shapes] one class (counting), one task (text to image), or one-object; a wrong one lists them (default: all)
    only: str | None = None
    # [shapes, distances] own prompts in the form of OUT/prompts.jsonl; [geneval, vbench, vbench-i2v] the suite's prompt file
    prompts: Path | None = None
    # [geneval, vbench, vbench-i2v] JSON object from a suite's prompts to longer ones that the model is told instead
    rewrites: Path | None = None
    images: Path | None = None  # [vbench-i2v] folder of the images to start from
    # [geneval, vbench, vbench-i2v] files per prompt (default: 4 for geneval, 5 for vbench, 25 for its flickering)
    samples: int | None = None
    # [distances] I3D as TorchScript; the file runs its own code (default: EfficientNet-Lite0)
    features: Path | None = None
    set: tuple[str, ...] = ()  # change one setting of the model's sampler; repeat for more; a wrong one lists them
    seed: int = 0  # the same seed gives the same videos
    # videos at a time; in shapes four times as many images (default: 104 on CUDA, else 4)
    batch: int | None = None
    # [shapes] processes that judge beside the one that generates (default: 0 on the CPU, up to 14 with a GPU)
    workers: int | None = None
    device: str | None = None  # where to compute: cpu, cuda, cuda:1 (default: cuda if there is one, else cpu)
    json: bool = False  # print one JSON document as the last line of stdout


def run_evaluate(args: EvaluateArgs) -> None:
    runs = {"shapes": _shapes, "distances": _distances, "tokenizer": _tokenizer}
    run = choose("benchmark", args.what, runs | dict.fromkeys(PUBLIC, _suite))
    for option in options_of(EvaluateArgs):
        meant = [name for names in re.findall(r"\[(.*?)\]", option.help) for name in names.split(", ")]
        if meant and args.what not in meant and getattr(args, option.field):
            raise UsageError(f"{option.shown} has no meaning for {args.what}; leave it out")
    file = args.out / f"{args.what}.json"
    measures = run in (_distances, _tokenizer)
    if measures and file.exists():
        raise FileExistsError(f"{file} exists; name another folder with --out")
    document = run(args)
    if measures:
        args.out.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(document, indent=1) + "\n")
        document["report"] = str(file)
    if document:
        report(table(document) if run is _shapes and not args.json else document, args.json)


def _shapes(args: EvaluateArgs) -> dict[str, Any]:
    from lumos.evaluation.card import write_card
    from lumos.evaluation.shapes import chosen_prompts, evaluate_shapes

    generator, sampler = _model(args, args.device)
    prompts = chosen_prompts(args.quick, args.only, args.prompts)
    scores = evaluate_shapes(generator, args.out, prompts, sampler, args.seed, args.batch, args.workers)
    files = {"report": str(args.out / "report.html")}
    if not (args.quick or args.only or args.prompts):
        own = Path(args.weights)
        # weights of the package are left as they are installed
        files["card"] = str(write_card(own if own.is_dir() else args.out, args.out, generator, scores))
    return {name: scores[name] for name in ("settings", "overall", "splits", "tasks", "classes", "seconds")} | files


def _suite(args: EvaluateArgs) -> dict[str, Any]:
    from lumos.evaluation.public import SuiteRun, generate_suite, place_of_process
    from lumos.generate import pick_device

    if args.prompts is None:
        raise UsageError(f"{args.what} needs --prompts FILE, its own prompt file; see docs/evaluation.md for where it comes from")
    rank, world, local = place_of_process()
    device = args.device or (f"cuda:{local}" if world > 1 and pick_device(None).type == "cuda" else None)
    generator, sampler = _model(args, device)
    run = SuiteRun(args.what, args.prompts, args.out, args.samples, args.rewrites, args.images, args.seed, args.batch)
    done = generate_suite(generator, run, sampler, rank, world)
    return {} if rank else done


def _distances(args: EvaluateArgs) -> dict[str, Any]:
    from lumos.evaluation.distances import efficientnet_features, i3d_features, measure_distances
    from lumos.evaluation.prompts import benchmark, prompts_in, smaller

    prompts = prompts_in(args.prompts) if args.prompts else benchmark()
    generator, sampler = _model(args, args.device)
    network = i3d_features(args.features, generator.device) if args.features else efficientnet_features(generator.device)
    name = "I3D" if args.features else "EfficientNet-Lite0"
    chosen = smaller(prompts) if args.quick else prompts
    return measure_distances(generator, chosen, network, name, sampler, args.seed, args.batch)


def _tokenizer(args: EvaluateArgs) -> dict[str, Any]:
    from lumos.evaluation.distances import measure_tokenizer
    from lumos.generate import pick_device
    from lumos.tokenizer.model import load_tokenizer
    from lumos.weights import find_weights

    tokenizer = load_tokenizer(find_weights(args.weights, "tokenizer"))
    return measure_tokenizer(tokenizer, pick_device(args.device), 8 if args.quick else 64, seed=args.seed)


def _model(args: EvaluateArgs, device: str | None) -> tuple["Generator", "SamplerConfig"]:
    from lumos.generate import Generator

    generator = Generator.from_folder(args.weights, device)
    return generator, with_settings(generator.config.sampler, args.set)


def table(scores: dict[str, Any]) -> dict[str, str]:
    """Scores as lines for the eye, and the files that were made."""
    lines = {}
    for name, entry in {"overall": scores["overall"], **scores["splits"], **scores["classes"]}.items():
        of = sum(entry[mark] for mark in ("right", "wrong", "unclear"))
        lines[name] = f"{100 * entry['score']:.1f} % ({100 * entry['low']:.0f} to {100 * entry['high']:.0f}) of {of}"
    return lines | {name: scores[name] for name in ("report", "card") if name in scores}
