"""`lumos prepare`, `inspect`, `import-weights` and `import-tokens`: what others made -> folders that lumos reads."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from lumos.cli.options import UsageError, Word, progress_line, report, tell
from lumos.config import PACKAGED, Range
from lumos.files import check_writable, whole_file

REJECTED = 3  # exit code of a run that is whole, but had to leave inputs out


@dataclass(frozen=True)
class PrepareArgs:
    """Turn videos and captions into shards to train on. Broken off at any moment, the same command goes on. A manifest has a row
    per video or image: path (a file or URL) and caption, or captions; start and end in seconds; mirror = true where the captions
    stay true in a mirror. Exit code 3: done, but some inputs are in OUT/rejected.csv.

    lumos prepare folder-of-videos/ shards/ --dry-run
    lumos prepare clips.csv pictures/ --pixels --size 128x128 --frames 25 --fps 8
    torchrun --nproc-per-node 8 -m lumos prepare clips.parquet shards/ --tokenizer cosmos/ --size 448x256 --fps 12 --frames 25
    """

    manifest: Word[Path]  # .csv, .tsv, .jsonl or .parquet table, a folder of videos, or of shards made with --pixels
    out: Word[Path]  # folder to write, or to go on in
    tokenizer: str = PACKAGED  # visual tokenizer: name of weights in the package, or a folder
    pixels: bool = False  # write pictures instead of codes: to train a tokenizer on, or to tokenise later; needs no tokenizer
    size: str | None = None  # WIDTHxHEIGHT in pixels (default: the model's, where the tokenizer is part of one)
    buckets: bool = False  # also use other shapes of about that area, each video the nearest; otherwise all are cropped to SIZE
    frames: int | None = None  # frames per clip, 1 + 4k; longer videos make several (default: the model's)
    fps: Annotated[float, Range(0.01, 240)] | None = None  # frames per second (default: the model's)
    # frames that a shorter video, or the rest of one, needs to be a clip of its own (default: half of --frames)
    least: Annotated[int, Range(1, 1e6)] | None = None
    # seconds from the start of a clip to the next; below the clip's length they overlap (default: no overlap)
    every: Annotated[float, Range(0.01, 1e6)] | None = None
    # split where more than this share of the colours changes; 0.5 is a good start (default: no splitting)
    scene_cuts: Annotated[float, Range(0.01, 0.99)] | None = None
    loop: bool = False  # repeat videos that are shorter than a clip, as animations are shown
    mirror: Literal["none", "marked", "all"] = "marked"  # mirrored copies: of no clips, of rows with mirror = true, of all
    rows: Annotated[int, Range(1, 1e6)] = 256  # rows of the manifest in a shard: what is lost at most when a process is killed
    batch: Annotated[int, Range(1, 4096)] = 16  # clips tokenised at once; fewer need less memory
    # decoding threads of this process (default: one per core, shared among the processes of this machine)
    workers: Annotated[int, Range(1, 1024)] | None = None
    device: str | None = None  # where to tokenise: cpu, cuda, cuda:1 (default: cuda if there is one, else cpu)
    dry_run: bool = False  # only check the manifest, and say what would be made
    json: bool = False  # print one JSON document as the last line of stdout


@dataclass(frozen=True)
class InspectArgs:
    """Say what is in a folder of shards, and draw a contact sheet of clips decoded from their codes.

    lumos inspect shards/
    lumos inspect shards/ --sheet sheet.png --count 24 --tokenizer runs/tokenizer/tokenizer
    """

    shards: Word[str]  # folder of shards, or a fsspec URL of one
    sheet: Path | None = None  # contact sheet to write, .png (default: SHARDS/contact_sheet.png)
    count: Annotated[int, Range(1, 10_000)] = 12  # clips in the sheet, spread over all shards
    # visual tokenizer: name of weights in the package, or a folder (default: the one that made them)
    tokenizer: str | None = None
    force: bool = False  # replace the file named by --sheet
    json: bool = False  # print one JSON document as the last line of stdout


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


def run_prepare(args: PrepareArgs) -> int:
    from lumos.data.prepare import dry_run, prepare_shards
    from lumos.tokenizer.model import load_tokenizer
    from lumos.weights import find_weights

    folder = None if args.pixels else find_weights(args.tokenizer, "tokenizer")
    tokenizer = load_tokenizer(folder) if folder else None
    latent = (tokenizer.temporal, tokenizer.spatial) if tokenizer else (1, 1)
    config = _prepare_config(args, _video_of(folder) if folder else {}, *latent)
    if args.dry_run:
        report(dry_run(args.manifest, config, tokenizer), args.json)
        return 0
    ranks, workers = _ranks(args)
    say = lambda line: tell(f"rank {ranks.rank}: {line}" if ranks.world > 1 else line)  # noqa: E731
    with progress_line("preparing") as progress:
        document = prepare_shards(args.manifest, args.out, config, tokenizer, ranks, progress, say, str(folder or ""), workers)
    report(document, args.json)
    return REJECTED if document.get("rejected") else 0


def _prepare_config(args: PrepareArgs, video: dict[str, Any], temporal: int, spatial: int) -> Any:
    from lumos.data.clips import Cut
    from lumos.data.prepare import PrepareConfig
    from lumos.sequence.prompt_template import crops
    from lumos.tokenizer.compression import check_sides, latent_frames

    sides = re.fullmatch(r"(\d{2,4})[xX](\d{2,4})", args.size or "")
    if args.size and not (sides and all(16 <= int(side) <= 4096 for side in sides.groups())):
        raise UsageError(f"--size must be WIDTHxHEIGHT, 16 to 4096 pixels each, got {args.size!r}; for example 128x128")
    width, height = map(int, sides.groups()) if sides else (video.get("width", 0), video.get("height", 0))
    frames, fps = args.frames or video.get("frames", 0), args.fps or video.get("fps", 0.0)
    if missing := [name for name, value in (("size", width), ("frames", frames), ("fps", fps)) if not value]:
        raise UsageError(f"give --{', --'.join(missing)}: no model says what to take; see lumos prepare --help")
    latent_frames(frames, temporal)
    check_sides(height, width, spatial)
    sizes = tuple((h, w) for w, h in crops(width, height)) if args.buckets else ((height, width),)
    least = args.least or 1 + (frames - 1) // 2 // temporal * temporal
    cut = Cut(frames, float(fps), sizes, temporal, least, args.every, args.scene_cuts, args.loop)
    return PrepareConfig(cut, args.mirror, args.rows, args.batch)


def _video_of(folder: Path) -> dict[str, Any]:
    """What the model around a tokenizer was made for: height, width, frames, fps."""
    from lumos.config import read_json

    above = folder.parent / "config.json"
    config = read_json(above).get("config") if folder.name == "tokenizer" and above.exists() else None
    video = config.get("video") if isinstance(config, dict) else None
    return video if isinstance(video, dict) else {}


def _ranks(args: PrepareArgs) -> Any:
    """This process's place, as torchrun says in the environment, and its threads. The processes share files alone: none waits."""
    import torch

    from lumos.generate import pick_device
    from lumos.ranks import Ranks

    rank, world, local = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world or 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    card = f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    return Ranks(rank, world or 1, pick_device(args.device or card)), args.workers or max(1, cores // here)


def run_inspect(args: InspectArgs) -> None:
    from lumos.data.inspect import describe, draw_clips
    from lumos.data.manifest import is_url
    from lumos.data.shards import open_shards
    from lumos.media.sheet import contact_sheet

    sheet = args.sheet or (Path("contact_sheet.png") if is_url(args.shards) else Path(args.shards) / "contact_sheet.png")
    index = open_shards(args.shards)
    if sheet.suffix.lower() != ".png":
        raise UsageError(f"--sheet must end in .png, got {sheet.name!r}; rename it")
    check_writable(sheet, overwrite=args.force or args.sheet is None)
    document = describe(index)
    clips, captions = draw_clips(index, args.count, args.tokenizer)
    with whole_file(sheet) as partial:
        contact_sheet(clips, captions, columns=6).save(partial, "PNG")
    report({**document, "sheet": str(sheet)}, args.json)


def run_import_weights(args: ImportWeightsArgs) -> None:
    from lumos.published.import_weights import import_weights

    width, height = map(int, args.size.split("x"))
    with progress_line("importing") as progress:
        document = import_weights(args.checkpoint, args.out, args.text_tokenizer, args.cosmos, (width, height), progress)
    report(document, args.json)


def run_import_tokens(args: ImportTokensArgs) -> None:
    from lumos.published.import_tokens import import_tokens

    with progress_line("importing") as progress:
        document = import_tokens(list(args.records), args.out, progress)
    report(document, args.json)
