"""`lumos evaluate shapes`: a model against exact truth, in a folder that grows as the work goes on.

Prompts in fixed batches -> videos (files as they are finished) -> marks of the judge (one line of results.jsonl each) ->
report.json, report.html with the videos, and a contact sheet. The same command on a half-done folder goes on.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.prompts import VERSION, Prompt, benchmark, fingerprint, one_object, read_prompts, smaller, to_lines
from lumos.evaluation.report import write_report
from lumos.evaluation.scores import Result, summary
from lumos.generate import Generator
from lumos.shapes.judge import judge
from lumos.shapes.render import pack, render
from lumos.shapes.scene import Scene
from lumos.video import write_video

SIZE, FRAMES, FPS = 128, 17, 8
SETTINGS, RESULTS, PROMPTS, REPORT = "settings.json", "results.jsonl", "prompts.jsonl", "report.json"


@dataclass(frozen=True)
class Batch:
    """Prompts that are generated together: one task, and one image to start from."""

    prompts: tuple[Prompt, ...]
    seed: int


def evaluate_shapes(
    generator: Generator,
    out: Path,
    quick: bool = False,
    only: str | None = None,
    prompts: Path | None = None,
    sampler: SamplerConfig | None = None,
    seed: int = 0,
    batch: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Score a model; returns what it writes to out/report.json.

    quick: about a sixth of the prompts. only: one class ("counting") or task ("text to image") of the benchmark, or
    "one-object". prompts: a file of own prompts in the form of the folder's prompts.jsonl. batch: videos at a time (default
    48 on CUDA, 4 else; images four times as many); part of the settings, because it changes the random numbers.
    Raises ValueError for a model of another size, prompts that are none, and a folder of other settings.
    """
    _check_model(generator)
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}; leave it out for the default")
    chosen = choose(quick, only, prompts)
    for prompt in chosen:
        generator.prompt_ids(prompt.text, prompt.frames, SIZE, SIZE)  # too long a prompt shows before the work
    batch = batch or (48 if generator.device.type == "cuda" else 4)
    settings = {
        "benchmark": VERSION,
        "prompts": fingerprint(chosen),
        "count": len(chosen),
        "sampler": asdict(sampler or generator.config.sampler),
        "seed": seed,
        "batch": batch,
        "device": generator.device.type,
        "weights": weights_fingerprint(generator),
    }
    done = _open_folder(out, settings, chosen)
    started = time.monotonic()
    todo = [each for each in batches(chosen, batch, seed) if any(prompt.id not in done for prompt in each.prompts)]
    for number, each in enumerate(todo):
        for result in _run(generator, each, out, sampler):
            done[result.id] = result
        if not quiet:
            _tell(todo, number + 1, len(chosen), time.monotonic() - started)
    results = [done[prompt.id] for prompt in chosen]
    report = {"settings": settings, "seconds": round(time.monotonic() - started, 1), **summary(results)}
    report["prompts"] = [asdict(result) for result in results]
    _write(out / REPORT, json.dumps(report, indent=1))
    write_report(out, report, results)
    return report


def choose(quick: bool, only: str | None, prompts: Path | None) -> list[Prompt]:
    """The prompts to run."""
    if only == "one-object":
        if prompts is not None:
            raise ValueError(f"--only one-object has its own prompts, got also {prompts}; leave one out")
        return one_object(16 if quick else 64)
    chosen = read_prompts(prompts) if prompts else benchmark()
    if only is not None:
        names = sorted({name for prompt in chosen for name in prompt.checks} | {prompt.task for prompt in chosen})
        if only not in names:
            raise ValueError(f"--only must be a class or task, got {only!r}; known: one-object, {', '.join(names)}")
        chosen = [prompt for prompt in chosen if only in prompt.checks or only == prompt.task]
    return smaller(chosen) if quick else chosen


def batches(prompts: Sequence[Prompt], size: int, seed: int) -> list[Batch]:
    """Always the same ones: images four times as many at a time; those that start from an image with others of that image."""
    groups: dict[tuple[int, Scene | None], list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.frames, prompt.given), []).append(prompt)
    found: list[Batch] = []
    for (frames, _), group in groups.items():
        step = 4 * size if frames == 1 else size
        for start in range(0, len(group), step):
            found.append(Batch(tuple(group[start : start + step]), seed * 10_000 + len(found)))
    return found


def weights_fingerprint(generator: Generator) -> str:
    """Changes when any weight of the model or its tokenizer does."""
    digest = hashlib.sha256()
    for module in (generator.model, generator.tokenizer):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_model(generator: Generator) -> None:
    video = generator.config.video
    if (video.height, video.width, video.fps) != (SIZE, SIZE, FPS):
        raise ValueError(
            f"the shapes benchmark needs a model for {SIZE}x{SIZE} at {FPS} fps, got one for {video.width}x{video.height} "
            f"at {video.fps} fps; use one trained on the shapes world at that size"
        )


def _open_folder(out: Path, settings: dict[str, Any], prompts: Sequence[Prompt]) -> dict[str, Result]:
    """Start a folder, or the results so far of one with the same settings."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}; name another")
    if (out / SETTINGS).exists():
        _check_same(out, _read_json(out / SETTINGS), settings)
        return {result.id: result for result in _read_results(out / RESULTS)}
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out must be a new or empty folder, or one to go on with, got {out} with other files; name another")
    (out / "videos").mkdir(parents=True, exist_ok=True)
    _write(out / PROMPTS, to_lines(prompts))
    _write(out / SETTINGS, json.dumps(settings, indent=1))
    return {}


def _check_same(out: Path, old: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if old.get(name) != value:
            raise ValueError(
                f"{out} holds results with other settings ({name}: {old.get(name)!r}, now {value!r}); "
                "use the same settings to go on, or another folder"
            )


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be a JSON document, got a damaged one ({error}); use another folder") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(values).__name__}; use another folder")
    return values


def _read_results(path: Path) -> Iterator[Result]:
    """The whole lines of a results file; a last one that was cut off in the middle is left out, and made again."""
    if not path.exists():
        return
    lines = path.read_text("utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            yield Result(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no result ({error}); use another folder") from None
    if lines[-1]:
        _write(path, "\n".join([*lines[:-1], ""]))


def _run(generator: Generator, batch: Batch, out: Path, sampler: SamplerConfig | None) -> list[Result]:
    """Generate, judge and write one batch."""
    first = batch.prompts[0]
    given = render(pack([first.given]), 1)[0] if first.given else None
    texts = [prompt.text for prompt in batch.prompts]
    pixels_BCFHW = generator(texts, frames=first.frames, seed=batch.seed, given=given, sampler=sampler).cpu()
    results = []
    for prompt, pixels_CFHW in zip(batch.prompts, pixels_BCFHW, strict=True):
        file = f"videos/{prompt.id}{'.png' if prompt.frames == 1 else '.webp'}"
        write_video(out / file, pixels_CFHW, FPS, overwrite=True)
        results.append(_judged(prompt, pixels_CFHW, file))
    with open(out / RESULTS, "a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(result)) + "\n" for result in results)
    return results


def _judged(prompt: Prompt, pixels_CFHW: Tensor, file: str) -> Result:
    verdict = judge(prompt.scene, pixels_CFHW, FPS)
    classes = {name: verdict.all_of(attributes) for name, attributes in prompt.checks.items()}
    return Result(prompt.id, prompt.task, prompt.split, prompt.text, classes, verdict.marks, verdict.notes, file)


def _tell(todo: Sequence[Batch], ready: int, count: int, seconds: float) -> None:
    """One line on stderr: how many, how fast, how long still. A video is counted as five images: it has five latent frames."""
    work = [sum(1 if prompt.frames == 1 else 5 for prompt in each.prompts) for each in todo]
    left = seconds / sum(work[:ready]) * sum(work[ready:])
    made, todo_still = (sum(len(each.prompts) for each in part) for part in (todo[:ready], todo[ready:]))
    line = f"{count - todo_still} of {count} prompts, {made / seconds:.2f} a second, {left / 60:.1f} minutes left"
    end = "\r" if sys.stderr.isatty() and ready < len(todo) else "\n"
    print(f"{line:<79}", end=end, file=sys.stderr, flush=True)


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)
