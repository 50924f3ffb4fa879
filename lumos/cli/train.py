"""`lumos train` and `lumos train-tokenizer`: a preset -> a run folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lumos.cli.options import argument, choose, option, report, required, with_settings


@dataclass(frozen=True)
class TrainArgs:
    """Train a model; Ctrl-C stops and keeps everything, and the same command with --resume goes on.

    lumos train shapes-toy --tokenizer tiny --out runs/toy
    lumos train shapes-toy --tokenizer tiny --out runs/toy --set optim.lr=1e-3 --set max_steps=1000
    lumos train shapes-tiny --data shards/ --init tiny --lora.rank 16 --out runs/mine
    torchrun --nproc-per-node 8 -m lumos train 1b-384p --data shards/ --init runs/256p/model --out runs/384p
    torchrun --nproc-per-node 8 --max-restarts 3 -m lumos train shapes-tiny --out runs/tiny
    """

    preset: str = argument("name of a configuration in lumos/presets.py; a wrong one lists them")
    out: Path = required("folder of the run: weights, checkpoints, metrics, samples")
    tokenizer: str = option("tiny", "visual tokenizer: name of weights in the package, or a folder")
    data: str | None = option(
        None, "shards to train on (lumos prepare), a folder or fsspec URL; --set data_share=0.5 mixes them with shapes", "shapes"
    )
    text: Path | None = option(None, "text_tokenizer.json of the published models, for their vocabulary without --init", "none")
    init: str | None = option(None, "weights to start from: a name in the package, or a folder", "random weights")
    lora__rank: int | None = option(
        None, "train adapters of this rank on --init alone, kept in OUT/lora; 16 is usual", "all weights"
    )
    lora__alpha: float | None = option(None, "strength of the adapters", "twice the rank")
    resume: bool = option(False, "go on from the newest checkpoint in --out")
    set: tuple[str, ...] = option((), "change one setting of the preset, NAME=VALUE; repeat for more; a wrong one lists them")
    json: bool = option(False, "print one JSON document as the last line of stdout")


@dataclass(frozen=True)
class TrainTokenizerArgs:
    """Train a visual tokenizer; Ctrl-C stops and keeps everything, and the same command with --resume goes on.

    lumos train-tokenizer shapes-toy --out runs/tokenizer
    lumos train-tokenizer shapes-toy --out runs/tokenizer --set optim.lr=1e-3 --set batch=8
    lumos train-tokenizer shapes-tiny --data pictures/ --out runs/tokenizer --set data_share=0.5
    """

    preset: str = argument("name of a configuration in lumos/presets.py; a wrong one lists them")
    out: Path = required("folder of the run: weights, checkpoints, metrics, samples")
    data: str | None = option(None, "shards of pictures (lumos prepare --pixels): data_share of a batch", "shapes alone")
    init: str | None = option(None, "tokenizer to start from: a name in the package, or a folder", "random weights")
    resume: bool = option(False, "go on from the newest checkpoint in --out")
    set: tuple[str, ...] = option((), "change one setting of the preset, NAME=VALUE; repeat for more; a wrong one lists them")
    json: bool = option(False, "print one JSON document as the last line of stdout")


def run_train(args: TrainArgs) -> None:
    from lumos.presets import MODELS
    from lumos.training.train_model import train_model
    from lumos.weights import find_weights

    lora = {"lora.rank": args.lora__rank, "lora.alpha": args.lora__alpha}
    settings = [*args.set, *(f"{name}={value}" for name, value in lora.items() if value is not None)]
    config = with_settings(choose("preset", args.preset, MODELS), settings)
    init = None if args.init is None else find_weights(args.init, "model")
    tokenizer = find_weights(args.tokenizer, "tokenizer")
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # torchrun has started the same command again
    folder = train_model(config, args.out, tokenizer, args.resume or restarted, init, args.data, args.text)
    report({"weights": str(folder)} | ({"lora": str(args.out / "lora")} if config.lora.rank else {}), args.json)


def run_train_tokenizer(args: TrainTokenizerArgs) -> None:
    from lumos.presets import TOKENIZERS
    from lumos.training.train_tokenizer import train_tokenizer
    from lumos.weights import find_weights

    config = with_settings(choose("preset", args.preset, TOKENIZERS), args.set)
    init = None if args.init is None else find_weights(args.init, "tokenizer")
    train_tokenizer(config, args.out, args.resume, args.data, init)
    report({"weights": str(args.out / "tokenizer")}, args.json)
