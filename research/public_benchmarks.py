"""GenEval and VBench (from text, from images): their own prompt files -> files laid out and named as their tools read them.

    torchrun --nproc-per-node 8 -m research.public_benchmarks geneval --prompts FILE --weights FOLDER --out runs/geneval

GenEval: OUT/00000/metadata.jsonl (the prompt's line) and OUT/00000/samples/00000.png ... VBench: OUT/videos/PROMPT-0.mp4 ...
with nothing else in that folder. Several processes (torchrun) share the work; what is there is not made again.
"""

import argparse
import hashlib
import json
import os
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from lumos.cli.options import with_settings
from lumos.config import PACKAGED, read_json
from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.run import tell_progress, usual_batch
from lumos.evaluation.shapes import is_continued
from lumos.files import write_text
from lumos.generate import Generator, pick_device
from lumos.media.video import read_image, write_video
from lumos.weights import fingerprint


class Layout(NamedTuple):
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
Entries = Sequence[Mapping[str, Any]]  # of a suite's prompt file


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


class SuiteFile(NamedTuple):
    """One file to make."""

    path: Path
    text: str  # what the model is told
    seed: int
    image: Path | None


def generate_suite(
    generator: Generator, run: SuiteRun, sampler: SamplerConfig | None = None, rank: int = 0, world: int = 1
) -> dict[str, Any]:
    """Make the files of one process (every `world`-th from `rank` on) that are not there; returns how many there are.

    Raises ValueError, before any work, for files of another form, prompts that are too long for the model, and an `out` with
    other settings.
    """
    entries = read_suite(run.suite, run.prompts)
    files = suite_files(run, entries, read_rewrites(run.rewrites, run.suite, entries))
    video = generator.config.video
    frames = 1 if run.suite == "geneval" else video.frames
    for file in files:
        if not file.path.exists():
            generator.prompts.ids(file.text, frames, video.height, video.width)
    settings = {
        "suite": run.suite,
        "prompts": hashlib.sha256(run.prompts.read_bytes()).hexdigest()[:16],
        "rewrites": hashlib.sha256(run.rewrites.read_bytes()).hexdigest()[:16] if run.rewrites else None,
        "sampler": asdict(sampler or generator.config.sampler),
        "seed": run.seed,
        "weights": fingerprint(generator.model, generator.tokenizer),
    }
    is_continued(run.out, settings)
    for folder in {file.path.parent for file in files}:
        folder.mkdir(parents=True, exist_ok=True)
    for number, entry in enumerate(entries if run.suite == "geneval" else ()):
        write_text(run.out / f"{number:05}" / "metadata.jsonl", json.dumps(entry))
    mine = [file for file in files[rank::world] if not file.path.exists()]
    began, done = time.monotonic(), 0
    batch = run.batch or usual_batch(generator.device)
    for image, group in groupby(mine, key=lambda file: file.image):  # a batch starts from one image
        given, alike = read_image(image, video.height, video.width).pixels_CFHW if image else None, list(group)
        for part in (alike[start : start + batch] for start in range(0, len(alike), batch)):
            texts, seeds = [file.text for file in part], [file.seed for file in part]
            pixels_BCFHW = generator(texts, frames=frames, seed=seeds, given=given, sampler=sampler).cpu()
            for file, pixels_CFHW in zip(part, pixels_BCFHW, strict=True):
                write_video(file.path, pixels_CFHW, video.fps, overwrite=True)
            done += len(part)
            tell_progress(f"process {rank}: {done} of {len(mine)} files", done / len(mine), time.monotonic() - began)
    return {"files": sum(file.path.exists() for file in files), "of": len(files), "folder": str(run.out), **settings}


def read_suite(suite: str, path: Path) -> Entries:
    """The entries of a suite's own prompt file. ValueError naming the file and the rule for another form."""
    layout = SUITES[suite]
    try:
        text = path.read_text("utf-8")
        entries = [json.loads(line) for line in text.splitlines() if line.strip()] if suite == "geneval" else json.loads(text)
    except ValueError as error:
        form = "a JSON object per line" if suite == "geneval" else "one JSON list"
        raise ValueError(f"{path} must hold {form} as {suite}'s own prompt file does, got something else ({error})") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must hold at least one prompt, got none; give {suite}'s own prompt file")
    needed = [key for key in (layout.prompt, layout.image) if key]
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) and entry[key].strip() for key in needed):
            wanted = " and ".join(needed)
            raise ValueError(f"{path}: entry {number} must have {wanted}, got {str(entry)[:60]!r}; is it {suite}'s file?")
        if suite != "geneval" and "/" in entry[layout.prompt]:
            raise ValueError(f"prompts name files and must have no '/', got {entry[layout.prompt]!r}; is it {suite}'s own file?")
    return entries


def read_rewrites(path: Path | None, suite: str, entries: Entries) -> Mapping[str, str]:
    """A JSON object prompt -> longer prompt; every prompt of the suite must be in it."""
    prompts = [entry[SUITES[suite].prompt] for entry in entries]
    if path is None:
        return dict(zip(prompts, prompts, strict=True))
    rewrites = read_json(path)
    if not all(isinstance(text, str) and text.strip() for text in rewrites.values()):
        raise ValueError(f"{path} must be a JSON object from prompts to rewritten ones, got another form; see docs/evaluation.md")
    missing = [prompt for prompt in prompts if prompt not in rewrites]
    if missing:
        raise ValueError(f"{path} must rewrite every prompt, {len(missing)} are missing, first {missing[0]!r}; add them")
    return rewrites


def suite_files(run: SuiteRun, entries: Entries, texts: Mapping[str, str]) -> list[SuiteFile]:
    """Every file of a suite, always in the same order; a prompt that comes twice is made once."""
    layout = SUITES[run.suite]
    if run.samples is not None and run.samples < 1:
        raise ValueError(f"samples must be at least 1, got {run.samples}; leave it out for {run.suite}'s own number")
    if (run.images is not None) != (layout.image is not None):
        raise ValueError(f"--images FOLDER goes with vbench-i2v and only with it, got {run.images} for {run.suite}")
    files: dict[Path, SuiteFile] = {}
    for number, entry in enumerate(entries):
        prompt, flickers = entry[layout.prompt], run.suite == "vbench" and "temporal_flickering" in entry.get("dimension", ())
        image = run.images / entry[layout.image] if run.images and layout.image else None
        if image is not None and not image.is_file():
            raise ValueError(f"there is no image {image}; give the folder with VBench's cropped images as --images")
        for sample in range(run.samples or (FLICKERING if flickers else layout.samples)):
            path = run.out / layout.file.format(number=number, prompt=prompt, sample=sample)
            drawn = zlib.crc32(f"{run.seed} {number if run.suite == 'geneval' else prompt} {sample}".encode())
            files.setdefault(path, SuiteFile(path, texts[prompt], drawn, image))
    return list(files.values())


def place_of_process() -> tuple[int, int, int]:
    """Rank, world and local rank as torchrun says them; 0, 1, 0 alone."""
    rank, world, local = (int(os.environ.get(name, usual)) for name, usual in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    return rank, world, local


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--prompts", type=Path, required=True, help="the suite's own prompt file")
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is made; a half-done one is gone on with")
    parser.add_argument("--weights", default=PACKAGED, help=f"name of weights in the package, or a folder (default: {PACKAGED})")
    parser.add_argument(
        "--rewrites", type=Path, help="JSON object from the suite's prompts to longer ones that the model is told"
    )
    parser.add_argument("--images", type=Path, help="folder of the images that vbench-i2v starts from")
    parser.add_argument("--samples", type=int, help="files per prompt (default: the suite's own number)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change one setting of the sampler")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--batch", type=int, help="videos at a time (default: 104 on CUDA, else 4)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    args = parser.parse_args(words)
    rank, world, local = place_of_process()
    device = args.device or (f"cuda:{local}" if world > 1 and pick_device(None).type == "cuda" else None)
    run = SuiteRun(args.suite, args.prompts, args.out, args.samples, args.rewrites, args.images, args.seed, args.batch)
    try:
        generator = Generator.from_folder(args.weights, device)
        done = generate_suite(generator, run, with_settings(generator.config.sampler, args.set), rank, world)
    except (ValueError, OSError) as error:
        sys.exit(f"{args.suite}: {error}")
    if rank == 0:
        print(json.dumps(done))


if __name__ == "__main__":
    main()
