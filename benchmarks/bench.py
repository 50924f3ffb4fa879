"""What the benchmarks of sampling share: cells (a model and a size), variants of the engine, random weights, and `Bench`.

Every measurement is a line of --out at once, and nothing is started that may end after --max-seconds.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumos.diffusion.compute import Compute
from lumos.diffusion.frame_model import FrameModel, VideoSpec
from lumos.diffusion.sampler import SamplerConfig, sample_video
from lumos.files import add_line
from lumos.model.transformer import LUMOS_1B, LUMOS_3B, ModelConfig, Transformer
from lumos.sequence.layout import Grid
from lumos.sequence.vocabulary import Vocabulary, small_vocabulary

GIB = 2**30
PROMPT = 60  # text ids
PROMPT_IDS = [number % 90 for number in range(PROMPT)]
SEVEN = 25  # frames that 7 latent frames decode to
PROMPTS = ("a red circle moves to the right", "a blue star spins", "two green squares stay still", "a yellow ring falls")
ACCELERATED = 12  # steps: what `SamplerConfig` has
PARTS = {  # which kernels do what, by their names
    "attention": ("sdpa", "flash", "fmha", "attention"),
    "exchange": ("nccl",),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "_mm", "cublas", "matmul", "::mm"),
}


@dataclass(frozen=True)
class Cell:
    """One row of the table. `released`: seconds and GiB of the released code, measured on an H200 (bf16, 50 steps)."""

    name: str
    model: ModelConfig
    width: int
    height: int
    released: tuple[float, float] | None
    goals: tuple[float, float, float]  # seconds: exact in bf16, best exact, accelerated


CELLS = {
    "1b-256p": Cell("1B 448x256", LUMOS_1B, 448, 256, (29.1, 11.7), (9.5, 7.0, 2.9)),
    "1b-384p": Cell("1B 672x384", LUMOS_1B, 672, 384, (73.9, 29.3), (28.0, 24.0, 7.4)),
    "3b-384p": Cell("3B 672x384", LUMOS_3B, 672, 384, (170.0, 38.8), (57.0, 47.0, 17.0)),  # 0.579 s a step, times 50
}
TOY_MODEL = ModelConfig(vocabulary=0, layers=2, width=64, heads=4, kv_heads=2, head_width=32, ffn=96)
TOY_VOCABULARY = small_vocabulary(text_size=100, codes=512)
TOYS = {"toy": Cell("toy 64x32", replace(TOY_MODEL, vocabulary=TOY_VOCABULARY.size), 64, 32, None, (9.5, 7.0, 2.9))}


@dataclass(frozen=True)
class Variant:
    """One way to sample, in `steps` steps a latent frame; `every_cell`, or the first one alone."""

    name: str
    steps: int
    compute: Compute
    eager: bool = False
    only_visible: bool = False
    every_cell: bool = True


def variants(steps: int) -> list[Variant]:
    """In the order of running: quantised ones last, as the weights are changed in place."""
    plain = Compute(compile=True)
    return [
        Variant("exact bf16", steps, plain),
        Variant("accelerated bf16", ACCELERATED, plain),
        Variant("accelerated bf16, visible history", ACCELERATED, plain, only_visible=True),
        Variant("not compiled", 4, plain, eager=True, every_cell=False),
        Variant("no CUDA graphs", 4, replace(plain, graphs=False), every_cell=False),
        Variant("exact fp8", steps, replace(plain, precision="fp8")),
        Variant("accelerated fp8", ACCELERATED, replace(plain, precision="fp8")),
        Variant("int8 weights", 4, replace(plain, precision="int8"), every_cell=False),
    ]


class Bench:
    """The device, the budget and the file of results."""

    def __init__(self, device: torch.device, max_seconds: float, out: Path | None, measured: int) -> None:
        self.device, self.out, self.measured = device, out, measured
        self.begin, self.max_seconds = time.perf_counter(), max_seconds
        self.lines: list[dict[str, Any]] = []
        self.cuda = device.type == "cuda"

    def left(self) -> float:
        return self.max_seconds - (time.perf_counter() - self.begin)

    def keep(self, **line: Any) -> dict[str, Any]:
        self.lines.append(line)
        print(json.dumps(line), file=sys.stderr, flush=True)
        if self.out:
            add_line(self.out, line)
        return line

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any]) -> float:
        self.wait()
        begin = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - begin

    def repeat(self, work: Callable[[], Any], times: int) -> float:
        """Seconds of one call, after one that warms up."""
        work()
        return self.seconds(lambda: [work() for _ in range(times)]) / times

    @contextmanager
    def peak(self) -> Iterator[dict[str, float]]:
        """Most memory allocated meanwhile, weights included, GiB; 0 where nobody counts."""
        found = {"gib": 0.0}
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        yield found
        if self.cuda:
            found["gib"] = round(torch.cuda.max_memory_allocated(self.device) / GIB, 2)

    def free(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def make_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Random weights, made on the device."""
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    model.make_tables(device)
    model.initialise(torch.Generator(device).manual_seed(0))
    return model


def spec_of(cell: Cell) -> VideoSpec:
    grid = Grid(cell.height // 8, cell.width // 8)
    return VideoSpec(grid, 1 + SEVEN // 4, SEVEN, fps=12, window=22, latest=21)


def frames_of(
    model: Transformer, cell: Cell, vocabulary: Vocabulary, settings: SamplerConfig, variant: Variant
) -> Iterator[Tensor]:
    """Codes of one latent frame after another: prompt, frames and history, as `lumos generate` makes them, but for decoding."""
    compiled = variant.compute.compile is True and not variant.eager and model.embedding.is_cuda
    spec = spec_of(cell)
    made = FrameModel(model, vocabulary, spec, [PROMPT_IDS], [0], settings, variant.compute, compiled)
    codes = spec.grid.rows * spec.grid.columns
    return sample_video(made, settings, torch.zeros(1, 0, codes, dtype=torch.int64, device=made.device))


def make_video(model: Transformer, cell: Cell, vocabulary: Vocabulary, settings: SamplerConfig, variant: Variant) -> Tensor:
    """All codes of one video, codes_BTN."""
    return torch.stack(list(frames_of(model, cell, vocabulary, settings, variant)), dim=1)


def profile_steps(bench: Bench, cell: Cell, vocabulary: Vocabulary, model: Transformer, variant: Variant) -> None:
    """Where the device's time goes in the middle frame: shares by kernel, and the share in which no kernel ran."""
    from torch.profiler import ProfilerActivity, profile

    steps = 4
    settings = SamplerConfig(steps=steps, guidance=15.0, only_visible=variant.only_visible)
    frames = frames_of(model, cell, vocabulary, settings, variant)
    for _ in range(4):
        next(frames)
    bench.wait()
    activity = ProfilerActivity.CUDA if bench.cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        seconds = bench.seconds(lambda: next(frames))
    times: dict[str, float] = {}
    for event in found.key_averages():
        times[event.key] = (event.self_device_time_total if bench.cuda else event.self_cpu_time_total) / 1e6
    parts = dict.fromkeys([*PARTS, "rest"], 0.0)
    for name, value in times.items():
        part = next((part for part, words in PARTS.items() if any(word in name.lower() for word in words)), "rest")
        parts[part] += value
    top = sorted(times, key=lambda name: -times[name])[:8]
    bench.keep(
        what="profile",
        cell=cell.name,
        variant=variant.name,
        ms_a_step=round(seconds / steps * 1e3, 2),
        share={part: round(value / seconds, 3) for part, value in parts.items()}
        | {"idle": round(1 - sum(times.values()) / seconds, 3)},
        kernels=[[name[:70], round(times[name] / steps * 1e3, 3)] for name in top],
    )
