"""An endless stream of tokenised shapes clips and images: scenes -> captions and pixels -> text ids and codes_BTHW.

Worker processes draw scenes and captions (small tensors); the device renders and tokenises them. Chunk number i of a rank
depends on (seed, rank, i) alone, so a resumed run meets the same data. A pool of the latest chunks is used several times over,
each time with other masks: rendering and tokenising then cost little beside training.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lumos.data.batch import Batch
from lumos.sequence.layout import text_batch
from lumos.sequence.text import TextTokenizer
from lumos.sequence.vocabulary import Vocabulary
from lumos.tokenizer.model import VideoTokenizer
from lumos.worlds.shapes.captions import caption
from lumos.worlds.shapes.render import PackedScenes, pack, render
from lumos.worlds.shapes.scene import sample_image, sample_scene

RENDERED = 32


@dataclass(frozen=True)
class ShapesConfig:
    """Clips of `frames` frames (1 + 4k) at `fps`, size x size pixels; `chunk` clips and as many images are made at a time, the
    last `pool` chunks are kept, and every clip is used about `reuse` times."""

    size: int = 128
    frames: int = 33
    fps: int = 8
    chunk: int = 256
    pool: int = 16
    reuse: int = 4
    workers: int = 6


class _Half(NamedTuple):
    scenes: PackedScenes
    text_BS: Tensor
    length_B: Tensor


class Chunks(Dataset[tuple[_Half, _Half]]):
    """Chunk i of this rank: scenes and prompt ids of videos, and of images."""

    def __init__(
        self, config: ShapesConfig, text: TextTokenizer, vocabulary: Vocabulary, slots: int, seed: int, rank: int
    ) -> None:
        self.config, self.text, self.vocabulary, self.slots, self.seed, self.rank = config, text, vocabulary, slots, seed, rank

    def __getitem__(self, number: int) -> tuple[_Half, _Half]:
        rng = random.Random(f"{self.seed}/{self.rank}/{number}")
        return self._half(rng, image=False), self._half(rng, image=True)

    def _half(self, rng: random.Random, image: bool) -> _Half:
        scenes = [sample_image(rng) if image else sample_scene(rng) for _ in range(self.config.chunk)]
        prompts = [self.text.encode(caption(scene, rng, image=image)) for scene in scenes]
        return _Half(pack(scenes), *text_batch(self.vocabulary, prompts, self.slots))


class ShapesStream:
    """Batches of videos or images for training steps `first_step`, first_step + 1, ... on one rank.

    `batch(step, ...)` must be called once a step, in order.
    """

    def __init__(
        self, config: ShapesConfig, chunks: Chunks, tokenizer: VideoTokenizer, device: torch.device, batch: int, first_step: int
    ) -> None:
        self.config, self.device = config, device
        self.tokenise = make_tokeniser(config, tokenizer, device)
        self.steps_per_chunk = max(1, config.chunk * config.reuse // batch)
        first = max(0, first_step // self.steps_per_chunk)
        order = range(first, 2**40)
        self.chunks = iter(
            DataLoader(
                chunks,
                batch_size=None,
                sampler=order,
                num_workers=config.workers,
                prefetch_factor=2 if config.workers else None,
                pin_memory=device.type == "cuda",
                worker_init_fn=leave_signals_to_the_loop,
            )
        )
        self.pool: list[tuple[Batch, Batch]] = []
        self.next_chunk = first

    def batch(self, step: int, size: int, image: bool, generator: torch.Generator) -> Batch:
        """`size` clips of random chunks of the pool. The generator lives on the CPU."""
        while self.next_chunk <= step // self.steps_per_chunk + self.config.pool - 1:
            self._add_chunk()
        pool = [halves[image] for halves in self.pool]
        which = torch.randint(len(pool) * self.config.chunk, (size,), generator=generator)
        which = which.to(self.device, non_blocking=True)
        everything = [torch.cat(parts) for parts in zip(*pool, strict=True)]
        return Batch(*(part[which] for part in everything))

    def _add_chunk(self) -> None:
        video, image = next(self.chunks)
        self.pool.append((self._finish(video, self.config.frames), self._finish(image, 1)))
        self.pool = self.pool[-self.config.pool :]
        self.next_chunk += 1

    def _finish(self, half: _Half, frames: int) -> Batch:
        codes_BTHW = self.tokenise(half.scenes.to(self.device, non_blocking=True), frames)
        text_BS, length_B = (part.to(self.device, non_blocking=True) for part in half[1:])
        return Batch(text_BS, length_B, codes_BTHW)


def leave_signals_to_the_loop(worker: int) -> None:
    """For DataLoader workers: Ctrl-C and torchrun's SIGTERM reach the whole process group, and the loop still has to save."""
    # A worker that failed of them would take the training process with it. One that just leaves does not: enough is ready.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))


def make_tokeniser(
    config: ShapesConfig, tokenizer: VideoTokenizer, device: torch.device
) -> Callable[[PackedScenes, int], Tensor]:
    """Scenes on the device -> codes_BTHW, `RENDERED` clips at a time (pixels are large); compiled and bf16 on CUDA."""
    tokenizer = tokenizer.to(device).eval()
    # Compiled apart: as one graph, torch 2.11's compiler made a kernel that reads out of bounds.
    fast = device.type == "cuda"
    draw = torch.compile(render, dynamic=False) if fast else render
    encode = torch.compile(tokenizer.encode, dynamic=False) if fast else tokenizer.encode

    @torch.no_grad()
    def tokenise(scenes: PackedScenes, frames: int) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            parts = zip(scenes.objects_BNP.split(RENDERED), scenes.background_BP.split(RENDERED), strict=True)
            pixels = (draw(PackedScenes(*part), frames, config.size, config.fps) for part in parts)
            return torch.cat([encode(pixels_BCFHW) for pixels_BCFHW in pixels])

    return tokenise


def sample_captions(count: int, seed: int) -> Iterator[str]:
    """Captions of random scenes, videos and images in turn: what the text vocabulary is made from."""
    rng = random.Random(f"captions/{seed}")
    for number in range(count):
        image = bool(number % 2)
        yield caption(sample_image(rng) if image else sample_scene(rng), rng, image=image)
