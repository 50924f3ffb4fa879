"""`lumos train` and `lumos train-tokenizer`: a preset -> a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lumos.options import argument, choose, option, report, required, with_settings


@dataclass(frozen=True)
class TrainArgs:
    """Train a model; Ctrl-C stops and keeps everything, and the same command with --resume goes on.

    lumos train shapes-toy --tokenizer tiny --out runs/toy
    lumos train shapes-toy --tokenizer tiny --out runs/toy --set optim.lr=1e-3 --set max_steps=1000
    torchrun --nproc-per-node 8 -m lumos train shapes-tiny --out runs/tiny
    """

    preset: str = argument("name of a configuration in lumos/presets.py; a wrong one lists them")
    out: Path = required("folder of the run: weights, checkpoints, metrics, samples")
    tokenizer: str = option("tiny", "visual tokenizer: name of weights in the package, or a folder")
    resume: bool = option(False, "go on from the newest checkpoint in --out")
    set: tuple[str, ...] = option((), "change one setting of the preset, NAME=VALUE; repeat for more; a wrong one lists them")
    json: bool = option(False, "print one JSON document as the last line of stdout")


@dataclass(frozen=True)
class TrainTokenizerArgs:
    """Train a visual tokenizer; Ctrl-C stops and keeps everything, and the same command with --resume goes on.

    lumos train-tokenizer shapes-toy --out runs/tokenizer
    lumos train-tokenizer shapes-toy --out runs/tokenizer --set optim.lr=1e-3 --set batch=8
    """

    preset: str = argument("name of a configuration in lumos/presets.py; a wrong one lists them")
    out: Path = required("folder of the run: weights, checkpoints, metrics, samples")
    resume: bool = option(False, "go on from the newest checkpoint in --out")
    set: tuple[str, ...] = option((), "change one setting of the preset, NAME=VALUE; repeat for more; a wrong one lists them")
    json: bool = option(False, "print one JSON document as the last line of stdout")


def run_train(args: TrainArgs) -> None:
    from lumos.presets import MODELS
    from lumos.training.train_model import train_model
    from lumos.weights import find_weights

    config = with_settings(choose("preset", args.preset, MODELS), args.set)
    folder = train_model(config, args.out, find_weights(args.tokenizer, "tokenizer"), args.resume)
    report({"weights": str(folder)}, args.json)


def run_train_tokenizer(args: TrainTokenizerArgs) -> None:
    from lumos.presets import TOKENIZERS
    from lumos.training.train_tokenizer import train_tokenizer

    config = with_settings(choose("preset", args.preset, TOKENIZERS), args.set)
    train_tokenizer(config, args.out, args.resume)
    report({"weights": str(args.out / "tokenizer")}, args.json)
