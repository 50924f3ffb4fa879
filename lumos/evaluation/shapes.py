"""`lumos evaluate shapes`: a model against exact truth, in a folder that grows as the work goes on.

Prompts in fixed batches -> videos (files as they are finished) -> marks of the judge (one line of results.jsonl each) ->
report.json, report.html with the videos, and a contact sheet. The same command on a half-done folder goes on.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.prompts import VERSION, Prompt, benchmark, digest_of, one_object, prompts_in, smaller, to_lines
from lumos.evaluation.report import write_report
from lumos.evaluation.run import PromptBatch, batches, make, usual_batch, usual_workers, worker_pool
from lumos.evaluation.scores import Result, summary
from lumos.files import add_line, read_lines, write_text
from lumos.generate import Generator
from lumos.weights import fingerprint

SIZE, FPS = 128, 8


def evaluate_shapes(
    generator: Generator,
    out: Path,
    quick: bool = False,
    only: str | None = None,
    prompts: Path | None = None,
    sampler: SamplerConfig | None = None,
    seed: int = 0,
    batch: int | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Score a model; returns what it writes to out/report.json.

    quick: about a sixth of the prompts. only: one class ("counting") or task ("text to image") of the benchmark, or
    "one-object". prompts: a file of own prompts in the form of the folder's prompts.jsonl. batch: videos at a time (default
    104 on CUDA, else 4; images four times as many); part of the settings, as another may be rounded otherwise.
    workers: processes that judge and write files (default: 0 on the CPU, up to 14 with a GPU); changes no result.
    Raises ValueError for a model of another size, prompts that are none, and a folder of other settings.
    """
    check_model(generator)
    chosen = chosen_prompts(quick, only, prompts)
    for prompt in chosen:
        generator.prompt_ids(prompt.text, prompt.frames, SIZE, SIZE)  # too long a prompt shows before the work
    batch = usual_batch(generator.device) if batch is None else batch
    parts = batches(chosen, batch, seed)
    settings = {
        "benchmark": VERSION,
        "prompts": digest_of(chosen),
        "count": len(chosen),
        "sampler": asdict(sampler or generator.config.sampler),
        "seed": seed,
        "batch": batch,
        "device": generator.device.type,
        "weights": fingerprint(generator.model, generator.tokenizer),
    }
    if not is_continued(out, settings):
        (out / "videos").mkdir(exist_ok=True)
        write_text(out / "prompts.jsonl", to_lines(chosen))
    done = {result.id: result for result in _results(out / "results.jsonl")}
    started = time.monotonic()
    todo = [each for each in parts if any(prompt.id not in done for prompt in each.prompts)]
    work = [_operations(generator, each, sampler) for each in todo]
    count = usual_workers(generator.device) if workers is None else workers
    with worker_pool(count if todo else 0) as judges:
        for number, made in enumerate(make(generator, todo, judges, sampler, out), 1):
            for result in made:
                add_line(out / "results.jsonl", asdict(result))
            done |= {result.id: result for result in made}
            if not quiet:
                _tell_progress(todo, work, number, len(chosen), time.monotonic() - started)
    results = [done[prompt.id] for prompt in chosen]
    report = {"settings": settings, "seconds": round(time.monotonic() - started, 1), **summary(results)}
    report["prompts"] = [asdict(result) for result in results]
    write_text(out / "report.json", json.dumps(report, indent=1))
    write_report(out, report, results)
    return report


def chosen_prompts(quick: bool, only: str | None, prompts: Path | None) -> list[Prompt]:
    """The prompts to run."""
    if only == "one-object":
        if prompts is not None:
            raise ValueError(f"--only one-object has its own prompts, got also {prompts}; leave one out")
        return one_object(16 if quick else 64)
    chosen = prompts_in(prompts) if prompts else benchmark()
    if only is not None:
        names = sorted({name for prompt in chosen for name in prompt.checks} | {prompt.task for prompt in chosen})
        if only not in names:
            raise ValueError(f"--only must be a class or task, got {only!r}; known: one-object, {', '.join(names)}")
        chosen = [prompt for prompt in chosen if only in prompt.checks or only == prompt.task]
    return smaller(chosen) if quick else chosen


def check_model(generator: Generator) -> None:
    """ValueError for a model that cannot show the shapes world at 128x128 and 8 frames per second."""
    video = generator.config.video
    if (video.height, video.width, video.fps) != (SIZE, SIZE, FPS):
        raise ValueError(
            f"the shapes benchmark needs a model for {SIZE}x{SIZE} at {FPS} fps, got one for {video.width}x{video.height} "
            f"at {video.fps} fps; use one trained on the shapes world at that size"
        )


def is_continued(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder holds work with these settings; a new or empty one is started with them. ValueError for any other."""
    path = out / "settings.json"
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}; name another")
    if not path.exists():
        # Another process may just be starting the folder: its settings are written, under a hidden name first, before all else.
        if out.exists() and any(file.name[0] != "." for file in out.iterdir()) and not path.exists():
            raise ValueError(
                f"--out must be a new or empty folder, or one to go on with, got {out} with other files; name another"
            )
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=1))
        return False
    try:
        old = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} must be a JSON object, got a damaged one ({error}); use another folder") from None
    for name, value in settings.items():
        if name == "benchmark" and old.get(name) != value:
            raise ValueError(
                f"{out} holds results of version {old.get(name)} of the benchmark, this is version {value}: scores of the two "
                "cannot be compared; use another folder"
            )
        if old.get(name) != value:
            raise ValueError(
                f"{out} holds results with other settings ({name}: {old.get(name)!r}, now {value!r}); "
                "use the same settings to go on, or another folder"
            )
    return True


def _results(path: Path) -> list[Result]:
    try:
        return [Result(**line) for line in read_lines(path)]
    except TypeError as error:
        raise ValueError(f"{path} must have one result per line, got something else ({error}); use another folder") from None


def _tell_progress(todo: Sequence[PromptBatch], work: Sequence[float], ready: int, count: int, seconds: float) -> None:
    """One line on stderr: how many, how fast, how long still, by the operations of each batch (`work`)."""
    left = seconds / sum(work[:ready]) * sum(work[ready:])
    made, todo_still = (sum(len(each.prompts) for each in part) for part in (todo[:ready], todo[ready:]))
    line = f"{count - todo_still} of {count} prompts, {made / seconds:.2f} per second, {left / 60:.1f} minutes left"
    end = "\r" if sys.stderr.isatty() and ready < len(todo) else "\n"
    print(f"{line:<79}", end=end, file=sys.stderr, flush=True)


def _operations(generator: Generator, batch: PromptBatch, sampler: SamplerConfig | None) -> float:
    return generator.cost(len(batch.prompts), batch.prompts[0].frames, SIZE, SIZE, sampler).operations
