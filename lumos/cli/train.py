"""`lumos train` and `lumos train-tokenizer`: a preset -> a run folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from lumos.cli.options import Word, choose, report, with_settings


@dataclass(frozen=True)
class TrainArgs:
    """Train a model: text and codes -> codes; Ctrl-C stops and keeps everything, and the same command with --resume goes on.

    lumos train shapes-toy --help
    lumos train shapes-toy --tokenizer tiny --out runs/toy
    lumos train shapes-toy --tokenizer tiny --out runs/toy --set optim.lr=1e-3 --set max_steps=1000
    lumos train shapes-tiny --data shards/ --init tiny --lora.rank 16 --out runs/mine
    torchrun --nproc-per-node 8 -m lumos train 1b-384p --data shards/ --init runs/256p/model --out runs/384p
    torchrun --nproc-per-node 8 --max-restarts 3 -m lumos train shapes-tiny --out runs/tiny
    """

    tokenizer: str = "tiny"  # visual tokenizer: name of weights in the package, or a folder
    text: Path | None = None  # text_tokenizer.json of the published models, for their vocabulary without --init


@dataclass(frozen=True)
class TrainTokenizerArgs:
    """Train a visual tokenizer: pixels <-> codes; Ctrl-C stops and keeps everything, the same command with --resume goes on.

    lumos train-tokenizer shapes-toy --out runs/tokenizer
    lumos train-tokenizer shapes-toy --out runs/tokenizer --set optim.lr=1e-3 --set batch=8
    lumos train-tokenizer shapes-tiny --data pictures/ --out runs/tokenizer --set data_share=0.5
    """


@dataclass(frozen=True)
class RunArgs:
    """Options of both."""

    preset: Word[str]  # name of a configuration; NAME --help, or NAME --show, lists all its settings
    out: Path  # folder of the run: weights, checkpoints, metrics, samples
    # shards to train on (lumos prepare; with --pixels for a tokenizer), a folder or fsspec URL; --set data_share=0.5 mixes them
    # with shapes (default: shapes alone)
    data: str | None = None
    init: str | None = None  # weights to start from: a name in the package, or a folder (default: random weights)
    resume: bool = False  # go on from the newest checkpoint in --out
    set: tuple[str, ...] = ()  # change one setting of the preset; repeat for more; --lora.rank 16 is short for --set lora.rank=16
    json: bool = False  # print one JSON document as the last line of stdout


def run_train(args: TrainArgs, run: RunArgs) -> None:
    from lumos.presets import MODELS
    from lumos.training.train_model import train_model
    from lumos.weights import find_weights

    config = with_settings(choose("preset", run.preset, MODELS), run.set)
    init = None if run.init is None else find_weights(run.init, "model")
    tokenizer = find_weights(args.tokenizer, "tokenizer")
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # torchrun has started the same command again
    folder = train_model(config, run.out, tokenizer, run.resume or restarted, init, run.data, args.text)
    report({"weights": str(folder)} | ({"lora": str(run.out / "lora")} if config.lora.rank else {}), run.json)


def run_train_tokenizer(args: TrainTokenizerArgs, run: RunArgs) -> None:
    from lumos.presets import TOKENIZERS
    from lumos.training.train_tokenizer import train_tokenizer
    from lumos.weights import find_weights

    config = with_settings(choose("preset", run.preset, TOKENIZERS), run.set)
    init = None if run.init is None else find_weights(run.init, "tokenizer")
    train_tokenizer(config, run.out, run.resume, run.data, init)
    report({"weights": str(run.out / "tokenizer")}, run.json)
