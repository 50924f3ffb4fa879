"""`lumos evaluate shapes`: a model against exact truth, in a folder that grows as the work goes on.

Prompts in fixed batches -> videos (files as they are finished) -> marks of the judge (one line of results.jsonl each) ->
report.json, and report.html with the videos. The same command on a half-done folder goes on.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lumos.config import read_json
from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.prompts import VERSION, Prompt, benchmark, one_object, prompts_in, smaller, to_lines
from lumos.evaluation.report import Result, summary, write_report
from lumos.evaluation.run import SIDE, batches, frames_of, make, tell_progress, usual_batch, usual_workers, worker_pool
from lumos.files import add_line, read_lines, write_text
from lumos.generate import Generator
from lumos.weights import fingerprint


def evaluate_shapes(
    generator: Generator,
    out: Path,
    prompts: Sequence[Prompt],
    sampler: SamplerConfig | None = None,
    seed: int = 0,
    batch: int | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Score a model; returns what it writes to out/report.json.

    batch: videos at a time (default 104 on CUDA, else 4; images four times as many); part of the settings, as another may be
    rounded otherwise. workers: processes that judge and write files (default: 0 on the CPU, up to 14 with a GPU); changes no
    result. Raises ValueError for a model of another size, too long a prompt, and a folder of other settings.
    """
    check_model(generator)
    video = generator.config.video
    for prompt in prompts:
        generator.prompts.ids(prompt.text, frames_of(prompt.frames, video.fps), video.height, video.width)
    batch = usual_batch(generator.device) if batch is None else batch
    parts = batches(prompts, batch)
    settings = {
        "benchmark": VERSION,
        "prompts": hashlib.sha256(to_lines(prompts).encode()).hexdigest()[:16],
        "count": len(prompts),
        "sampler": asdict(sampler or generator.config.sampler),
        "seed": seed,
        "batch": batch,
        "device": generator.device.type,
        "weights": fingerprint(generator.model, generator.tokenizer),
    }
    if not is_continued(out, settings):
        (out / "videos").mkdir(exist_ok=True)
        write_text(out / "prompts.jsonl", to_lines(prompts))
    try:
        done = {line["id"]: Result(**line) for line in read_lines(out / "results.jsonl")}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{out / 'results.jsonl'} must have one result per line, got something else ({error})") from None
    began = time.monotonic()
    todo = [part for part in parts if any(prompt.id not in done for prompt in part)]
    cost = {n: generator.cost(1, frames_of(n, video.fps), sampler=sampler).operations for n in {each.frames for each in prompts}}
    work, ready = sum(cost[prompt.frames] for part in todo for prompt in part), 0.0
    count = usual_workers(generator.device) if workers is None else workers
    with worker_pool(count if todo else 0) as judges:
        for part, results in zip(todo, make(generator, todo, judges, sampler, seed, out), strict=True):
            for result in results:
                add_line(out / "results.jsonl", asdict(result))
                done[result.id] = result
            ready += sum(cost[prompt.frames] for prompt in part)
            tell_progress(f"{len(done)} of {len(prompts)} prompts", ready / work, time.monotonic() - began)
    results = [done[prompt.id] for prompt in prompts]
    report = {"settings": settings, "seconds": round(time.monotonic() - began, 1), **summary(results)}
    report["prompts"] = [asdict(result) for result in results]
    write_text(out / "report.json", json.dumps(report, indent=1))
    write_report(out, report, results)
    return report


def chosen_prompts(quick: bool, only: str | None, file: Path | None) -> list[Prompt]:
    """The prompts to run.

    quick: about a sixth of them. only: one class ("counting") or task ("text to image"), or "one-object". file: own prompts in
    the form of the folder's prompts.jsonl, instead of the benchmark's. ValueError for what is none.
    """
    if only == "one-object":
        if file is not None:
            raise ValueError(f"--only one-object has its own prompts, got also {file}; leave one out")
        return one_object(16 if quick else 64)
    chosen = prompts_in(file) if file else benchmark()
    if only is not None:
        names = sorted({name for prompt in chosen for name in (prompt.task, *prompt.checks)})
        if only not in names:
            raise ValueError(f"--only must be a class or task, got {only!r}; known: one-object, {', '.join(names)}")
        chosen = [prompt for prompt in chosen if only in (prompt.task, *prompt.checks)]
    return smaller(chosen) if quick else chosen


def check_model(generator: Generator) -> None:
    """ValueError for a model that cannot show the shapes world to the judge, who looks at 128x128."""
    video = generator.config.video
    side, frames = video.height, frames_of(17, video.fps)
    if side != video.width or (side % SIDE and side != SIDE // 2) or (frames - 1) % generator.tokenizer.temporal:
        raise ValueError(
            f"the shapes benchmark needs a model of square videos, their sides {SIDE // 2} or a multiple of {SIDE}, whose two "
            f"seconds are whole latent frames, got one for {video.width}x{video.height} at {video.fps} fps"
        )


def is_continued(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder holds work with these settings; a new or empty one is started with them. ValueError for any other."""
    path = out / "settings.json"
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}; name another")
    if not path.exists():
        # Another process may just be starting the folder: its settings are written, under a hidden name first, before all else.
        if out.exists() and any(file.name[0] != "." for file in out.iterdir()) and not path.exists():
            raise ValueError(f"--out must be a new or empty folder, or one to go on with, got {out} with other files")
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=1))
        return False
    old = read_json(path)
    if "benchmark" in settings and old.get("benchmark") != VERSION:
        versions = f"version {old.get('benchmark')} of the benchmark, this is version {VERSION}"
        raise ValueError(f"{out} holds results of {versions}: scores of the two cannot be compared; use another folder")
    for name, value in settings.items():
        if old.get(name) != value:
            other = f"{name}: {old.get(name)!r}, now {value!r}"
            raise ValueError(f"{out} holds results with other settings ({other}); use the same to go on, or another folder")
    return True
