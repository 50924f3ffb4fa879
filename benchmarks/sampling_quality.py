"""Is faster sampling as good? Steps x sampler, guidance schedules, and history over long videos, judged from pixels.

    python benchmarks/sampling_quality.py --max-seconds 300 --out quality.jsonl       (--toy to rehearse)

Held-out prompts with one moving object: dominant colour and direction of motion of the first 17 frames, and the colour of the
last 17 of a long video, as shares of `--count` clips; seconds and memory of making them. Every point is a line of --out at
once; points already there are not made again. The 95 % interval of a share of 64 clips is about 12 points wide.
"""

import argparse
import json
import sys
import time
from concurrent.futures import Executor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lumos.config import PACKAGED
from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.prompts import one_object
from lumos.evaluation.run import usual_workers, worker_pool
from lumos.files import add_line, read_lines
from lumos.generate import Generator
from lumos.media.pixels import to_bytes
from research.one_object import look_without_scene

STEPS = (4, 6, 8, 12, 18, 25, 50)
SAMPLERS = ("paper", "random", "halton")
GUIDANCE = {"constant": 1.0, "off in the last quarter": 0.75, "off in the last half": 0.5}  # guidance_until
HISTORIES: dict[str, dict[str, Any]] = {
    "full (paper)": {},
    "window of 3": {"window": 3},
    "visible places only": {"only_visible": True},
}
LENGTHS = (17, 33, 65, 129)


def points(own: SamplerConfig) -> list[tuple[str, str, int, SamplerConfig]]:
    """(table, row, frames, settings), the most telling first."""
    found = [("history", name, frames, replace(own, **changes)) for frames in LENGTHS[:1] for name, changes in HISTORIES.items()]
    found += [
        ("steps", f"{sampler}, {steps}", 17, replace(own, steps=steps, sampler=sampler))  # type: ignore[arg-type]
        for steps in (12, 8, 18, 6, 25, 4, 50)
        for sampler in SAMPLERS
    ]
    found += [("guidance", name, 17, replace(own, guidance_until=until)) for name, until in GUIDANCE.items()]
    found += [("history", name, frames, replace(own, **changes)) for frames in LENGTHS[1:] for name, changes in HISTORIES.items()]
    return found


def measure(
    generator: Generator, sampler: SamplerConfig, frames: int, count: int, batch: int, workers: Executor
) -> dict[str, Any]:
    """Shares of clips that are right, and what making them took."""
    prompts, device = one_object(count), generator.device
    seconds, peak, starts, ends = 0.0, 0.0, [], []
    for start in range(0, count, batch):
        part = prompts[start : start + batch]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begin = time.perf_counter()
        pixels_BCFHW = generator([prompt.text for prompt in part], frames, list(range(start, start + len(part))), sampler=sampler)
        clips = to_bytes(pixels_BCFHW).numpy()  # waits for the device
        seconds += time.perf_counter() - begin
        peak = max(peak, torch.cuda.max_memory_allocated(device) / 2**30) if device.type == "cuda" else peak
        starts += [workers.submit(look_without_scene, clip[:, :17]) for clip in clips]
        ends += [workers.submit(look_without_scene, clip[:, -17:]) for clip in clips] if frames > 17 else []
    wanted = [(prompt.scene.things[0].colour, prompt.scene.things[0].motion) for prompt in prompts]
    seen = [future.result() for future in starts]
    last = [future.result() for future in ends] or seen
    return {
        "colour": sum(want[0] == saw[0] for want, saw in zip(wanted, seen, strict=True)) / count,
        "direction": sum(want[1] == saw[1] for want, saw in zip(wanted, seen, strict=True)) / count,
        "colour_at_the_end": sum(want[0] == saw[0] for want, saw in zip(wanted, last, strict=True)) / count,
        "clips": count,
        "batch": batch,
        "seconds": round(seconds, 2),
        "peak_gib": round(peak, 2),
    }


def table(lines: list[dict[str, Any]]) -> str:
    rows = ["| table | row | frames | colour | direction | colour at the end | seconds | GiB |", "| --- " * 8 + "|"]
    for line in sorted(lines, key=lambda line: (line["table"], line["frames"])):
        shares = " | ".join(f"{100 * line[name]:.0f} %" for name in ("colour", "direction", "colour_at_the_end"))
        rows.append(f"| {line['table']} | {line['row']} | {line['frames']} | {shares} | {line['seconds']} | {line['peak_gib']} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of faster sampling.")
    parser.add_argument("--weights", default=PACKAGED, help=f"name of weights in the package, or a folder (default: {PACKAGED})")
    parser.add_argument("--count", type=int, default=64, help="clips a point (default: 64)")
    parser.add_argument("--batch", type=int, default=64, help="clips at a time (default: 64)")
    parser.add_argument("--only", default="", help="points whose table or row contains this")
    parser.add_argument("--max-seconds", type=float, default=300.0, help="start no point after so many seconds (default: 300)")
    parser.add_argument("--toy", action="store_true", help="one clip, two points, 2 steps: to rehearse")
    parser.add_argument("--out", type=Path, default=None, help="file that gets every point as a JSON line")
    args = parser.parse_args()
    begin = time.perf_counter()
    generator = Generator.from_folder(args.weights)
    own = generator.config.sampler
    lines = read_lines(args.out) if args.out else []
    todo = [point for point in points(own) if args.only in f"{point[0]} {point[1]}"]
    count, batch = (1, 1) if args.toy else (args.count, args.batch)
    if args.toy:
        todo = [(name, row, frames, replace(sampler, steps=2)) for name, row, frames, sampler in todo[3:9:5]]
    with worker_pool(usual_workers(generator.device)) as workers:
        for name, row, frames, sampler in todo:
            if any((line["table"], line["row"], line["frames"], line["clips"]) == (name, row, frames, count) for line in lines):
                continue
            if time.perf_counter() - begin > args.max_seconds:
                print("the budget is spent; the same command goes on", file=sys.stderr)
                break
            found = measure(generator, sampler, frames, count, batch, workers)
            line = {"table": name, "row": row, "frames": frames, **found, "sampler": asdict(sampler)}
            lines.append(line)
            print(json.dumps({key: value for key, value in line.items() if key != "sampler"}), file=sys.stderr, flush=True)
            if args.out:
                add_line(args.out, line)
    print(table(lines))


if __name__ == "__main__":
    main()
