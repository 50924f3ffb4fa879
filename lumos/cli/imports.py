"""`lumos import-weights` and `lumos import-tokens`: what the authors released -> our folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lumos.cli.options import Word, progress_line, report


@dataclass(frozen=True)
class ImportWeightsArgs:
    """Make a weights folder from a released Lumos-1 checkpoint, its numbers unchanged; or from the Cosmos tokenizer alone.

    lumos import-weights checkpoint/ weights/ --cosmos cosmos/ --text-tokenizer text_tokenizer.json
    lumos import-weights cosmos/ weights-of-the-tokenizer/
    """

    # folder with config.json and safetensors files; or one with encoder.jit and decoder.jit, or autoencoder.jit
    checkpoint: Word[Path]
    out: Word[Path]  # folder to write
    cosmos: Path | None = None  # folder of the Cosmos tokenizer: its .jit files, or one imported before
    # the published text_tokenizer.json, which prompts need (default: the one in CHECKPOINT, if any)
    text_tokenizer: Path | None = None
    size: Literal["672x384", "448x256"] = "672x384"  # width x height to make unless asked otherwise
    json: bool = False  # print one JSON document as the last line of stdout


@dataclass(frozen=True)
class ImportTokensArgs:
    """Turn the authors' pre-tokenised records (pickles, read as data alone) into Parquet shards, checked id by id.

    lumos import-tokens video_0.pkl video_1.pkl shards/
    lumos import-tokens records/ shards/
    """

    records: Word[tuple[Path, ...]]  # .pkl files, or folders that hold some
    out: Word[Path]  # folder to write, new or empty
    json: bool = False  # print one JSON document as the last line of stdout


def run_import_weights(args: ImportWeightsArgs) -> None:
    from lumos.published.import_weights import import_weights

    width, height = (int(side) for side in args.size.split("x"))
    with progress_line("importing") as progress:
        document = import_weights(args.checkpoint, args.out, args.text_tokenizer, args.cosmos, (width, height), progress)
    report(document, args.json)


def run_import_tokens(args: ImportTokensArgs) -> None:
    from lumos.published.import_tokens import import_tokens

    with progress_line("importing") as progress:
        document = import_tokens(list(args.records), args.out, progress)
    report(document, args.json)
