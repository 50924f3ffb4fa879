"""The command `lumos`: words in, one function per verb out. What a verb does is imported when it runs, so that help is instant.

A verb is a dataclass of options and a function in lumos/cli, and one line in VERBS. Everything that can be wrong with what a user
typed or has on disk leaves here as one line on stderr and exit code 2.
"""

import os
import re
import sys
from collections.abc import Sequence

from lumos import __version__
from lumos.cli import data, evaluate, generate, serve, train
from lumos.cli.options import UsageError, Verb, choose, explain_presets, help_of, parse, row
from lumos.files import is_memory_error

VERBS: dict[str, Verb] = {
    "generate": Verb((generate.GenerateArgs, generate.SAMPLING), generate.run_generate),
    "prepare": Verb((data.PrepareArgs,), data.run_prepare),
    "inspect": Verb((data.InspectArgs,), data.run_inspect),
    "train-tokenizer": Verb(
        (train.TrainTokenizerArgs, train.RunArgs, train.TOKENIZER_SOURCES), train.run_train_tokenizer, "TOKENIZERS"
    ),
    "train": Verb((train.TrainArgs, train.RunArgs, train.SOURCES), train.run_train, "MODELS"),
    "evaluate": Verb((evaluate.EvaluateArgs,), evaluate.run_evaluate),
    "serve": Verb((serve.ServeArgs, serve.SERVER_OPTIONS), serve.run_serve),
    "estimate": Verb((train.EstimateArgs,), train.run_estimate, "MODELS"),
    "bench": Verb((generate.BenchArgs, generate.SAMPLING), generate.run_bench),
    "import-weights": Verb((data.ImportWeightsArgs,), data.run_import_weights),
    "import-tokens": Verb((data.ImportTokensArgs,), data.run_import_tokens),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name); returns the exit code: 0, 2 for a user's error, 3 for
    work done but for inputs that were rejected, 130 for Ctrl-C."""
    # Threads that wait by spinning make a busy machine many times slower, those that sleep at once a quiet one by a fifth. So
    # they spin for a moment: 3,000 turns of GNU's library, where torch uses that. Torch reads both when it is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except BrokenPipeError:  # what reads our output has stopped, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        goes_on = words[:1] == ["prepare"] or (words[:1] == ["evaluate"] and "shapes" in words)
        print("lumos: interrupted" + "; the same command goes on" * goes_on, file=sys.stderr)
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
        return 0
    if words[0] == "--version":
        print(f"lumos {__version__}")
        return 0
    if words[0].startswith("-"):
        raise UsageError(f"unknown option {words[0]!r} before the verb; start with one of {', '.join(VERBS)}")
    name, rest = words[0], words[1:]
    verb = choose("verb", name, VERBS)
    if {"-h", "--help"} & set(rest) or (verb.presets and "--show" in rest):
        print(("" if "--show" in rest else help_of(name, verb.kinds)) + explain_presets(verb.presets, rest))
        return 0
    return verb.run(*parse(name, verb.kinds, rest)) or 0


def _overview() -> str:
    lines = [f"lumos {__version__}: text, images and video in one model", "", "usage: lumos VERB ..., lumos VERB --help", ""]
    lines += [
        row(name, re.split("[.;]", verb.kinds[0].__doc__, maxsplit=1)[0].replace("\n", " "), 20) for name, verb in VERBS.items()
    ]
    return "\n".join([*lines, "", "LUMOS_TRACEBACK=1 shows where an error comes from."])


def _explained(error: Exception) -> str | None:
    """What to tell the user in one line, or None for a fault of our own."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("lumos"):
        name = error.name.split(".")[0]
        return f"this needs the package {name!r}, which is missing; run pip install 'lumos[train,serve,evaluate]'"
    if is_memory_error(error):
        return "out of memory; use fewer prompts or samples at once, fewer frames or a smaller size, or close other programs"
    if isinstance(error, OSError) and error.strerror:
        where, is_file = f" {error.filename}" if error.filename else "", isinstance(error, FileExistsError)
        remedy = "it is no folder, name one" if is_file else "check the path, its permissions and free space"
        return f"cannot use{where}: {error.strerror}; {remedy}"
    if isinstance(error, ValueError | OSError):
        return re.sub(r"\s*\n\s*", " ", str(error).strip())
    return None
