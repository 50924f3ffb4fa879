"""GenEval and VBench (from text, from images): their own prompt files -> files laid out and named as their tools read them.

GenEval: OUT/00000/metadata.jsonl (the prompt's line) and OUT/00000/samples/00000.png ... VBench: OUT/videos/PROMPT-0.mp4 ...
with nothing else in that folder. Several processes (torchrun) share the work; what is there is not made again.
"""

import hashlib
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.run import usual_batch
from lumos.evaluation.shapes import is_continued
from lumos.files import write_text
from lumos.generate import Generator
from lumos.media.video import read_image, write_video
from lumos.weights import fingerprint


@dataclass(frozen=True)
class Layout:
    """What a suite's prompt file must have, and how its tool wants the files."""

    prompt: str  # key of the prompt
    file: str  # of one sample
    samples: int  # of each prompt
    image: str | None = None  # key of the image to start from


FLICKERING = 25  # samples of VBench's "temporal_flickering", whose tool drops videos that move
SUITES = {
    "geneval": Layout("prompt", "{number:05}/samples/{sample:05}.png", 4),
    "vbench": Layout("prompt_en", "videos/{prompt}-{sample}.mp4", 5),
    "vbench-i2v": Layout("prompt_en", "videos/{prompt}-{sample}.mp4", 5, "image_name"),
}


@dataclass(frozen=True)
class SuiteRun:
    """What to make of a suite, and where."""

    suite: str  # one of SUITES
    prompts: Path  # the suite's own file
    out: Path
    samples: int | None = None  # of each prompt; None: as many as the suite wants
    rewrites: Path | None = None  # a JSON object from the suite's prompts to longer ones
    images: Path | None = None  # folder of VBench's images
    seed: int = 0
    batch: int | None = None  # videos at a time


@dataclass(frozen=True)
class SuiteFile:
    """One file to make. `prompt` names it, `text` is what the model is told."""

    file: Path
    prompt: str
    text: str
    seed: int
    image: Path | None = None


def generate_suite(
    generator: Generator, run: SuiteRun, sampler: SamplerConfig | None = None, rank: int = 0, world: int = 1, quiet: bool = False
) -> dict[str, Any]:
    """Make the files of one process (every `world`-th from `rank` on) that are not there; returns how many there are.

    Raises ValueError, before any work, for files of another form, prompts that are too long for the model, and an `out` with
    other settings.
    """
    entries = read_suite(run.suite, run.prompts)
    items = suite_files(run, entries, read_rewrites(run.rewrites, entries))
    video = generator.config.video
    frames = 1 if run.suite == "geneval" else video.frames
    for item in items:
        if not item.file.exists():
            generator.prompt_ids(item.text, frames, video.height, video.width)
    settings = {
        "suite": run.suite,
        "prompts": hashlib.sha256(run.prompts.read_bytes()).hexdigest()[:16],
        "rewrites": hashlib.sha256(run.rewrites.read_bytes()).hexdigest()[:16] if run.rewrites else None,
        "sampler": asdict(sampler or generator.config.sampler),
        "seed": run.seed,
        "weights": fingerprint(generator.model, generator.tokenizer),
    }
    is_continued(run.out, settings)
    for folder in {item.file.parent for item in items}:
        folder.mkdir(parents=True, exist_ok=True)
    for number, entry in enumerate(entries if run.suite == "geneval" else ()):
        write_text(run.out / f"{number:05}" / "metadata.jsonl", json.dumps(entry))
    mine = [item for item in items[rank::world] if not item.file.exists()]
    began = time.monotonic()
    for part in _of_one_image(mine, run.batch or usual_batch(generator.device)):
        given = read_image(part[0].image, video.height, video.width).pixels_CFHW if part[0].image else None
        texts, seeds = [item.text for item in part], [item.seed for item in part]
        pixels_BCFHW = generator(texts, frames=frames, seed=seeds, given=given, sampler=sampler).cpu()
        for item, pixels_CFHW in zip(part, pixels_BCFHW, strict=True):
            write_video(item.file, pixels_CFHW, video.fps, overwrite=True)
        if not quiet:
            _tell_files(rank, mine, time.monotonic() - began)
    return {"files": sum(item.file.exists() for item in items), "of": len(items), "folder": str(run.out), **settings}


def read_suite(suite: str, path: Path) -> list[dict[str, Any]]:
    """The entries of a suite's prompt file. ValueError naming file and rule for another form, and for none."""
    try:
        text = path.read_text("utf-8")
        entries = [json.loads(line) for line in text.splitlines() if line.strip()] if suite == "geneval" else json.loads(text)
    except ValueError as error:
        form = "a JSON object per line" if suite == "geneval" else "one JSON list"
        raise ValueError(f"{path} must hold {form} as {suite}'s own prompt file does, got something else ({error})") from None
    layout = SUITES[suite]
    needed = [layout.prompt, *([layout.image] if layout.image else [])]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must hold at least one prompt, got none; give {suite}'s own prompt file")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) and entry[key].strip() for key in needed):
            raise ValueError(
                f"{path}: entry {number} must have {' and '.join(needed)}, got {str(entry)[:60]!r}; is it {suite}'s file?"
            )
        if suite != "geneval" and "/" in entry[layout.prompt]:
            raise ValueError(f"prompts name files and must have no '/', got {entry[layout.prompt]!r}; is it {suite}'s own file?")
    return entries if suite == "geneval" else [{**entry, "prompt": entry[layout.prompt]} for entry in entries]


def read_rewrites(path: Path | None, entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A JSON object prompt -> longer prompt; every prompt of the suite must be in it."""
    if path is None:
        return {}
    try:
        found = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} must be a JSON object from prompts to rewritten ones, got something else ({error})") from None
    if not all(isinstance(text, str) and text.strip() for text in found.values()):
        raise ValueError(f"{path} must be a JSON object from prompts to rewritten ones, got another form; see docs/evaluation.md")
    missing = [entry["prompt"] for entry in entries if entry["prompt"] not in found]
    if missing:
        raise ValueError(f"{path} must rewrite every prompt, {len(missing)} are missing, first {missing[0]!r}; add them")
    return found


def suite_files(run: SuiteRun, entries: Sequence[Mapping[str, Any]], rewrites: Mapping[str, str]) -> list[SuiteFile]:
    """Every file of a suite, always in the same order; a prompt that comes twice is made once."""
    layout = SUITES[run.suite]
    if run.samples is not None and run.samples < 1:
        raise ValueError(f"samples must be at least 1, got {run.samples}; leave it out for {run.suite}'s own number")
    if (run.images is not None) != (layout.image is not None):
        raise ValueError(f"--images FOLDER goes with vbench-i2v and only with it, got {run.images} for {run.suite}")
    items: dict[Path, SuiteFile] = {}
    for number, entry in enumerate(entries):
        prompt, flickers = entry["prompt"], run.suite == "vbench" and "temporal_flickering" in entry.get("dimension", ())
        image = run.images / entry[layout.image] if run.images and layout.image else None
        if image is not None and not image.is_file():
            raise ValueError(f"there is no image {image}; give the folder with VBench's cropped images as --images")
        for sample in range(run.samples or (FLICKERING if flickers else layout.samples)):
            file = run.out / layout.file.format(number=number, prompt=prompt, sample=sample)
            drawn = zlib.crc32(f"{run.seed} {number if run.suite == 'geneval' else prompt} {sample}".encode())
            items.setdefault(file, SuiteFile(file, prompt, rewrites.get(prompt, prompt), drawn, image))
    return list(items.values())


def place_of_process() -> tuple[int, int, int]:
    """Rank, world and local rank as torchrun says them; 0, 1, 0 alone."""
    rank, world, local = (int(os.environ.get(name, usual)) for name, usual in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    return rank, world, local


def _of_one_image(items: Sequence[SuiteFile], size: int) -> Iterator[list[SuiteFile]]:
    """Items that start from the same image (or from none) together."""
    for _, group in groupby(items, key=lambda item: item.image):
        alike = list(group)
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _tell_files(rank: int, mine: Sequence[SuiteFile], seconds: float) -> None:
    done = sum(item.file.exists() for item in mine)
    left = seconds / max(done, 1) * (len(mine) - done)
    print(f"process {rank}: {done} of {len(mine)} files, {left / 60:.1f} minutes left", file=sys.stderr, flush=True)
