"""`lumos evaluate`: a weights folder -> scores, with everything that they rest on in a folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumos.cli.options import UsageError, Word, choose, options_of, report, with_settings
from lumos.config import PACKAGED
from lumos.files import write_text


@dataclass(frozen=True)
class EvaluateArgs:
    """Score a model, or its tokenizer. After Ctrl-C the same command goes on with a model.

    lumos evaluate shapes --out runs/scores
    lumos evaluate shapes --weights runs/a/model --out runs/quick --quick --set steps=8 --set guidance=2
    lumos evaluate tokenizer --out runs/tokenizer
    """

    # shapes: the built-in benchmark, 608 prompts judged from pixels; tokenizer: how well it keeps clips that training never shows
    what: Word[str]
    out: Path  # folder for all that is made; a half-done one is gone on with
    weights: str = PACKAGED  # name of weights in the package, or a folder
    quick: bool = False  # about a sixth of the prompts, an eighth of the clips
    # [shapes] one class (counting), one task (text to image), or one-object; a wrong one lists them (default: all)
    only: str | None = None
    prompts: Path | None = None  # [shapes] own prompts in the form of OUT/prompts.jsonl
    set: tuple[str, ...] = ()  # [shapes] change one setting of the model's sampler; repeat for more; a wrong one lists them
    seed: int = 0  # [shapes] the same seed gives the same videos
    batch: int | None = None  # [shapes] videos at a time, and four times as many images (default: 104 on CUDA, else 4)
    # [shapes] processes that judge beside the one that generates (default: 0 on the CPU, up to 14 with a GPU)
    workers: int | None = None
    device: str | None = None  # where to compute: cpu, cuda, cuda:1 (default: cuda if there is one, else cpu)
    json: bool = False  # print one JSON document as the last line of stdout


def run_evaluate(args: EvaluateArgs) -> None:
    run = choose("benchmark", args.what, {"shapes": _shapes, "tokenizer": _tokenizer})
    for option in options_of(EvaluateArgs):
        if option.help.startswith("[shapes]") and run is not _shapes and getattr(args, option.field):
            raise UsageError(f"{option.shown} has no meaning for {args.what}; leave it out")
    document = run(args)
    report(table(document) if run is _shapes and not args.json else document, args.json)


def _shapes(args: EvaluateArgs) -> dict[str, Any]:
    from lumos.evaluation.report import write_card
    from lumos.evaluation.shapes import chosen_prompts, evaluate_shapes
    from lumos.generate import Generator

    generator = Generator.from_folder(args.weights, args.device)
    sampler = with_settings(generator.config.sampler, args.set)
    prompts = chosen_prompts(args.quick, args.only, args.prompts)
    scores = evaluate_shapes(generator, args.out, prompts, sampler, args.seed, args.batch, args.workers)
    files = {"report": str(args.out / "report.html")}
    if not (args.quick or args.only or args.prompts):
        files["card"] = str(write_card(args.out, generator, scores))
    return {name: scores[name] for name in ("settings", "overall", "splits", "tasks", "classes", "seconds")} | files


def _tokenizer(args: EvaluateArgs) -> dict[str, Any]:
    from lumos.generate import pick_device
    from lumos.tokenizer.model import load_tokenizer
    from lumos.training.train_tokenizer import TrainTokenizerConfig, evaluate_tokenizer, held_out_scenes
    from lumos.weights import find_weights

    file, device = args.out / "tokenizer.json", pick_device(args.device)
    if file.exists():
        raise FileExistsError(f"{file} exists; name another folder with --out")
    tokenizer = load_tokenizer(find_weights(args.weights, "tokenizer")).to(device)
    side = 16 * tokenizer.spatial  # of 16x16 codes, as tokenizers of both compressions are made for
    clips = TrainTokenizerConfig(size=side, batch=8, evaluation_clips=8 if args.quick else 64)
    numbers, sheet = evaluate_tokenizer(tokenizer, held_out_scenes(clips, device))
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(numbers, indent=1) + "\n")
    sheet.save(args.out / "tokenizer.png")
    return {**numbers, "report": str(file)}


def table(scores: dict[str, Any]) -> dict[str, str]:
    """Scores as lines for the eye, and the files that were made."""
    lines = {}
    for name, entry in {"overall": scores["overall"], **scores["splits"], **scores["classes"]}.items():
        of = sum(entry[mark] for mark in ("right", "wrong", "unclear"))
        lines[name] = f"{100 * entry['score']:.1f} % ({100 * entry['low']:.0f} to {100 * entry['high']:.0f}) of {of}"
    return lines | {name: scores[name] for name in ("report", "card") if name in scores}
