"""The command `lumos`: words in, one function a verb out. What a verb does is imported when it runs, so that help is instant.

A verb is a dataclass of options and a function in lumos/cli, and one line in VERBS. Everything that can be wrong with what a
user typed or has on disk leaves here as one line on stderr and exit code 2.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lumos import __version__
from lumos.cli.bench import BenchArgs, run_bench
from lumos.cli.estimate import EstimateArgs, run_estimate
from lumos.cli.evaluate import EvaluateArgs, run_evaluate
from lumos.cli.generate import GenerateArgs, run_generate
from lumos.cli.imports import ImportTokensArgs, ImportWeightsArgs, run_import_tokens, run_import_weights
from lumos.cli.inspect import InspectArgs, run_inspect
from lumos.cli.options import UsageError, choose, parse
from lumos.cli.prepare import PrepareArgs, run_prepare
from lumos.cli.serve import ServeArgs, run_serve
from lumos.cli.train import TrainArgs, TrainTokenizerArgs, run_train, run_train_tokenizer

# verb -> what it does in a line, its options, its function
VERBS: dict[str, tuple[str, type[Any], Callable[[Any], int | None]]] = {
    "generate": ("a sentence (and an image, or the start of a video) -> a video or image file", GenerateArgs, run_generate),
    "prepare": ("videos and captions -> shards to train on", PrepareArgs, run_prepare),
    "inspect": ("shards -> counts, captions and a contact sheet", InspectArgs, run_inspect),
    "train-tokenizer": ("train a visual tokenizer: pixels <-> codes", TrainTokenizerArgs, run_train_tokenizer),
    "train": ("train a model: text and codes -> codes", TrainArgs, run_train),
    "evaluate": ("a model -> scores, judged from pixels against exact truth", EvaluateArgs, run_evaluate),
    "serve": ("a page and an HTTP API over one model", ServeArgs, run_serve),
    "estimate": ("what training needs in memory and how fast it would be", EstimateArgs, run_estimate),
    "bench": ("how fast a model generates on this machine", BenchArgs, run_bench),
    "import-weights": (
        "a released Lumos-1 checkpoint or Cosmos tokenizer -> a weights folder",
        ImportWeightsArgs,
        run_import_weights,
    ),
    "import-tokens": ("the authors' pre-tokenised records -> Parquet shards", ImportTokensArgs, run_import_tokens),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name); returns the exit code: 0, 2 for a user's error, 3 for
    work done but for inputs that were rejected, 130 for Ctrl-C."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("lumos: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        message = _explained(error)
        if message is None or os.environ.get("LUMOS_TRACEBACK"):
            raise
        print(f"lumos: {message}", file=sys.stderr)
        return 2


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
    elif words[0] == "--version":
        print(f"lumos {__version__}")
    else:
        verb, rest = words[0], words[1:]
        if verb.startswith("-"):
            raise UsageError(f"unknown option {verb!r} before the verb; start with one of {', '.join(VERBS)}")
        _, kind, function = choose("verb", verb, VERBS)
        args = parse(verb, kind, rest)
        if args is not None:
            return function(args) or 0
    return 0


def _overview() -> str:
    lines = [f"  {verb:<16} {summary}" for verb, (summary, _, _) in VERBS.items()]
    return "\n".join(
        [
            f"lumos {__version__}: text, images and video in one model",
            "",
            "usage: lumos VERB ...        lumos VERB --help explains every option",
            "",
            *lines,
            "",
            "LUMOS_TRACEBACK=1 shows where an error comes from.",
        ]
    )


def _explained(error: Exception) -> str | None:
    """What to tell the user in one line, or None for a fault of our own."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("lumos"):
        name = error.name.split(".")[0]
        return f"this needs the package {name!r}, which is missing; run pip install 'lumos[train,serve,evaluate]'"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's; torch may not be imported
        return "out of memory; use fewer prompts at once, fewer frames or a smaller size, or close other programs"
    if isinstance(error, OSError) and error.strerror:
        where = f" {error.filename}" if error.filename else ""
        return f"cannot use{where}: {error.strerror}; check the path, its permissions and free space"
    if isinstance(error, ValueError | OSError):
        return re.sub(r"\s*\n\s*", " ", str(error).strip())
    return None
