"""`lumos bench`: how fast a model generates on this machine, beside what the machine can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lumos.cli.options import option, progress_line, report

if TYPE_CHECKING:
    import torch

    from lumos.generate import Generator

PROMPT = "a red circle moves to the right"


@dataclass(frozen=True)
class BenchArgs:
    """Measure this machine with a model: seconds a video, a latent frame and to the first frame, memory, share of the peak.

    lumos bench
    lumos bench --weights FOLDER --width 672 --height 384 --precision fp8
    lumos bench --videos 16 --json
    """

    weights: str = option("tiny", "name of weights in the package, or a folder")
    frames: int | None = option(None, "length in frames, 1 + 4k", "as trained")
    height: int | None = option(None, "pixels, a multiple of 32", "the model's")
    width: int | None = option(None, "pixels, a multiple of 32", "the model's")
    videos: int = option(1, "videos made at once")
    steps: int | None = option(None, "denoising steps a latent frame", "the model's")
    guidance: float | None = option(None, "strength of guidance; 1 is none", "the model's")
    history: Literal["full", "visible"] | None = option(None, "see lumos generate", "the model's")
    precision: Literal["plain", "fp8", "int8"] | None = option(None, "see lumos generate", "plain")
    repeat: int = option(1, "timed runs, after one that warms up")
    device: str | None = option(None, "where to compute: cpu, cuda, cuda:1", "cuda if there is one, else cpu")
    json: bool = option(False, "print one JSON document as the last line of stdout")


def run_bench(args: BenchArgs) -> None:
    for name in ("videos", "repeat"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}; leave it out for 1")
    from lumos.diffusion.compute import Compute
    from lumos.generate import Generator

    generator = Generator.from_folder(args.weights, args.device, Compute(precision=args.precision or "plain"))
    with progress_line("measuring") as progress:
        document = bench(generator, args, progress)
    report(document, args.json)


def bench(generator: Generator, args: BenchArgs, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """One run that warms up, `repeat` timed ones; the fastest counts. Raises ValueError for sizes the model cannot make."""
    import time
    from dataclasses import replace

    from lumos.diffusion.cost import GIB, matrix_rate
    from lumos.tokenizer.compression import latent_frames

    video, device = generator.config.video, generator.device
    frames, height, width = args.frames or video.frames, args.height or video.height, args.width or video.width
    asked = {"steps": args.steps, "guidance": args.guidance}
    own = generator.config.sampler
    sampler = replace(own, **{name: value for name, value in asked.items() if value is not None})  # type: ignore[arg-type]
    if args.history:
        sampler = replace(sampler, only_visible=args.history == "visible")
    needed = generator.cost(args.videos, frames, height, width, sampler)
    rate = matrix_rate(device, generator.dtype)
    first, whole = [], []
    for _ in range(1 + args.repeat):
        _start_counting(device)
        begin = time.perf_counter()
        stream = generator.stream(
            [PROMPT] * args.videos,
            frames,
            list(range(args.videos)),
            sampler=sampler,
            height=height,
            width=width,
            progress=progress,
        )
        for number, part in enumerate(stream):
            part.cpu()  # waits for the device
            if number == 0:
                first.append(time.perf_counter() - begin)
        whole.append(time.perf_counter() - begin)
    seconds = min(whole[1:])
    return {
        "weights": args.weights,
        "device": _name(device),
        "made": f"{args.videos} of {width}x{height}, {frames} frames, {sampler.steps} steps, guidance {sampler.guidance}",
        "seconds": round(seconds, 3),
        "seconds of the first run": round(whole[0], 3),
        "seconds a latent frame": round(seconds / latent_frames(frames, generator.tokenizer.temporal), 3),
        "seconds to the first frame": round(min(first[1:]), 3),
        "frames a second": round(args.videos * frames / seconds, 1),
        "peak memory, GiB": round(_peak(device) / GIB, 2),
        "memory estimated beside the weights, GiB": round(needed.bytes / GIB, 2),
        "tera-operations": round(needed.operations / 1e12, 2),
        "matrix products here, tera-operations a second": round(rate / 1e12, 2),
        "share of that": round(needed.operations / seconds / rate, 3),
    }


def _name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _start_counting(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float:
    """Bytes: the most allocated on the card, or the most this process ever had."""
    import resource
    import sys

    import torch

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)
