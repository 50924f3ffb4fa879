"""An endless stream of tokenised shapes clips and images: scenes -> captions and pixels -> text ids and codes_BTHW.

Worker processes draw scenes and captions (small tensors); the device renders and tokenises them. Chunk number i of a rank
depends on (seed, rank, i) alone, so a resumed run meets the same data. A pool of the latest chunks is used several times over,
each time with other masks: rendering and tokenising then cost little beside training.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lumos.config import Range, Size, Whole
from lumos.data.batch import Batch, Schedule, drawn_ahead
from lumos.sequence.layout import text_batch
from lumos.sequence.text import TextTokenizer
from lumos.sequence.vocabulary import Vocabulary
from lumos.tokenizer.model import VideoTokenizer
from lumos.worlds.shapes.captions import caption
from lumos.worlds.shapes.render import PackedScenes, pack, render
from lumos.worlds.shapes.scene import sample_image, sample_scene

RENDERED = 32  # clips rendered and tokenised at once: pixels are large


@dataclass(frozen=True)
class ShapesConfig:
    """The built-in world's clips and images, and how often they are used."""

    size: Size = 128  # pixels of a side
    frames: Whole = 33  # of a clip, 1 + 4k
    fps: Whole = 8  # frames per second
    chunk: Whole = 256  # clips, and as many images, that are made at a time
    pool: Whole = 16  # latest chunks that are kept
    reuse: Whole = 4  # times that a clip is used, about
    workers: Annotated[int, Range(0, 1000)] = 6  # processes that draw scenes


class SceneBatches(Dataset[PackedScenes]):
    """Batch number `step` of one rank, to train a tokenizer: scenes of the numbers that are its share of the step's."""

    def __init__(self, seed: int, batch: int, rank: int = 0, world: int = 1, held_out: bool = False) -> None:
        self.seed, self.batch, self.rank, self.world, self.held_out = seed, batch, rank, world, held_out

    def __getitem__(self, step: int) -> PackedScenes:
        first = (step * self.world + self.rank) * self.batch
        return pack([sample_scene(random.Random(f"{self.seed} {n}"), self.held_out) for n in range(first, first + self.batch)])


Half = tuple[PackedScenes, Tensor, Tensor]  # of a chunk: scenes, text_BS, length_B


class Chunks(Dataset[tuple[Half, Half]]):
    """Chunk i of this rank: scenes and prompt ids of videos, and of images."""

    def __init__(self, config: ShapesConfig, text: TextTokenizer, vocabulary: Vocabulary, slots: int, schedule: Schedule) -> None:
        self.config, self.text, self.vocabulary, self.slots, self.schedule = config, text, vocabulary, slots, schedule

    def __getitem__(self, number: int) -> tuple[Half, Half]:
        rng = random.Random(f"{self.schedule.seed}/{self.schedule.rank}/{number}")
        return self._half(rng, image=False), self._half(rng, image=True)

    def _half(self, rng: random.Random, image: bool) -> Half:
        scenes = [sample_image(rng) if image else sample_scene(rng) for _ in range(self.config.chunk)]
        prompts = [self.text.encode(caption(scene, rng, image=image)) for scene in scenes]
        return pack(scenes), *text_batch(self.vocabulary, prompts, self.slots)


class ShapesStream:
    """Batches of videos or images for training steps `first_step`, first_step + 1, ... on one rank.

    `batch(step, ...)` must be asked for in order.
    """

    def __init__(self, chunks: Chunks, tokenizer: VideoTokenizer, first_step: int, device: torch.device) -> None:
        self.config, self.schedule, self.device = chunks.config, chunks.schedule, device
        self.tokenise = make_tokeniser(self.config, tokenizer, device)
        self.steps_per_chunk = max(1, self.config.chunk * self.config.reuse // self.schedule.videos)
        self.next_chunk = first_step // self.steps_per_chunk  # the oldest of the pool that this step is drawn from
        self.chunks = drawn_ahead(chunks, self.next_chunk, self.config.workers, 2, device)
        self.pool: list[tuple[Batch, Batch]] = []

    def batch(self, step: int, draw: torch.Generator) -> Batch:
        """Clips of random chunks of the pool whose prompts are about equally long: attention is fastest then."""
        while self.next_chunk <= step // self.steps_per_chunk + self.config.pool - 1:
            video, image = next(self.chunks)
            chunk = (self._tokenised(video, self.config.frames), self._tokenised(image, 1))
            self.pool = [*self.pool, chunk][-self.config.pool :]
            self.next_chunk += 1
        images = self.schedule.is_image(step)
        pool = Batch(*(torch.cat(parts) for parts in zip(*(halves[images] for halves in self.pool), strict=True)))
        count, clips = self.schedule.size(images), len(pool.length_B)
        # a stretch of all clips in the order of length, those of one length in random order: every clip is as likely
        order = (pool.length_B + torch.rand(clips, generator=draw)).argsort()
        first = int(torch.randint(clips, (), generator=draw))
        which = order[(first + torch.arange(count)) % clips]
        there = which.to(self.device, non_blocking=True)
        return Batch(pool.text_BS[there], pool.length_B[which], pool.codes_BTHW[there])

    def _tokenised(self, half: Half, frames: int) -> Batch:
        _, text_BS, length_B = half
        return Batch(
            text_BS.to(self.device, non_blocking=True),
            length_B,
            self.tokenise(half[0].to(self.device, non_blocking=True), frames),
        )


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
