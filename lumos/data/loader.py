"""Shards -> training batches of one shape, (prompt ids, codes_BTHW) on the device, several of them ready ahead.

What step n of rank r gets is a function of (seed, r, n) alone: nothing needs saving, and the number of threads changes nothing.
Rows of one size are a bucket. An epoch deals every bucket's rows in a new order, in large sets of row groups so that a rank
reads few files at a time; a row goes to one rank. Images are rows of one latent frame, or, where there are none, the first
latent frames of videos (the tokenizer is causal).
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Protocol

import numpy as np
import torch

from lumos.data.batch import Batch
from lumos.data.shards import TOKENS, Array, ShardIndex, ShardReader, unpack_codes
from lumos.sequence.layout import text_batch
from lumos.sequence.text import UNKNOWN, TextTokenizer
from lumos.sequence.vocabulary import Vocabulary

ENDS = 2  # of a prompt's slots: begin and separator
SAMPLED = 20_000  # captions that `captions_of` takes


@dataclass(frozen=True)
class LoaderConfig:
    """`workers` threads keep `ahead` batches ready. `set_mib`: codes shuffled together on a rank; a larger bucket is read
    set after set. `cache_mib`: row groups kept in memory."""

    workers: int = 2
    ahead: int = 4
    set_mib: int = 512
    cache_mib: int = 2048


@dataclass(frozen=True)
class Deal:
    """Who gets what: clips a video step and an image step, every which step is one of images (0 = none), and the rank."""

    videos: int
    images: int
    image_every: int
    seed: int = 0
    rank: int = 0
    world: int = 1


class Stream(Protocol):
    """Where a training loop gets its batches."""

    def batch(self, step: int, size: int, image: bool, generator: torch.Generator) -> Batch: ...


class ShardStream:
    """Batches of videos or images for training steps on one rank; any step may be asked for, the next ones are ready.

    Raises ValueError when there is no video for video steps.
    """

    def __init__(
        self,
        index: ShardIndex,
        text: TextTokenizer,
        vocabulary: Vocabulary,
        slots: int,
        deal: Deal,
        config: LoaderConfig,
        device: torch.device,
    ) -> None:
        self.index, self.text, self.vocabulary, self.slots = index, text, vocabulary, slots
        self.deal, self.config, self.device = deal, config, device
        self.words = "text" if index.form == TOKENS else "captions"
        self.reader = ShardReader(index, ["codes", "T", "H", "W", self.words], config.cache_mib * 2**20)
        self.plans = {image: Plan(index, image, deal, config.set_mib * 2**20) for image in (False, True)}
        if deal.image_every != 1 and not self.plans[False].buckets:
            raise ValueError(f"{index.folder} must hold videos, got images alone; train with image_every=1")
        self.threads = ThreadPoolExecutor(config.workers, thread_name_prefix="loader")
        self.ready: deque[tuple[int, bool, Future[Batch]]] = deque()
        self.waited = 0.0

    def batch(self, step: int, size: int, image: bool, generator: torch.Generator) -> Batch:
        """The batch of a step; `generator` is not needed, because all is drawn ahead from (seed, rank, step)."""
        place = kind_number(step, self.deal.image_every, image)
        if size != (self.deal.images if image else self.deal.videos):
            raise ValueError(f"a batch must have the size that was dealt, got {size}; make another stream")
        return self.take(image, place, kinds_after(step, self.deal.image_every, self.config.ahead))

    def take(self, image: bool, number: int, coming: Sequence[tuple[bool, int]]) -> Batch:
        """Batch `number` of videos or of images, while threads make those that are `coming`."""
        wanted = [(number, image), *((later, kind) for kind, later in coming)]
        have = [(later, kind) for later, kind, _ in self.ready]
        if have[: len(wanted)] != wanted[: len(have)]:
            self.ready.clear()
            have = []
        for later, kind in wanted[len(have) :]:
            self.ready.append((later, kind, self.threads.submit(self._make, kind, later)))
        parts = self.ready.popleft()[2].result()
        return Batch(*(part.to(self.device, non_blocking=True) for part in parts))

    def _make(self, image: bool, number: int) -> Batch:
        rng = random.Random(f"{self.deal.seed}/{self.deal.rank}/{image}/{number}")
        prompts, codes = [], []
        for row in self.plans[image].rows(number):
            values = self.reader.row(int(row))
            codes_THW = unpack_codes(values["codes"], values["T"], values["H"], values["W"])
            codes.append(codes_THW[:1] if image else codes_THW)
            prompts.append(self._prompt(values[self.words], rng))
        batch = Batch(*text_batch(self.vocabulary, prompts, self.slots), torch.stack(codes))
        return Batch(*(part.pin_memory() for part in batch)) if self.device.type == "cuda" else batch

    def _prompt(self, words: list[str] | list[int], rng: random.Random) -> list[int]:
        if self.index.form == TOKENS:
            return [int(word) for word in words][: self.slots - ENDS]
        caption = str(rng.choice(words)) if words else ""
        return known_ids(self.text, caption)[: self.slots - ENDS]


class MixedStream:
    """Two streams: of the video steps and of the image steps, `share` come from the shards, evenly spread."""

    def __init__(self, shards: ShardStream, other: Stream, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"data_share must be above 0 and up to 1, got {share}; use 0.5")
        self.shards, self.other, self.share = shards, other, share

    def batch(self, step: int, size: int, image: bool, generator: torch.Generator) -> Batch:
        """The batch of a step, from one of the two."""
        every = self.shards.deal.image_every
        place = self._place(image, kind_number(step, every, image))
        if place is None:
            return self.other.batch(step, size, image, generator)
        coming = ((kind, self._place(kind, number)) for kind, number in kinds_after(step, every, 4 * self.shards.config.ahead))
        ahead = [(kind, number) for kind, number in coming if number is not None][: self.shards.config.ahead]
        return self.shards.take(image, place, ahead)

    def _place(self, image: bool, number: int) -> int | None:
        """Which batch of the shards the `number`-th batch of this kind is, or None when it is the other stream's."""
        before, after = (int(count * self.share + 1e-9) for count in (number, number + 1))
        return before if after > before else None


def kind_number(step: int, image_every: int, image: bool) -> int:
    """How many steps of the same kind (images, videos) came before this step."""
    images = step // image_every if image_every else 0
    return images if image else step - images


def kinds_after(step: int, image_every: int, count: int) -> list[tuple[bool, int]]:
    """The kind of each of the next `count` steps, with its number among those of its kind."""
    kinds = [(later, image_every > 0 and later % image_every == image_every - 1) for later in range(step + 1, step + 1 + count)]
    return [(image, kind_number(later, image_every, image)) for later, image in kinds]


class Plan:
    """Which rows make batch number n of one kind on one rank. Pure: the same n gives the same rows."""

    def __init__(self, index: ShardIndex, image: bool, deal: Deal, set_bytes: int) -> None:
        self.deal, self.image, self.set_bytes = deal, image, set_bytes
        self.size = deal.images if image else deal.videos
        frames = index.sizes_N3[:, 0]
        if not image:
            rows = np.flatnonzero(frames > 1)
        elif (frames == 1).any():
            rows = np.flatnonzero(frames == 1)
        else:
            rows = np.arange(len(frames))
        sizes_N3 = index.sizes_N3[rows].copy()
        if image:
            sizes_N3[:, 0] = 1
        _, which = np.unique(sizes_N3, axis=0, return_inverse=True)
        self.buckets = [rows[which.ravel() == bucket] for bucket in range(int(which.max()) + 1)] if len(rows) else []
        self.groups = [_split(bucket, index) for bucket in self.buckets]
        self.bytes = [2 * int(index.sizes_N3[bucket[0]].prod()) for bucket in self.buckets]
        # Every rank has as many rows of a bucket as any other; a bucket of fewer rows than ranks is repeated.
        self.share = [max(1, len(bucket) // deal.world) for bucket in self.buckets]
        self.batches = [-(-share // self.size) for share in self.share]
        self.epoch_batches = sum(self.batches)
        self._dealt = lru_cache(maxsize=2 * max(1, len(self.buckets)))(self._deal)

    def rows(self, number: int) -> Array:
        """`size` rows of one bucket."""
        epoch, place = divmod(number, self.epoch_batches)
        order = np.repeat(np.arange(len(self.batches)), self.batches)
        np.random.default_rng([self.deal.seed, int(self.image), epoch]).shuffle(order)  # the same on every rank
        bucket = int(order[place])
        first = (epoch * self.batches[bucket] + int((order[:place] == bucket).sum())) * self.size
        found: list[int] = []
        while len(found) < self.size:  # the last batch of an epoch goes on into the next
            turn, offset = divmod(first + len(found), self.share[bucket])
            found.extend(self._dealt(bucket, turn)[offset : offset + self.size - len(found)].tolist())
        return np.array(found)

    def _deal(self, bucket: int, epoch: int) -> Array:
        """This rank's rows of a bucket in the order of one epoch."""
        deal, rows = self.deal, self.buckets[bucket]
        rng = np.random.default_rng([deal.seed, int(self.image), bucket, epoch])
        if len(rows) < deal.world:
            return np.array([rng.permutation(np.tile(rows, deal.world))[deal.rank]])
        if len(rows) * self.bytes[bucket] <= deal.world * self.set_bytes:
            return rng.permutation(rows)[deal.rank :: deal.world][: self.share[bucket]]
        groups = self.groups[bucket]
        dealt = [groups[number] for number in rng.permutation(len(groups))]
        mine = np.concatenate(dealt)[deal.rank * self.share[bucket] : (deal.rank + 1) * self.share[bucket]]
        a_set = max(1, self.set_bytes // self.bytes[bucket])
        sets = [mine[first : first + a_set] for first in range(0, len(mine), a_set)]
        order = np.random.default_rng([deal.seed, int(self.image), bucket, epoch, deal.rank])
        return np.concatenate([order.permutation(part) for part in sets])


def captions_of(index: ShardIndex, limit: int = SAMPLED) -> Iterator[str]:
    """Captions of up to `limit` clips, spread over all: what a text vocabulary is made from."""
    return chain.from_iterable(captions_by_clip(index, limit))


def captions_by_clip(index: ShardIndex, limit: int) -> Iterator[list[str]]:
    """The captions of each of up to `limit` clips, spread over all."""
    reader = ShardReader(index, ["captions"])
    count = min(limit, len(index))
    for i in range(count):
        yield reader.row(i * len(index) // count)["captions"]


def known_ids(text: TextTokenizer, caption: str) -> list[int]:
    """Ids of a caption as people write them: what the vocabulary does not know is left out."""
    ids = text.tokenizer.encode(caption, add_special_tokens=False).ids
    unknown = text.tokenizer.token_to_id(UNKNOWN)
    return [i for i in ids if i != unknown]


def fits(text: TextTokenizer, caption: str, slots: int) -> bool:
    """Whether a caption can be a prompt as it is: no unknown characters, no more ids than there is room for."""
    ids = text.tokenizer.encode(caption, add_special_tokens=False).ids
    return 0 < len(ids) <= slots - ENDS and text.tokenizer.token_to_id(UNKNOWN) not in ids


def caption_report(index: ShardIndex, text: TextTokenizer, slots: int) -> dict[str, float]:
    """What training will do to the captions: the share that is cut to fit, and that loses characters."""
    if index.form == TOKENS:
        return {"cut": 0.0, "with_unknown": 0.0}
    unknown = text.tokenizer.token_to_id(UNKNOWN)
    found = [text.tokenizer.encode(caption, add_special_tokens=False).ids for caption in captions_of(index, 2000)]
    cut = sum(len(ids) > slots - ENDS for ids in found)
    return {"cut": cut / max(len(found), 1), "with_unknown": sum(unknown in ids for ids in found) / max(len(found), 1)}


def _split(rows: Array, index: ShardIndex) -> list[Array]:
    """A bucket's rows by the row group they are stored in."""
    place_N2 = index.place_N3[rows, :2]
    changes = np.flatnonzero((np.diff(place_N2, axis=0) != 0).any(1)) + 1
    return np.split(rows, changes)
