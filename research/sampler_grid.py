"""Sampler settings -> scores: which steps, temperature, noise, history mask and guidance suit a model's weights.

`python -m research.sampler_grid --weights FOLDER --out X` tries settings one at a time around the model's own ones (with
--over NAME=V1,V2,... all combinations of those instead), adds a line to X/grid.jsonl for each, prints one table, best first,
and goes on where it stopped.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lumos.config import PACKAGED, read_config
from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.prompts import Prompt, benchmark, smaller
from lumos.evaluation.report import summary
from lumos.evaluation.run import batches, make, usual_batch, usual_workers, worker_pool
from lumos.evaluation.shapes import check_model
from lumos.files import add_line, read_lines
from lumos.generate import Generator
from lumos.weights import fingerprint
from research.one_object import measure_one_object

AROUND: dict[str, tuple[float, ...]] = {
    "steps": (8, 16, 24, 32, 48),
    "temperature": (0.4, 0.6, 0.8, 1.0),
    "noise": (1, 5, 20, 50, 100),
    "history": (0.0, 0.5, 0.7, 0.85, 0.92, 0.96),
    "guidance": (1, 2, 3, 4, 6),
}
PARTS: dict[str, Callable[[], list[Prompt]]] = {
    "none": list,
    "quick": lambda: smaller(benchmark()),
    "half": lambda: smaller(benchmark(), 2),
    "whole": benchmark,
}


def settings_around(own: SamplerConfig) -> list[SamplerConfig]:
    """The model's own settings, and those that differ from them in one."""
    kinds = {name: type(value) for name, value in asdict(own).items()}
    changed = [replace(own, **{name: kinds[name](value)}) for name, values in AROUND.items() for value in values]
    return list(dict.fromkeys([own, *changed]))


def settings_of(own: SamplerConfig, over: Sequence[str]) -> list[SamplerConfig]:
    """All combinations of NAME=V1,V2,... around the model's own settings. ValueError for names and values that are none."""
    axes: list[list[tuple[str, Any]]] = []
    for words in over:
        name, equals, values = words.partition("=")
        if not equals or name not in asdict(own) or not all(value.strip() for value in values.split(",")):
            raise ValueError(f"--over must be NAME=V1,V2,... with NAME one of {', '.join(asdict(own))}, got {words!r}")
        axes.append([(name, _value(value.strip())) for value in values.split(",")])
    return [read_config(SamplerConfig, {**asdict(own), **dict(chosen)}, "--over") for chosen in itertools.product(*axes)]


def run_grid(
    generator: Generator,
    out: Path,
    settings: Sequence[SamplerConfig],
    prompts: Sequence[Prompt],
    one_objects: int = 64,
    seed: int = 0,
    batch: int | None = None,
    workers: int | None = None,
    minutes: float = float("inf"),
) -> list[dict[str, Any]]:
    """Score each of the settings; returns the lines of out/grid.jsonl. Stops in time: before a point that would take longer."""
    check_model(generator)
    out.mkdir(parents=True, exist_ok=True)
    weights = fingerprint(generator.model, generator.tokenizer)
    task = {"weights": weights, "seed": seed, "one_objects": one_objects, "prompts": len(prompts)}
    lines = read_lines(out / "grid.jsonl")
    done = [line for line in lines if all(line.get(name) == value for name, value in task.items())]
    todo = [sampler for sampler in settings if not any(line["sampler"] == asdict(sampler) for line in done)]
    began = time.monotonic()
    with worker_pool(usual_workers(generator.device) if workers is None else workers) as judges:
        for number, sampler in enumerate(todo):
            spent = time.monotonic() - began
            if number and spent * (number + 1) / number > 60 * minutes:
                print(f"out of time: {number} of {len(todo)} settings; the same command goes on", file=sys.stderr)
                break
            point: dict[str, Any] = {**task, "sampler": asdict(sampler)}
            if one_objects:
                seen = measure_one_object(generator, one_objects, seed, batch, sampler, workers=judges, quiet=True)
                point["one_object"] = {name: seen[name] for name in ("colour", "direction")}
            if prompts:
                todo_parts = batches(prompts, batch or usual_batch(generator.device))
                scores = summary([result for some in make(generator, todo_parts, judges, sampler, seed) for result in some])
                point |= {name: scores[name] for name in ("overall", "splits", "tasks", "classes", "attributes")}
            point["seconds"] = round(time.monotonic() - began - spent, 2)
            add_line(out / "grid.jsonl", point)
            done.append(point)
            print(f"{number + 1} of {len(todo)}: {_line(point, _differing(settings))}", file=sys.stderr, flush=True)
    return done


def table(points: Sequence[dict[str, Any]]) -> str:
    """One line a point, best first: settings that differ, one-object shares, overall and class scores in percent."""
    if not points:
        return "nothing yet"
    names = _differing([read_config(SamplerConfig, point["sampler"], "grid.jsonl") for point in points])
    classes = list(points[0].get("classes", {}))
    heads = [*names, "colour1", "direction1", "overall", "held-out", *(name[:12] for name in classes), "seconds"]
    rows = [heads]
    for point in sorted(points, key=lambda point: -_goodness(point)):
        rows.append([*_cells(point, names), *(_percent(point["classes"][name]) for name in classes), f"{point['seconds']:.1f}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _goodness(point: dict[str, Any]) -> float:
    one = point.get("one_object", {})
    return float(point.get("overall", {}).get("score", 0.0)) + 1e-3 * sum(entry["score"] for entry in one.values())


def _line(point: dict[str, Any], names: Sequence[str]) -> str:
    heads = [*names, "colour1", "direction1", "overall", "held-out"]
    return "  ".join(f"{name} {cell}" for name, cell in zip(heads, _cells(point, names), strict=True))


def _cells(point: dict[str, Any], names: Sequence[str]) -> list[str]:
    one = point.get("one_object", {})
    scores = [one.get("colour"), one.get("direction"), point.get("overall"), point.get("splits", {}).get("held-out")]
    return [*(str(point["sampler"][name]) for name in names), *(_percent(entry) for entry in scores)]


def _percent(entry: dict[str, Any] | None) -> str:
    return "-" if entry is None else f"{100 * entry['score']:.1f}"


def _differing(settings: Sequence[SamplerConfig]) -> list[str]:
    """Names of the settings that are not all the same."""
    known = [asdict(sampler) for sampler in settings]
    return [name for name in known[0] if len({str(each[name]) for each in known}) > 1] or ["steps"]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=PACKAGED, help=f"name of weights in the package, or a folder (default: {PACKAGED})")
    parser.add_argument("--out", type=Path, required=True, help="folder for grid.jsonl and table.txt")
    parser.add_argument("--over", action="append", default=[], metavar="NAME=V1,V2,...", help="combine these; may be repeated")
    parser.add_argument("--benchmark", choices=PARTS, default="quick", help="part of the benchmark (default: quick)")
    parser.add_argument("--one-objects", type=int, default=64, help="one-object prompts, 0 for none (default: 64)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop in time (default: when all is done)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--batch", type=int, default=None, help="clips at a time (default: 104 on CUDA, else 4)")
    parser.add_argument("--workers", type=int, help="judging processes (default: 0 on the CPU, up to 14 with a GPU)")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda if there is one)")
    args = parser.parse_args(words)
    try:
        generator = Generator.from_folder(args.weights, args.device)
        own = generator.config.sampler
        settings = settings_of(own, args.over) if args.over else settings_around(own)
        amount = (PARTS[args.benchmark](), args.one_objects)
        points = run_grid(generator, args.out, settings, *amount, args.seed, args.batch, args.workers, args.minutes)
    except (ValueError, OSError) as error:
        sys.exit(f"grid: {error}")
    (args.out / "table.txt").write_text(table(points) + "\n", "utf-8")
    print(table(points))


if __name__ == "__main__":
    main()
