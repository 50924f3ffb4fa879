"""Seconds a video by three ways of decoding, with the same model on the same card: next-token prediction with a cache, mask
prediction without a cache, mask prediction with one (the paper: 960 s, 383 s, 77.8 s).

Passes of the true shapes over random codes, both branches of guidance in one batch. What a pass costs depends on how much lies
before it alone, so long series are measured at some of their passes and summed up in between; how many is in the result.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lumos.model.attention import attend_to_all, dense
from lumos.model.cache import Cache
from lumos.model.transformer import LUMOS_1B, ModelConfig, Transformer
from lumos.sequence.layout import HEADER, Grid, frame_positions

PROMPT = 64  # ids of prompt
CODES = 4096
TINY = ModelConfig(vocabulary=4803, layers=8, width=384, heads=6, kv_heads=2, head_width=64, ffn=1024)
TOY_SHAPE = ModelConfig(vocabulary=4803, layers=1, width=32, heads=1, kv_heads=1, head_width=32, ffn=32)


def measure_latency(device: torch.device, toy: bool = False) -> dict[str, Any]:
    """Seconds of the three ways for the model `tiny` (128x128, 17 frames, 16 steps) and on CUDA for the published 1B (448x256,
    25 frames, 50 steps)."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "toy": toy}
    if toy:
        found["toy model"] = compare(TOY_SHAPE, Grid(4, 4), 2, 2, device, dtype, samples=2)
        return found
    found["tiny, 128x128, 5 latent frames, 16 steps"] = compare(TINY, Grid(16, 16), 5, 16, device, dtype)
    if device.type == "cuda":
        found["1B, 448x256, 7 latent frames, 50 steps"] = compare(LUMOS_1B, Grid(32, 56), 7, 50, device, dtype)
    return found


def compare(
    shape: ModelConfig, grid: Grid, frames: int, steps: int, device: torch.device, dtype: torch.dtype, samples: int = 12
) -> dict[str, Any]:
    """Seconds a video of each way, and how many passes each took and measured."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Transformer(shape).to(dtype)
    model.initialise(torch.Generator(device).manual_seed(0))
    model.make_tables(device)
    run = _Passes(model, grid, frames, device, dtype)
    with torch.inference_mode():
        return {
            "next token": run.next_token(samples),
            "mask prediction without cache": run.without_cache(steps),
            "mask prediction with cache": run.with_cache(steps),
        }


class _Passes:
    def __init__(self, model: Transformer, grid: Grid, frames: int, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.grid, self.frames, self.device = model, grid, frames, device
        self.prefix = PROMPT + HEADER
        self.length = self.prefix + frames * grid.frame_length
        config = model.config
        self.cache = Cache(config.layers, 2, config.kv_heads, self.length, config.head_width, device, dtype)
        self.ids_BL = torch.randint(config.vocabulary, (2, self.length), device=device)
        text = torch.arange(self.prefix, device=device)[:, None].expand(-1, 3)
        content = frame_positions(grid, torch.tensor([PROMPT], device=device), 0, frames)[0]
        self.position_BL3 = torch.cat([text, content])[None].expand(2, -1, -1)
        frame = (torch.arange(self.length, device=device) - self.prefix).div(grid.frame_length, rounding_mode="floor")
        self.block_BL = torch.where(frame < 0, torch.arange(self.length, device=device) - self.prefix, frame).expand(2, -1)

    def next_token(self, samples: int) -> dict[str, float]:
        """One id a pass, everything before it in the cache."""
        passes = self.frames * self.grid.content
        times = []
        for number in range(samples):
            at = self.prefix + number * (self.length - self.prefix - 1) // max(1, samples - 1)
            self.cache.length = at
            times.append(self._seconds(lambda at=at: self._cached(at, at + 1), 3))  # type: ignore[misc]
        return {"seconds": passes * sum(times) / len(times), "passes": passes, "measured": len(times)}

    def without_cache(self, steps: int) -> dict[str, float]:
        """Prompt, history and the frame in the making in every pass."""
        times = []
        for frame in range(self.frames):
            stop = self.prefix + (frame + 1) * self.grid.frame_length
            ids, position, block = self.ids_BL[:, :stop], self.position_BL3[:, :stop], self.block_BL[:, :stop]
            attend = dense(block, block)

            def whole(ids: Tensor = ids, position: Tensor = position, attend: Any = attend) -> None:
                hidden_BLD = self.model(ids, position, attend)
                self._logits(hidden_BLD[:, -self.grid.frame_length :])

            times.append(self._seconds(whole, 3))
        return {"seconds": steps * sum(times), "passes": steps * self.frames, "measured": len(times)}

    def with_cache(self, steps: int) -> dict[str, float]:
        """The frame in the making alone; one more pass writes it into the cache, but for the last."""
        times, total = [], 0.0
        for frame in range(self.frames):
            start = self.prefix + frame * self.grid.frame_length
            self.cache.length = start
            times.append(self._seconds(lambda start=start: self._cached(start, start + self.grid.frame_length), 3))  # type: ignore[misc]
            total += times[-1] * (steps + (frame + 1 < self.frames))
        return {"seconds": total, "passes": (steps + 1) * self.frames - 1, "measured": len(times)}

    def _cached(self, start: int, stop: int) -> None:
        part = slice(start, stop)
        self._logits(self.model(self.ids_BL[:, part], self.position_BL3[:, part], attend_to_all([0]), self.cache))

    def _logits(self, hidden_BLD: Tensor) -> None:
        codes = min(CODES, self.model.config.vocabulary) if self.model.config.vocabulary < 10_000 else 64_000
        self.model.logits(hidden_BLD, self.model.config.vocabulary - codes, codes).argmax(dim=-1)

    def _seconds(self, work: Callable[[], None], times: int) -> float:
        """The median of some runs after a warm-up."""
        work()
        found = []
        for _ in range(times):
            self._wait()
            began = time.perf_counter()
            work()
            self._wait()
            found.append(time.perf_counter() - began)
        return sorted(found)[len(found) // 2]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
