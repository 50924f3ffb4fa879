"""Shards -> training batches of one shape, (prompt ids, codes_BTHW) on the device, several of them ready ahead.

What step n of rank r gets is a function of (seed, r, n) alone: nothing needs saving, and the number of threads changes nothing.
Rows of one size are a bucket. An epoch deals every bucket's rows in a new order, in large sets of row groups so that a rank
reads few files at a time; a row goes to one rank. Images are rows of one latent frame, or, where there are none, the first
latent frames of videos (the tokenizer is causal).
"""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lumos.config import Range, Whole
from lumos.data.batch import Batch, Schedule, Stream
from lumos.data.shards import TOKENS, ShardIndex, ShardReader, code_type
from lumos.sequence.layout import text_batch
from lumos.sequence.prompt_template import PromptReader, fill_numbers
from lumos.sequence.text import UNKNOWN
from lumos.sequence.vocabulary import Vocabulary

ENDS = 2  # of a prompt's slots: begin and separator
SAMPLED = 20_000  # clips whose captions make a text vocabulary
Nth = tuple[bool, int]  # of a batch: of images or of videos, and its number among those


@dataclass(frozen=True)
class LoaderConfig:
    """How shards are read; nothing of it but `set_mib` changes what a step gets."""

    workers: Whole = 2  # threads
    ahead: Whole = 4  # batches that are ready
    set_mib: Whole = 512  # codes shuffled together on a rank; a larger bucket is read set after set
    cache_mib: Annotated[int, Range(0, 10**9)] = 2048  # row groups kept in memory


class ShardStream:
    """Batches of videos or images for training steps on one rank; any step may be asked for, the next ones are ready.

    With an `other` stream, `share` of the video steps and of the image steps come from the shards, evenly spread. ValueError when
    there are fewer clips than a step needs.
    """

    def __init__(
        self,
        index: ShardIndex,
        prompts: PromptReader,
        spatial: int,
        vocabulary: Vocabulary,
        schedule: Schedule,
        config: LoaderConfig,
        device: torch.device,
        share: float,
    ) -> None:
        self.index, self.prompts, self.spatial, self.vocabulary = index, prompts, spatial, vocabulary
        self.schedule, self.config, self.device, self.share = schedule, config, device, share
        self.other: Stream | None = None
        self.reader = ShardReader(index, ["clip", index.words], config.cache_mib * 2**20, vocabulary.codes)
        set_codes = config.set_mib * 2**20 // code_type(vocabulary.codes).itemsize
        self.plans = {image: EpochPlan(index, image, schedule, set_codes) for image in (False, True)}
        for image, plan in self.plans.items():
            if schedule.image_every > 0 if image else schedule.image_every != 1:
                plan.check(index.folder)
        self.threads = ThreadPoolExecutor(config.workers, thread_name_prefix="loader")
        self.ready: dict[Nth, Future[Batch]] = {}

    def batch(self, step: int, draw: torch.Generator) -> Batch:
        """The batch of a step. All its randomness comes from (seed, rank, step), because batches are made ahead."""
        place = self._place(step)
        if place is None:
            assert self.other is not None
            return self.other.batch(step, draw)
        later = (self._place(n) for n in range(step + 1, step + 1 + 4 * self.config.ahead))
        wanted = [place, *[one for one in later if one is not None][: self.config.ahead]]
        self.ready = {one: self.ready.get(one) or self.threads.submit(self._make, *one) for one in wanted}
        made = self.ready.pop(place).result()
        text_BS, codes_BTHW = (part.to(self.device, non_blocking=True) for part in (made.text_BS, made.codes_BTHW))
        return Batch(text_BS, made.length_B, codes_BTHW)

    def _place(self, step: int) -> Nth | None:
        """Which batch of the shards a step gets, None for the other stream's."""
        number = self.schedule.number(step)
        before, after = (int(count * self.share + 1e-9) for count in (number, number + 1))
        return (self.schedule.is_image(step), before) if after > before else None

    def _make(self, image: bool, number: int) -> Batch:
        rng = random.Random(f"{self.schedule.seed}/{self.schedule.rank}/{image}/{number}")
        rows = [self.reader.row(int(row)) for row in self.plans[image].rows(number)]
        codes_BTHW = torch.stack([row["clip"][: 1 if image else None] for row in rows])
        frames, (height, width) = 1 if image else self.prompts.frames, (self.spatial * side for side in codes_BTHW.shape[2:])
        prompts = [self._prompt(row[self.index.words], rng, frames, height, width) for row in rows]
        parts = (*text_batch(self.vocabulary, prompts, self.prompts.most + ENDS), codes_BTHW)
        return Batch(*(part.pin_memory() for part in parts) if self.device.type == "cuda" else parts)

    def _prompt(self, words: Sequence[Any], rng: random.Random, frames: int, height: int, width: int) -> list[int]:
        """As `PromptReader.ids` would have it, but cut and without what is not known. No caption: no prompt."""
        if self.index.form == TOKENS:
            return fill_numbers([int(word) for word in words], *self.prompts.numbers(frames))[: self.prompts.most]
        caption = str(rng.choice(words)) if words else ""
        return known_ids(self.prompts, caption, frames, height, width)[0][: self.prompts.most] if caption else []


class EpochPlan:
    """Which rows make batch number n of one kind on one rank. Pure: the same n gives the same rows."""

    def __init__(self, index: ShardIndex, image: bool, schedule: Schedule, set_codes: int) -> None:
        self.index, self.schedule, self.image, self.set_codes = index, schedule, image, set_codes
        self.size = schedule.size(image)
        frames = index.sizes_N3[:, 0]
        chosen = frames == 1 if image else frames > 1
        rows = np.flatnonzero(chosen) if chosen.any() or not image else np.arange(len(frames))
        sizes_N3 = index.sizes_N3[rows] * [0 if image else 1, 1, 1]
        _, which = np.unique(sizes_N3, axis=0, return_inverse=True)
        self.buckets = [rows[which.ravel() == bucket] for bucket in np.unique(which)]
        # Every rank has as many rows of a bucket as any other; a bucket of fewer rows than ranks is repeated.
        self.share = [max(1, len(bucket) // schedule.world) for bucket in self.buckets]
        self.batches = [-(-share // self.size) for share in self.share]
        self.epoch_batches = sum(self.batches)
        self._dealt = lru_cache(maxsize=2 * max(1, len(self.buckets)))(self._deal)

    def check(self, folder: str) -> None:
        """ValueError when a step over all ranks would have to show a clip twice."""
        have, world, kind = sum(map(len, self.buckets)), self.schedule.world, "images" if self.image else "videos"
        if have < self.size * world:
            smaller = f"--set {kind}={have // world}" if have >= world else f"at most {have} GPUs" if have else "image_every=1"
            rule = f"{folder} must hold the {self.size * world} {kind} of a step on all GPUs"
            raise ValueError(f"{rule}, got {have}; use {smaller}, or more clips")

    def rows(self, number: int) -> NDArray[np.int64]:
        """`size` rows of one bucket."""
        epoch, place = divmod(number, self.epoch_batches)
        order = np.repeat(np.arange(len(self.batches)), self.batches)
        np.random.default_rng([self.schedule.seed, int(self.image), epoch]).shuffle(order)  # the same on every rank
        bucket = int(order[place])
        first = (epoch * self.batches[bucket] + int((order[:place] == bucket).sum())) * self.size
        found: list[int] = []
        while len(found) < self.size:  # the last batch of an epoch goes on into the next
            turn, offset = divmod(first + len(found), self.share[bucket])
            found.extend(self._dealt(bucket, turn)[offset : offset + self.size - len(found)].tolist())
        return np.array(found)

    def _deal(self, bucket: int, epoch: int) -> NDArray[np.int64]:
        """This rank's rows of a bucket in the order of one epoch."""
        rows, rank, world = self.buckets[bucket], self.schedule.rank, self.schedule.world
        seeds = [self.schedule.seed, int(self.image), bucket, epoch]
        rng = np.random.default_rng(seeds)
        if len(rows) < world:
            return np.array([rng.permutation(np.tile(rows, world))[rank]])
        row_codes = int(self.index.sizes_N3[rows[0]].prod())
        if len(rows) * row_codes <= world * self.set_codes:
            return rng.permutation(rows)[rank::world][: self.share[bucket]]
        place_N2 = self.index.place_N3[rows, :2]
        groups = np.split(rows, np.flatnonzero((np.diff(place_N2, axis=0) != 0).any(1)) + 1)
        dealt = np.concatenate([groups[number] for number in rng.permutation(len(groups))])
        mine = dealt[rank * self.share[bucket] : (rank + 1) * self.share[bucket]]
        a_set = max(1, self.set_codes // row_codes)
        order = np.random.default_rng([*seeds, rank])
        return np.concatenate([order.permutation(mine[first : first + a_set]) for first in range(0, len(mine), a_set)])


def captions_by_clip(index: ShardIndex, limit: int = SAMPLED) -> Iterator[list[str]]:
    """The captions (or text ids) of each of up to `limit` clips, spread over all."""
    reader, count = ShardReader(index, [index.words]), min(limit, len(index))
    return (reader.row(i * len(index) // count)[index.words] for i in range(count))


def known_ids(prompts: PromptReader, caption: str, frames: int, height: int, width: int) -> tuple[list[int], bool]:
    """Ids of a caption as people write them, in its sentence, without what is not known; and whether there was any of that."""
    tokenizer = prompts.text.tokenizer
    ids = tokenizer.encode(prompts.sentence(caption, frames, height, width), add_special_tokens=False).ids
    unknown = tokenizer.token_to_id(UNKNOWN)
    return [i for i in ids if i != unknown], unknown in ids


def fits_as_prompt(prompts: PromptReader, caption: str, height: int, width: int) -> bool:
    """Whether a caption can be a prompt as it is: no unknown characters, no more ids than there is room for."""
    ids, lost = known_ids(prompts, caption, prompts.frames, height, width)
    return not lost and 0 < len(ids) <= prompts.most


def caption_report(shards: ShardStream, height: int, width: int) -> str:
    """What training will do to captions that are no prompts as they are; empty when there are none to speak of."""
    if shards.index.form == TOKENS:
        return ""
    captions = (caption for clip in captions_by_clip(shards.index, 2000) for caption in clip)
    found = [known_ids(shards.prompts, caption, shards.prompts.frames, height, width) for caption in captions]
    cut, lost = sum(len(ids) > shards.prompts.most for ids, _ in found), sum(unknown for _, unknown in found)
    fates = {"cut at their end to fit the prompt's slots": cut, "shown without characters that are not known": lost}
    usual = 0.005 * len(found)  # not worth a word
    return "; ".join(f"{n / len(found):.0%} of the captions are {fate}" for fate, n in fates.items() if n and n >= usual)
