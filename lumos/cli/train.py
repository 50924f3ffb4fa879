"""`lumos train` and `lumos train-tokenizer`: a preset -> a run folder."""

import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lumos.cli.options import UsageError, Verb, Word, choose, explain_presets, report, table_of, with_settings


@dataclass(frozen=True)
class TrainArgs:
    """Train a model; Ctrl-C stops and keeps everything, and the same command with --resume goes on.

    lumos train shapes-toy --help
    lumos train shapes-toy --tokenizer tiny --out runs/toy
    lumos train shapes-toy --tokenizer tiny --out runs/toy --set optim.lr=1e-3 --set max_steps=1000
    lumos train shapes-tiny --data shards/ --init tiny --lora.rank 16 --out runs/mine
    torchrun --nproc-per-node 8 -m lumos train 1b-384p --data shards/ --init runs/256p/model --out runs/384p
    torchrun --nproc-per-node 8 --max-restarts 3 -m lumos train shapes-tiny --out runs/tiny
    """

    preset: Word[str]  # name of a configuration
    out: Path | None = None  # folder of the run: weights, checkpoints, metrics, samples (required)
    tokenizer: str = "tiny"  # visual tokenizer: name of weights in the package, or a folder
    # shards to train on (lumos prepare), a folder or fsspec URL; --set data_share=0.5 mixes them with shapes (default: shapes)
    data: str | None = None
    text: Path | None = None  # text_tokenizer.json of the published models, for their vocabulary without --init
    init: str | None = None  # weights to start from: a name in the package, or a folder (default: random weights)
    resume: bool = False  # go on from the newest checkpoint in --out
    # change one setting of the preset; repeat for more; --help after the preset's name lists them, and --lora.rank 16 is
    # short for --set lora.rank=16
    set: tuple[str, ...] = ()
    show: bool = False  # only print the configuration
    json: bool = False  # print one JSON document as the last line of stdout


@dataclass(frozen=True)
class TrainTokenizerArgs:
    """Train a visual tokenizer; Ctrl-C stops and keeps everything, and the same command with --resume goes on.

    lumos train-tokenizer shapes-toy --out runs/tokenizer
    lumos train-tokenizer shapes-toy --out runs/tokenizer --set optim.lr=1e-3 --set batch=8
    lumos train-tokenizer shapes-tiny --data pictures/ --out runs/tokenizer --set data_share=0.5
    """

    preset: Word[str]  # name of a configuration
    out: Path | None = None  # folder of the run: weights, checkpoints, metrics, samples (required)
    data: str | None = None  # shards of pictures (lumos prepare --pixels): data_share of a batch (default: shapes alone)
    init: str | None = None  # tokenizer to start from: a name in the package, or a folder (default: random weights)
    resume: bool = False  # go on from the newest checkpoint in --out
    set: tuple[str, ...] = ()  # change one setting of the preset; repeat for more; --help after the preset's name lists them
    show: bool = False  # only print the configuration
    json: bool = False  # print one JSON document as the last line of stdout


def run_train(args: TrainArgs) -> None:
    from lumos.presets import MODELS

    config = with_settings(choose("preset", args.preset, MODELS), args.set)
    out = _shown_or_out("train", config, args)
    if out is None:
        return
    from lumos.training.train_model import train_model
    from lumos.weights import find_weights

    init = None if args.init is None else find_weights(args.init, "model")
    tokenizer = find_weights(args.tokenizer, "tokenizer")
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # torchrun has started the same command again
    folder = train_model(config, out, tokenizer, args.resume or restarted, init, args.data, args.text)
    report({"weights": str(folder)} | ({"lora": str(out / "lora")} if config.lora.rank else {}), args.json)


def run_train_tokenizer(args: TrainTokenizerArgs) -> None:
    from lumos.presets import TOKENIZERS

    config = with_settings(choose("preset", args.preset, TOKENIZERS), args.set)
    out = _shown_or_out("train-tokenizer", config, args)
    if out is None:
        return
    from lumos.training.train_tokenizer import train_tokenizer
    from lumos.weights import find_weights

    init = None if args.init is None else find_weights(args.init, "tokenizer")
    train_tokenizer(config, out, args.resume, args.data, init)
    report({"weights": str(out / "tokenizer")}, args.json)


def _shown_or_out(verb: str, config: Any, args: TrainArgs | TrainTokenizerArgs) -> Path | None:
    """The folder of the run; None when the configuration was only to be printed, which is done here."""
    if args.show:
        if args.json:
            report(asdict(config), True)
        else:
            print(table_of(config))
        return None
    if args.out is None:
        raise UsageError(f"the following arguments are required: --out; see lumos {verb} --help")
    return args.out


VERBS = {
    "train-tokenizer": Verb(
        "train a visual tokenizer: pixels <-> codes",
        (TrainTokenizerArgs,),
        run_train_tokenizer,
        partial(explain_presets, "TOKENIZERS"),
    ),
    "train": Verb("train a model: text and codes -> codes", (TrainArgs,), run_train, partial(explain_presets, "MODELS")),
}
