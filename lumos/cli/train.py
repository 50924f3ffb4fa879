"""`lumos train` and `lumos train-tokenizer`: a preset -> a run folder. `lumos estimate`: what a preset needs, without a GPU."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from lumos.cli.options import Fields, UsageError, Word, choose, report, with_settings
from lumos.config import PACKAGED, Range

PACKAGED_CODES = 4096**2  # of the tokenizer in the package
SOURCES = Fields("lumos.training.config", "Sources")
TOKENIZER_SOURCES = SOURCES._replace(flags={"text": ""})


@dataclass(frozen=True)
class TrainArgs:
    """Train a model: text and codes -> codes; Ctrl-C stops and keeps everything, and the same command with --resume goes on.

    lumos train shapes-toy --help
    lumos train shapes-toy --out runs/toy --set optim.lr=1e-3 --set max_steps=1000
    lumos train box --data shards/ --init runs/box/model --lora.rank 16 --out runs/mine
    torchrun --nproc-per-node 8 -m lumos train 1b-384p --data shards/ --init runs/256p/model --out runs/384p
    torchrun --nproc-per-node 4 --max-restarts 3 -m lumos train box --stickers emoji.jsonl --creatures creatures.zip --out runs/a
    """

    tokenizer: str = PACKAGED  # visual tokenizer: name of weights in the package, or a folder


@dataclass(frozen=True)
class TrainTokenizerArgs:
    """Train a visual tokenizer: pixels <-> codes; Ctrl-C stops and keeps everything, the same command with --resume goes on.

    lumos train-tokenizer shapes-toy --out runs/tokenizer
    lumos train-tokenizer shapes-toy --out runs/tokenizer --set optim.lr=1e-3 --set batch=8
    lumos train-tokenizer box --data pictures/ --init box --set stickers=0 --set creatures=0 --out runs/tokenizer
    """


@dataclass(frozen=True)
class RunArgs:
    """Options of both."""

    preset: Word[str]  # name of a configuration; NAME --help, or NAME --show, lists all its settings
    out: Path  # folder of the run: weights, checkpoints, metrics, samples
    resume: bool = False  # go on from the newest checkpoint in --out
    set: tuple[str, ...] = ()  # change one setting of the preset; repeat for more; --lora.rank 16 is short for --set lora.rank=16
    json: bool = False  # print one JSON document as the last line of stdout


@dataclass(frozen=True)
class EstimateArgs:
    """Memory and speed of a training step for every recomputation mode, by the rates that models on an H200 reached.

    lumos estimate 3b-384p --gpus 8 --memory 80GB
    lumos estimate 1b-384p --gpus 1 --memory 24GB --set parallel.recompute=full
    """

    preset: Word[str]  # name of a configuration
    gpus: Annotated[int, Range(1, 100_000)] = 1  # number of GPUs, over all hosts
    memory: str | None = None  # memory of one GPU, as 80GB (default: the card's)
    card: str = "H200"  # whose speed to reckon with: H200, H100, A100, H20
    set: tuple[str, ...] = ()  # change one setting of the preset; repeat for more; --help after the preset's name lists them
    json: bool = False  # print one JSON document as the last line of stdout


def run_train(args: TrainArgs, run: RunArgs, files: dict[str, Any]) -> None:
    from lumos.presets import MODELS
    from lumos.training.train_model import train_model
    from lumos.weights import find_weights

    config = with_settings(choose("preset", run.preset, MODELS), run.set)
    sources = _sources(files, "model")
    tokenizer = find_weights(args.tokenizer, "tokenizer")
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # torchrun has started the same command again
    folder = train_model(config, run.out, tokenizer, sources, run.resume or restarted)
    report({"weights": str(folder)} | ({"lora": str(run.out / "lora")} if config.lora.rank else {}), run.json)


def run_train_tokenizer(args: TrainTokenizerArgs, run: RunArgs, files: dict[str, Any]) -> None:
    from lumos.presets import TOKENIZERS
    from lumos.training.train_tokenizer import train_tokenizer

    config = with_settings(choose("preset", run.preset, TOKENIZERS), run.set)
    train_tokenizer(config, run.out, _sources(files, "tokenizer"), run.resume)
    report({"weights": str(run.out / "tokenizer")}, run.json)


def _sources(files: dict[str, Any], kind: Literal["model", "tokenizer"]) -> Any:
    from lumos.training.config import Sources
    from lumos.weights import find_weights

    return Sources(**(files | ({"init": find_weights(files["init"], kind)} if "init" in files else {})))


def run_estimate(args: EstimateArgs) -> None:
    from lumos.presets import MODELS
    from lumos.sequence.vocabulary import LUMOS, small_vocabulary
    from lumos.training import step_cost

    config = with_settings(choose("preset", args.preset, MODELS), args.set)
    card = choose("card", args.card, step_cost.CARDS)
    config.parallel.check(args.gpus)
    gibibytes = card.memory if args.memory is None else _gibibytes(args.memory)
    vocabulary = LUMOS if config.model.vocabulary else small_vocabulary(config.text_vocabulary, PACKAGED_CODES)
    model = replace(config.model, vocabulary=vocabulary.size, sub_codes=vocabulary.sub_codes)
    steps: dict[str, Any] = {}
    for name, work in step_cost.works_of(config, vocabulary.code_rows).items():
        modes = []
        for mode in step_cost.MODES:
            plan = replace(config.parallel, recompute=mode)
            need = step_cost.step_memory(model, work, plan, args.gpus, config.moments)
            seconds = step_cost.step_seconds(model, work, plan, card, args.gpus)
            row = {"recompute": mode, "fits": step_cost.fits(need, gibibytes), "gib": round(need.total / 2**30, 2)}
            row |= {part: round(value / 2**30, 2) for part, value in vars(need).items()}
            row["ids_per_second"] = round(work.ids * work.samples / seconds * args.gpus)
            row["mfu"] = round(sum(step_cost.flops(model, work)) / seconds / (card.peak * 1e12), 3)
            modes.append(row)
        steps[name] = {"samples": work.samples, "ids": work.samples * work.ids, "modes": modes}
        if not any(row["fits"] for row in modes):
            steps[name]["advice"] = step_cost.advice(model, work, config.parallel, args.gpus, config.moments, gibibytes)
    if args.json:
        report({"preset": args.preset, "gpus": args.gpus, "gib": gibibytes, "card": args.card, "steps": steps}, True)
        return
    print(f"{args.preset} on {args.gpus} x {args.card} of {gibibytes:.0f} GiB; GiB per GPU by part")
    for name, step in steps.items():
        print(f"\na step of {step['samples']} {name} a GPU at a time ({step['ids']:,} ids)")
        for cells in (list(step["modes"][0]), *(list(row.values()) for row in step["modes"])):
            shown = [("yes" if cell else "no") if isinstance(cell, bool) else str(cell) for cell in cells]
            print(f"{shown[0]:<11}{shown[1]:<6}" + "".join(f"{cell:>15}" for cell in shown[2:]))
        if "advice" in step:
            print(f"nothing fits; {step['advice']}")


def _gibibytes(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:Gi?B)?", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise UsageError(f"--memory must be a size in GB, got {text!r}; for example --memory 80GB")
    return float(found[1])
