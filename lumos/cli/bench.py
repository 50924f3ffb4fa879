"""`lumos bench`: how fast a model generates on this machine, beside what the machine can do."""

import resource
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

from lumos.cli.generate import sampling_of
from lumos.cli.options import progress_line, report, with_settings, within

PROMPT = "a red circle moves to the right"


@dataclass(frozen=True)
class BenchArgs:
    """Measure this machine with a model: seconds per video and latent frame, to the first frame, memory, share of the peak.

    lumos bench
    lumos bench --weights FOLDER --width 672 --height 384 --precision fp8
    lumos bench --videos 16 --json
    """

    weights: str = "tiny"  # name of weights in the package, or a folder
    frames: int | None = None  # length in frames, 1 + 4k (default: as trained)
    height: int | None = None  # pixels, a multiple of 32 (default: the model's)
    width: int | None = None  # pixels, a multiple of 32 (default: the model's)
    videos: int = 1  # videos made at once
    history: Literal["full", "visible"] | None = None  # see lumos generate (default: the model's)
    precision: Literal["plain", "fp8", "int8"] = "plain"  # see lumos generate
    repeat: int = 1  # timed runs, after one that warms up
    device: str | None = None  # where to compute: cpu, cuda, cuda:1 (default: cuda if there is one, else cpu)
    json: bool = False  # print one JSON document as the last line of stdout


def run_bench(args: BenchArgs, sampling: dict[str, Any]) -> None:
    """One run that warms up, `repeat` timed ones; the fastest counts. Raises ValueError for sizes the model cannot make."""
    within(args, {"videos": (1, 10_000), "repeat": (1, 10_000)})
    import torch

    from lumos.diffusion.compute import Compute
    from lumos.diffusion.cost import GIB, matrix_rate
    from lumos.generate import Generator
    from lumos.tokenizer.compression import latent_frames

    generator = Generator.from_folder(args.weights, args.device, Compute(precision=args.precision))
    sampler = with_settings(generator.config.sampler, sampling_of(sampling, args.history), "sampler")
    video, device = generator.config.video, generator.device
    on_card = device.type == "cuda"
    frames, height, width = args.frames or video.frames, args.height or video.height, args.width or video.width
    needed = generator.cost(args.videos, frames, height, width, sampler)
    rate = matrix_rate(device, generator.dtype)
    first, whole = [], []
    for _ in range(1 + args.repeat):
        if on_card:
            torch.cuda.reset_peak_memory_stats(device)
        prompts, seeds, ends = [PROMPT] * args.videos, list(range(args.videos)), []
        begin = time.perf_counter()
        with progress_line("measuring") as progress:
            for part in generator.stream(prompts, frames, seeds, None, sampler, height, width, progress):
                part.cpu()  # waits for the device
                ends.append(time.perf_counter())
        first.append(ends[0] - begin)
        whole.append(ends[-1] - begin)
    seconds = min(whole[1:])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # of this process
    document = {
        "weights": args.weights,
        "device": torch.cuda.get_device_name(device) if on_card else f"cpu, {torch.get_num_threads()} threads",
        "made": f"{args.videos} of {width}x{height}, {frames} frames, {sampler.steps} steps, guidance {sampler.guidance}",
        "seconds": round(seconds, 3),
        "seconds of the first run": round(whole[0], 3),
        "seconds a latent frame": round(seconds / latent_frames(frames, generator.tokenizer.temporal), 3),
        "seconds to the first frame": round(min(first[1:]), 3),
        "frames a second": round(args.videos * frames / seconds, 1),
        "peak memory, GiB": round((torch.cuda.max_memory_allocated(device) if on_card else most) / GIB, 2),
        "memory estimated beside the weights, GiB": round(needed.bytes / GIB, 2),
        "tera-operations": round(needed.operations / 1e12, 2),
        "matrix products here, tera-operations a second": round(rate / 1e12, 2),
        "share of that": round(needed.operations / seconds / rate, 3),
    }
    report(document, args.json)
