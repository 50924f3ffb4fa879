"""`lumos prepare`: videos and captions -> shards of codes (or of pictures)."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lumos.cli.options import UsageError, argument, option, progress_line, report

if TYPE_CHECKING:
    from lumos.data.prepare import PrepareConfig, Share

REJECTED = 3  # exit code of a run that is whole, but had to leave inputs out


@dataclass(frozen=True)
class PrepareArgs:
    """Turn videos and captions into shards to train on. Broken off at any moment, the same command goes on.

    lumos prepare clips.csv shards/ --tokenizer tiny
    lumos prepare folder-of-videos/ shards/ --tokenizer tiny --dry-run
    lumos prepare clips.csv pictures/ --pixels --size 128x128 --frames 25 --fps 8
    torchrun --nproc-per-node 8 -m lumos prepare clips.parquet shards/ --tokenizer cosmos/ --size 448x256 --fps 12 --frames 25

    A manifest has a row for each video or image: path (a file or URL) and caption, or captions; start and end in seconds;
    mirror = true where the captions stay true in a mirror. Exit code 3: done, but some inputs are in OUT/rejected.csv.
    """

    manifest: Path = argument(".csv, .tsv, .jsonl or .parquet table, a folder of videos, or of shards made with --pixels")
    out: Path = argument("folder to write, or to go on in")
    tokenizer: str = option("tiny", "visual tokenizer: name of weights in the package, or a folder")
    pixels: bool = option(
        False, "write pictures instead of codes: to train a tokenizer on, or to tokenise later; needs no tokenizer"
    )
    size: str | None = option(None, "WIDTHxHEIGHT in pixels", "the model's, where the tokenizer is part of one")
    buckets: bool = option(
        False, "also use other shapes of about that area, each video the nearest; otherwise all are cropped to SIZE"
    )
    frames: int | None = option(None, "frames a clip, 1 + 4k; longer videos make several", "the model's")
    fps: float | None = option(None, "frames a second", "the model's")
    least: int | None = option(
        None, "frames that a shorter video, or the rest of one, needs to be a clip of its own", "half of --frames"
    )
    every: float | None = option(
        None, "seconds from the start of a clip to the next; below the clip's length they overlap", "no overlap"
    )
    scene_cuts: float | None = option(
        None, "split where more than this share of the colours changes; 0.5 is a good start", "no splitting"
    )
    loop: bool = option(False, "repeat videos that are shorter than a clip, as animations are shown")
    mirror: Literal["none", "marked", "all"] | None = option(
        None, "mirrored copies: of no clips, of rows with mirror = true, of all", "marked"
    )
    rows: int = option(256, "rows of the manifest in a shard: what is lost at most when a process is killed")
    batch: int = option(16, "clips tokenised at once; fewer need less memory")
    workers: int | None = option(
        None, "decoding threads of this process", "one a core, shared among the processes of this machine"
    )
    device: str | None = option(None, "where to tokenise: cpu, cuda, cuda:1", "cuda if there is one, else cpu")
    dry_run: bool = option(False, "only check the manifest, and say what would be made")
    json: bool = option(False, "print one JSON document as the last line of stdout")


def run_prepare(args: PrepareArgs) -> int:
    from lumos.data.prepare import dry_run, prepare_shards
    from lumos.tokenizer.model import load_tokenizer
    from lumos.weights import find_weights

    folder = None if args.pixels else find_weights(args.tokenizer, "tokenizer")
    tokenizer = load_tokenizer(folder) if folder else None
    latent = (tokenizer.temporal, tokenizer.spatial) if tokenizer else None
    config = _config(args, _video_of(folder) if folder else {}, latent)
    if args.dry_run:
        report(dry_run(args.manifest, config, latent), args.json)
        return 0
    share = _share(args)
    where = f"rank {share.rank}: " if share.world > 1 else ""
    with progress_line("preparing") as progress:
        document = prepare_shards(
            args.manifest,
            args.out,
            config,
            tokenizer,
            share,
            progress,
            lambda line: print(f"lumos: {where}{line}", file=sys.stderr, flush=True),
            str(folder or ""),
        )
    report(document, args.json)
    return REJECTED if document.get("rejected") else 0


def _config(args: PrepareArgs, video: dict[str, Any], latent: tuple[int, int] | None) -> PrepareConfig:
    from lumos.data.clips import Cut
    from lumos.data.prepare import PrepareConfig
    from lumos.sequence.prompt_template import crops
    from lumos.tokenizer.compression import check_sides, latent_frames

    width, height = _sides(args.size) if args.size else (video.get("width"), video.get("height"))
    frames, fps = args.frames or video.get("frames"), args.fps or video.get("fps")
    missing = [name for name, value in (("size", width), ("frames", frames), ("fps", fps)) if not value]
    if missing or not (width and height and frames and fps):
        raise UsageError(
            f"give --{', --'.join(missing)}: this tokenizer is not part of a model that says; see lumos prepare --help"
        )
    step, unit = latent or (1, 1)
    latent_frames(frames, step)
    check_sides(height, width, unit)
    for name, value in (("fps", fps), ("every", args.every), ("rows", args.rows), ("batch", args.batch), ("least", args.least)):
        if value is not None and not 0 < value < 1e6:
            raise UsageError(f"--{name} must be above 0, got {value}; use for example 8")
    if args.scene_cuts is not None and not 0 < args.scene_cuts < 1:
        raise UsageError(f"--scene-cuts must be between 0 and 1, got {args.scene_cuts}; use for example 0.5")
    sizes = tuple((h, w) for w, h in crops(width, height)) if args.buckets else ((height, width),)
    cut = Cut(
        frames,
        float(fps),
        sizes,
        step,
        args.least or 1 + (frames - 1) // 2 // step * step,
        args.every,
        args.scene_cuts,
        args.loop,
    )
    return PrepareConfig(cut, args.mirror or "marked", args.rows, args.batch)


def _sides(size: str) -> tuple[int, int]:
    width, _, height = size.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and 16 <= int(width) <= 4096 and 16 <= int(height) <= 4096):
        raise UsageError(f"--size must be WIDTHxHEIGHT, 16 to 4096 pixels each, got {size!r}; for example 128x128")
    return int(width), int(height)


def _video_of(folder: Path) -> dict[str, Any]:
    """What the model around a tokenizer was made for: height, width, frames, fps."""
    from lumos.config import read_json

    above = folder.parent / "config.json"
    if folder.name != "tokenizer" or not above.exists():
        return {}
    config = read_json(above).get("config")
    video = config.get("video", {}) if isinstance(config, dict) else {}
    return video if isinstance(video, dict) else {}


def _share(args: PrepareArgs) -> Share:
    """This process's part, as torchrun says in the environment. The processes share files alone, so none waits for another."""
    import torch

    from lumos.data.prepare import Share

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local, here = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", world))
    device = args.device or (f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
    if args.workers is not None and args.workers < 1:
        raise UsageError(f"--workers must be at least 1, got {args.workers}; use 2")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device must be one that torch can use here, got {device!r}; use cpu") from error
    return Share(rank, world, device, args.workers or max(1, cores // here))
