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
from typing import Any, Literal

from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.making import usual_batch
from lumos.files import write_text
from lumos.generate import Generator
from lumos.media.video import read_image, write_video
from lumos.weights import fingerprint

Suite = Literal["geneval", "vbench", "vbench-i2v"]
SAMPLES: dict[Suite, int] = {"geneval": 4, "vbench": 5, "vbench-i2v": 5}
FLICKERING = 25  # samples of VBench's "temporal_flickering", whose tool drops videos that move
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Item:
    """One file to make. `prompt` names it, `text` is what the model is told."""

    file: Path
    prompt: str
    text: str
    seed: int
    image: Path | None = None


def generate_suite(
    generator: Generator,
    suite: Suite,
    prompts: Path,
    out: Path,
    samples: int | None = None,
    rewrites: Path | None = None,
    images: Path | None = None,
    sampler: SamplerConfig | None = None,
    seed: int = 0,
    batch: int | None = None,
    rank: int = 0,
    world: int = 1,
    quiet: bool = False,
) -> dict[str, Any]:
    """Make the files of one process (every `world`-th from `rank` on) that are not there; returns how many there are.

    prompts: the suite's own file. samples: of each prompt (default 4, 5, 5; 25 for VBench's temporal flickering). rewrites: a
    JSON object from prompts to longer ones. images: folder of VBench's images. Raises ValueError, before any work, for files of
    another form, prompts that are too long for the model, and an `out` with other settings.
    """
    entries = read_suite(suite, prompts)
    items = plan(suite, entries, out, samples, read_rewrites(rewrites, entries), images, seed)
    frames = 1 if suite == "geneval" else generator.config.video.frames
    height, width = generator.config.video.height, generator.config.video.width
    for item in items:
        if not item.file.exists():
            generator.prompt_ids(item.text, frames, height, width)
    settings = {
        "suite": suite,
        "prompts": hashlib.sha256(prompts.read_bytes()).hexdigest()[:16],
        "rewrites": hashlib.sha256(rewrites.read_bytes()).hexdigest()[:16] if rewrites else None,
        "sampler": asdict(sampler or generator.config.sampler),
        "seed": seed,
        "weights": fingerprint(generator.model, generator.tokenizer),
    }
    _prepare(out, settings, suite, entries)
    mine = [item for item in items[rank::world] if not item.file.exists()]
    began = time.monotonic()
    for part in _batches(mine, batch or usual_batch(generator.device)):
        given = read_image(part[0].image, height, width).pixels_CFHW if part[0].image else None
        texts, seeds = [item.text for item in part], [item.seed for item in part]
        pixels_BCFHW = generator(texts, frames=frames, seed=seeds, given=given, sampler=sampler).cpu()
        for item, pixels_CFHW in zip(part, pixels_BCFHW, strict=True):
            write_video(item.file, pixels_CFHW, generator.config.video.fps, overwrite=True)
        if not quiet:
            _tell(rank, mine, time.monotonic() - began)
    return {"files": sum(item.file.exists() for item in items), "of": len(items), "folder": str(out), **settings}


def read_suite(suite: Suite, path: Path) -> list[dict[str, Any]]:
    """The entries of a suite's prompt file. ValueError naming file and rule for another form, and for none."""
    try:
        text = path.read_text("utf-8")
        entries = [json.loads(line) for line in text.splitlines() if line.strip()] if suite == "geneval" else json.loads(text)
    except ValueError as error:
        form = "a JSON object a line" if suite == "geneval" else "one JSON list"
        raise ValueError(f"{path} must hold {form} as {suite}'s own prompt file does, got something else ({error})") from None
    name = "prompt" if suite == "geneval" else "prompt_en"
    needed = [name, *(["image_name"] if suite == "vbench-i2v" else [])]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must hold at least one prompt, got none; give {suite}'s own prompt file")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) and entry[key].strip() for key in needed):
            raise ValueError(
                f"{path}: entry {number} must have {' and '.join(needed)}, got {str(entry)[:60]!r}; is it {suite}'s file?"
            )
    return [{**entry, "prompt": entry[name]} if suite != "geneval" else entry for entry in entries]


def read_rewrites(path: Path | None, entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A JSON object prompt -> longer prompt; every prompt of the suite must be in it."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be a JSON object from prompts to rewritten ones, got something else ({error})") from None
    if not isinstance(found, dict) or not all(isinstance(text, str) and text.strip() for text in found.values()):
        raise ValueError(f"{path} must be a JSON object from prompts to rewritten ones, got another form; see docs/evaluation.md")
    missing = [entry["prompt"] for entry in entries if entry["prompt"] not in found]
    if missing:
        raise ValueError(f"{path} must rewrite every prompt, {len(missing)} are missing, first {missing[0]!r}; add them")
    return found


def plan(
    suite: Suite,
    entries: Sequence[Mapping[str, Any]],
    out: Path,
    samples: int | None,
    rewrites: Mapping[str, str],
    images: Path | None,
    seed: int,
) -> list[Item]:
    """Every file of a suite, always in the same order; a prompt that comes twice is made once."""
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}; leave it out for {suite}'s own number")
    if (images is not None) != (suite == "vbench-i2v"):
        raise ValueError(f"--images FOLDER goes with vbench-i2v and only with it, got {images} for {suite}; correct it")
    items: dict[Path, Item] = {}
    for number, entry in enumerate(entries):
        prompt = entry["prompt"]
        count = samples or (
            FLICKERING if "temporal_flickering" in entry.get("dimension", ()) and suite == "vbench" else SAMPLES[suite]
        )
        image = images / entry["image_name"] if images else None
        if image is not None and not image.is_file():
            raise ValueError(f"there is no image {image}; give the folder with VBench's cropped images as --images")
        if suite != "geneval" and "/" in prompt:
            raise ValueError(f"prompts name files and must have no '/', got {prompt!r}; is it {suite}'s own file?")
        for sample in range(count):
            name = f"{number:05}/samples/{sample:05}.png" if suite == "geneval" else f"videos/{prompt}-{sample}.mp4"
            drawn = zlib.crc32(f"{seed} {number if suite == 'geneval' else prompt} {sample}".encode())
            items.setdefault(out / name, Item(out / name, prompt, rewrites.get(prompt, prompt), drawn, image))
    return list(items.values())


def place_of_process() -> tuple[int, int, int]:
    """Rank, world and local rank as torchrun says them; 0, 1, 0 alone."""
    return tuple(int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))  # type: ignore[return-value]


def _prepare(out: Path, settings: dict[str, Any], suite: Suite, entries: Sequence[Mapping[str, Any]]) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}; name another")
    path = out / SETTINGS
    if path.exists():
        try:
            old = json.loads(path.read_text("utf-8"))
        except ValueError:
            raise ValueError(f"{path} must be a JSON document, got a damaged one; use another folder") from None
        for name, value in settings.items():
            if old.get(name) != value:
                raise ValueError(
                    f"{out} holds files with other settings ({name}: {old.get(name)!r}, now {value!r}); "
                    "use the same settings to go on, or another folder"
                )
    out.mkdir(parents=True, exist_ok=True)
    for number, entry in enumerate(entries if suite == "geneval" else ()):
        (out / f"{number:05}" / "samples").mkdir(parents=True, exist_ok=True)
        write_text(out / f"{number:05}" / "metadata.jsonl", json.dumps(entry))
    if suite != "geneval":
        (out / "videos").mkdir(exist_ok=True)
    if not path.exists():
        write_text(path, json.dumps(settings, indent=1))


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Items that start from the same image (or from none) together."""
    for _, group in groupby(items, key=lambda item: item.image):
        alike = list(group)
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _tell(rank: int, mine: Sequence[Item], seconds: float) -> None:
    done = sum(item.file.exists() for item in mine)
    left = seconds / max(done, 1) * (len(mine) - done)
    print(f"process {rank}: {done} of {len(mine)} files, {left / 60:.1f} minutes left", file=sys.stderr, flush=True)
