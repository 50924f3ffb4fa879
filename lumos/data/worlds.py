"""An endless stream of clips and images of the built-in worlds: scenes -> captions and pixels -> text ids and codes_BTHW.

Worker processes draw scenes and captions (small tensors); the device renders and tokenises them. Chunk number i of a rank
depends on (seed, rank, i) alone, so a resumed run meets the same data. A pool of the latest chunks is used several times over,
each time with other masks: rendering and tokenising then cost little beside training.
"""

import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

import lumos.worlds.creatures.captions as creature_words
import lumos.worlds.creatures.render as creature_pictures
import lumos.worlds.creatures.scene as creature_scenes
import lumos.worlds.shapes.captions as shape_words
import lumos.worlds.shapes.render as shape_pictures
import lumos.worlds.shapes.scene as shape_scenes
import lumos.worlds.stickers.captions as sticker_words
import lumos.worlds.stickers.render as sticker_pictures
import lumos.worlds.stickers.scene as sticker_scenes
from lumos.config import Range, Scale, Share, Size, Whole
from lumos.data.batch import Batch, Schedule, drawn_ahead
from lumos.sequence.layout import text_batch
from lumos.sequence.text import TextTokenizer
from lumos.sequence.vocabulary import Vocabulary
from lumos.tokenizer.model import VideoTokenizer
from lumos.worlds.creatures.library import Library, load_library
from lumos.worlds.stickers.library import load_stickers

RENDERED = 32  # clips rendered and tokenised at once: pixels are large


@dataclass(frozen=True)
class WorldsConfig:
    """The built-in worlds' clips and images, and how often they are used."""

    size: Size = 128  # pixels of a side
    frames: Whole = 33  # of a clip, 1 + 4k
    fps: Scale = 8  # frames per second
    shapes: Share = 1.0  # share of the chunks that are of the shapes world,
    stickers: Share = 0.0  # of stickers (which need --stickers),
    creatures: Share = 0.0  # and of creatures (which need --creatures)
    chunk: Whole = 256  # images of one world that are made at a time, or clips if the steps use more of them
    pool: Whole = 16  # latest chunks that are kept
    reuse: Whole = 4  # times that a clip is used, about
    workers: Annotated[int, Range(0, 1000)] = 6  # processes that draw scenes

    def __post_init__(self) -> None:
        total = self.shapes + self.stickers + self.creatures
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of shapes, stickers and creatures must add up to 1, got {total:g}; change one")


class Shapes:
    """The shapes world. A world draws random scenes, packed on the CPU, and their captions (of images what one frame shows), and
    renders them: pixels_BCFHW in [-1, 1] on the device."""

    def draw(self, rngs: Sequence[random.Random], image: bool) -> tuple[shape_pictures.PackedScenes, list[str]]:
        scenes = [shape_scenes.sample_scene(rng) for rng in rngs]
        scenes = [shape_scenes.freeze(scene) for scene in scenes] if image else scenes
        words = [shape_words.caption(scene, rng, image=image) for scene, rng in zip(scenes, rngs, strict=True)]
        return shape_pictures.pack(scenes), words

    def render(self, packed: shape_pictures.PackedScenes, frames: int, config: WorldsConfig, device: torch.device) -> Tensor:
        draw = _compiled_shapes() if device.type == "cuda" else shape_pictures.render
        return draw(packed.to(device), frames, config.size, config.fps)


_compiled_shapes = cache(lambda: torch.compile(shape_pictures.render, dynamic=False))


class Stickers:
    """The stickers world with these stickers, whose pictures go to the device when they are first needed."""

    def __init__(self, stickers: Sequence[sticker_scenes.Sticker], pictures: sticker_pictures.Pictures) -> None:
        self.stickers, self.pictures = stickers, pictures

    def draw(self, rngs: Sequence[random.Random], image: bool) -> tuple[sticker_pictures.PackedScenes, list[str]]:
        scenes = [sticker_scenes.sample_scene(rng, self.stickers) for rng in rngs]
        pairs = zip(scenes, rngs, strict=True)
        return sticker_pictures.pack(scenes), [sticker_words.caption(scene, self.stickers, rng, image) for scene, rng in pairs]

    def render(self, packed: sticker_pictures.PackedScenes, frames: int, config: WorldsConfig, device: torch.device) -> Tensor:
        self.pictures = self.pictures.to(device)
        return sticker_pictures.render(packed.to(device), self.pictures, frames, config.size, config.fps)


class Creatures:
    """The creatures world with these bodies."""

    def __init__(self, library: Library) -> None:
        self.library = library

    def draw(self, rngs: Sequence[random.Random], image: bool) -> tuple[creature_pictures.PackedScenes, list[str]]:
        scenes = [creature_scenes.sample_scene(self.library.bodies, rng.getrandbits(48), 0) for rng in rngs]
        words = [creature_words.caption(scene, rng, image=image) for scene, rng in zip(scenes, rngs, strict=True)]
        return creature_pictures.pack(scenes, self.library), words

    def render(self, packed: creature_pictures.PackedScenes, frames: int, config: WorldsConfig, device: torch.device) -> Tensor:
        self.library = self.library.to(device)
        return creature_pictures.render(packed, self.library, frames, config.size, config.fps)


World = Shapes | Stickers | Creatures


def open_worlds(config: WorldsConfig, stickers: Path | None, creatures: Path | None) -> dict[str, World]:
    """The worlds that have a share, by name. stickers: a manifest; creatures: a folder or zip of GLB files.

    ValueError for a world whose files are not given or cannot be read.
    """
    worlds: dict[str, World] = {"shapes": Shapes()} if config.shapes else {}
    for name, source, what in (("stickers", stickers, "MANIFEST"), ("creatures", creatures, "FOLDER")):
        if getattr(config, name) and source is None:
            rule = f"worlds.{name} must be 0 without the {name}' files, got {getattr(config, name):g}"
            raise ValueError(f"{rule}; give --{name} {what} (examples/ says where they are had), or set the share of shapes to 1")
    if config.stickers and stickers is not None:
        worlds["stickers"] = Stickers(*load_stickers(stickers, config.size, config.fps, config.workers))
    if config.creatures and creatures is not None:
        worlds["creatures"] = Creatures(load_library(creatures))
    return worlds


Half = tuple[list[Any], Tensor, Tensor, Tensor]  # of a chunk: packed scenes, RENDERED at a time; text_BS, length_B, key_at_B


@dataclass
class Chunks(Dataset[tuple[str, Half, Half]]):
    """Chunk i of this rank: the name of its world, scenes and prompt ids of videos, and of images.

    Both halves are as large as the steps use them up: then every clip and every image is used `reuse` times.
    """

    config: WorldsConfig
    worlds: dict[str, World]
    text: TextTokenizer
    vocabulary: Vocabulary
    slots: int
    schedule: Schedule

    def __post_init__(self) -> None:
        image_share = 1 / self.schedule.image_every if self.schedule.image_every else 0.0
        per_step = self.schedule.videos * (1 - image_share), self.schedule.images * image_share
        self.sizes = [max(1, round(self.config.chunk * each / max(per_step))) for each in per_step]  # clips and images of a chunk
        self.steps = max(1, int(self.config.chunk * self.config.reuse / max(per_step)))  # that a chunk is made for

    def __getitem__(self, number: int) -> tuple[str, Half, Half]:
        # all ranks take the same world, so that none waits for another's slower one
        at = f"{self.schedule.seed}/{number}"
        name = world_of(number, {name: getattr(self.config, name) for name in self.worlds})
        rng = random.Random(f"{at}/{self.schedule.rank}")
        video, image = (self._half(self.worlds[name], rng, count, bool(kind)) for kind, count in enumerate(self.sizes))
        return name, video, image

    def _half(self, world: World, rng: random.Random, count: int, image: bool) -> Half:
        parts, prompts = [], []
        for first in range(0, count, RENDERED):
            packed, captions = world.draw([rng] * min(RENDERED, count - first), image)
            parts.append(packed)
            prompts += [self.text.encode(words)[: self.slots - 2] for words in captions]
        key_at_B = torch.tensor([0 if image else rng.randrange(1, max(2, self.config.frames)) for _ in prompts])
        return parts, *text_batch(self.vocabulary, prompts, self.slots), key_at_B


def world_of(number: int, share: dict[str, float]) -> str:
    """The world of chunk `number`: each has its share of any few chunks in a row, so that every pool holds all worlds.

    Multiples of the golden ratio spread evenly, where random draws leave a pool without a world or with it alone.
    """
    place = number * (5**0.5 - 1) / 2 % 1
    return list(share)[bisect([*accumulate(share.values())][:-1], place)]


class WorldsStream:
    """Batches of videos or images for training steps `first_step`, first_step + 1, ... on one rank.

    `batch(step, ...)` must be asked for in order.
    """

    def __init__(self, chunks: Chunks, tokenizer: VideoTokenizer, first_step: int, device: torch.device) -> None:
        self.config, self.schedule, self.device, self.worlds = chunks.config, chunks.schedule, device, chunks.worlds
        self.tokenizer = tokenizer.to(device).eval()
        # Apart from the renderer: as one graph, torch 2.11's compiler made a kernel that reads out of bounds.
        self.encode = torch.compile(tokenizer.encode, dynamic=False) if device.type == "cuda" else tokenizer.encode
        self.steps_per_chunk = chunks.steps
        self.next_chunk = first_step // self.steps_per_chunk  # the oldest of the pool that this step is drawn from
        self.chunks = drawn_ahead(chunks, self.next_chunk, self.config.workers, 2, device)
        self.latest: list[tuple[Batch, Batch]] = []  # of each chunk clips and images
        self.pool: list[Batch] = []  # the same put together: all clips, all images

    def batch(self, step: int, draw: torch.Generator) -> Batch:
        """Random clips, or images, of the pool."""
        count = self.config.pool
        while self.next_chunk < step // self.steps_per_chunk + count:
            name, video, image = next(self.chunks)
            chunk = (self.tokenised(name, video, self.config.frames), self.tokenised(name, image, 1))
            self.latest = [*self.latest, chunk][-count:]
            self.next_chunk += 1
            if self.next_chunk == step // self.steps_per_chunk + count:
                self.pool = [Batch(*map(torch.cat, zip(*half, strict=True))) for half in zip(*self.latest, strict=True)]
        is_image = self.schedule.is_image(step)
        pool, size = self.pool[is_image], self.schedule.size(is_image)
        rows = len(pool.length_B)
        # as often as they are needed where there are fewer: in small runs alone
        return pool.rows(torch.cat([torch.randperm(rows, generator=draw) for _ in range(-(-size // rows))])[:size])

    @torch.no_grad()
    def tokenised(self, name: str, half: Half, frames: int) -> Batch:
        """The codes of half a chunk; in bf16 on CUDA."""
        parts, text_BS, length_B, key_at_B = half
        codes, keys = [], []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            for packed, at_B in zip(parts, key_at_B.split(RENDERED), strict=True):
                pixels_BCFHW = self.worlds[name].render(packed, frames, self.config, self.device)
                codes.append(self.encode(pixels_BCFHW))
                if frames > 1:
                    pictures_BCHW = pixels_BCFHW[torch.arange(len(at_B), device=self.device), :, at_B.to(self.device)]
                    keys.append(self.encode(pictures_BCHW[:, :, None].contiguous())[:, 0])
                else:  # an image is the only picture of itself
                    keys.append(codes[-1][:, 0])
        text_BS, key_at_B = (part.to(self.device, non_blocking=True) for part in (text_BS, key_at_B))
        return Batch(text_BS, length_B, torch.cat(codes), torch.cat(keys), key_at_B)


class WorldBatches(Dataset[Any]):
    """Batch number `step` of one rank, to train a tokenizer: packed scenes of the numbers that are its share of the step's."""

    def __init__(self, world: World, seed: int, batch: int, rank: int = 0, ranks: int = 1) -> None:
        self.world, self.seed, self.batch, self.rank, self.ranks = world, seed, batch, rank, ranks

    def __getitem__(self, step: int) -> Any:
        first = (step * self.ranks + self.rank) * self.batch
        return self.world.draw([random.Random(f"{self.seed} {n}") for n in range(first, first + self.batch)], image=False)[0]


def own_captions(worlds: Sequence[World]) -> Iterator[str]:
    """Every caption that belongs to one sticker: more words than a sample has."""
    return (words for world in worlds if isinstance(world, Stickers) for each in world.stickers for words in each.captions)


def sample_captions(worlds: Sequence[World], count: int, seed: int) -> Iterator[str]:
    """Captions of random scenes, videos and images of all worlds in turn: what the text vocabulary is made from."""
    rng = random.Random(f"captions/{seed}")
    for number in range(count):
        _, (words,) = worlds[number // 2 % len(worlds)].draw([rng], image=bool(number % 2))
        yield words
