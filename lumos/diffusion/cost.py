"""Memory and operations of a generation before it starts, so that what cannot work is refused with advice (paper section 3.3).

Counts follow from shapes; what is measured is the device: its free memory, and how fast it multiplies matrices.
"""

import os
import time
from typing import NamedTuple

import torch

from lumos.diffusion.compute import pass_operations
from lumos.diffusion.draw import MOST_LOGITS
from lumos.diffusion.frame_model import VideoSpec, most_slots, visible_content
from lumos.diffusion.sampler import SamplerConfig, guidance_strengths, places_asked
from lumos.model.transformer import ModelConfig
from lumos.sequence.layout import HEADER

GIB = 2**30
EFFICIENCY = 0.5  # of the matrix products' rate that a whole generation reaches; only for telling minutes from hours
DECODER = 400  # bytes per pixel of a code's area that decoding takes


class GenerationCost(NamedTuple):
    """What a generation takes beside the weights."""

    bytes: float  # of cache, activations, logits and decoding
    operations: float  # multiplications and additions


def generation_cost(
    config: ModelConfig, spec: VideoSpec, known: int, slots: int, codes: int, prompts: int, item: int, settings: SamplerConfig
) -> GenerationCost:
    """Of `prompts` videos of which `known` latent frames are there, with prompts of `slots` ids, `codes` visual codes, and `item`
    bytes per number."""
    grid = spec.grid
    places, prefix = grid.rows * grid.columns, slots + HEADER
    per_frame = [settings.for_frame(number, places) for number in range(spec.latent_frames)]
    rows = prompts * (2 if any(value != 1 for value in guidance_strengths(settings)) else 1)

    capacity = prefix + most_slots(spec, settings)
    cache = 2 * config.layers * rows * config.kv_heads * capacity * config.head_width * item
    activations = rows * grid.frame_length * (3 * config.ffn + 6 * config.width) * item
    logits = min(MOST_LOGITS, rows * places * codes) * (item + 16)
    decoding = prompts * places * grid.spatial**2 * DECODER

    operations = 0.0
    seen = visible_content(grid.content, settings) + grid.frame_length - grid.content  # slots of a frame that is history
    for number, each in enumerate(per_frame):
        if number < known:
            continue
        whole = 1 + len(spec.keyframes)  # frames with all their slots
        keys = prefix + min(number, (settings.window or spec.window) - 1) * seen + whole * grid.frame_length
        running = [prompts if strength == 1 else rows for strength in guidance_strengths(each)]
        for count in [*running, rows]:  # the last one is the pass that makes it history
            operations += pass_operations(config, count * grid.frame_length, keys)
        drawn = sum(count * asked for count, asked in zip(running, places_asked(each, places), strict=True))
        operations += 2.0 * drawn * config.width * codes * (2 if config.sub_codes else 1)
    return GenerationCost(cache + activations + logits + decoding, operations)


def check_memory(needed: float, device: torch.device) -> None:
    """ValueError with advice if `needed` bytes are more than the device has free."""
    free = free_memory(device)
    if free is not None and needed > free:
        raise ValueError(
            f"this needs about {needed / GIB:.1f} GiB of memory beside the weights, {free / GIB:.1f} GiB are free; "
            "use fewer prompts at once, fewer frames, a smaller size, a smaller --window or --history visible"
        )


def free_memory(device: torch.device) -> float | None:
    """Bytes that can still be used on the device; None where the system does not say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration):
        names = os.sysconf_names
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if "SC_PHYS_PAGES" in names else None


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Operations per second of square matrix products, measured in about 0.1 s."""
    side, repeats = side or (8192 if device.type == "cuda" else 1024), 10 if device.type == "cuda" else 4
    one, other = torch.randn(2, side, side, device=device).to(dtype)
    float((one @ other)[0, 0])  # to read a number waits for the device
    begin = time.perf_counter()
    for _ in range(repeats):
        last = one @ other
    float(last[0, 0])
    return repeats * 2.0 * side**3 / (time.perf_counter() - begin)
