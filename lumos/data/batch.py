"""What data sources give to the training loops: batches of prompts and codes, and items drawn ahead by worker processes."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lumos.sequence.layout import sent

T = TypeVar("T")


class Batch(NamedTuple):
    """Prompts and codes; a batch of images has one latent frame."""

    text_BS: Tensor  # right-aligned prompt ids
    length_B: Tensor  # ids of each prompt, on the CPU
    codes_BTHW: Tensor
    # of sources that can give them: codes of a later frame as a picture of its own, and which pixel frame it is
    key_BHW: Tensor | None = None
    key_at_B: Tensor | None = None

    def rows(self, which_B: Tensor) -> "Batch":
        """Some rows. which_B: on the CPU."""
        there = sent(which_B, self.codes_BTHW.device)
        parts = (part if part is None else part[which_B if part is self.length_B else there] for part in self)
        return Batch(*parts)  # type: ignore[arg-type]


class Stream(Protocol):
    """Where a training loop gets its batches: any step's, or from a first one on in order."""

    def batch(self, step: int, draw: torch.Generator) -> Batch:
        """`draw`: what a source that needs randomness takes it from; it lives on the CPU."""


@dataclass(frozen=True)
class Schedule:
    """Which steps are of images, and how many clips of a step are whose."""

    videos: int  # clips of a video step on one rank
    images: int  # and of an image step
    image_every: int  # every which step is one of images; 0 = none
    seed: int = 0
    rank: int = 0
    world: int = 1

    def is_image(self, step: int) -> bool:
        return self.image_every > 0 and step % self.image_every == self.image_every - 1

    def number(self, step: int) -> int:
        """How many steps of the same kind (images or videos) come before this one."""
        images = step // self.image_every if self.image_every else 0
        return images if self.is_image(step) else step - images

    def size(self, image: bool) -> int:
        return self.images if image else self.videos


def drawn_ahead(source: Dataset[T], first: int, workers: int, ahead: int, device: torch.device) -> Iterator[T]:
    """Items number `first`, first + 1, ... without end; each of the worker processes keeps `ahead` of them ready."""
    loader: DataLoader[T] = DataLoader(
        source,
        batch_size=None,
        sampler=range(first, 2**40),
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_loop,
    )
    return iter(loader)


def _leave_signals_to_the_loop(worker: int) -> None:
    # Ctrl-C and torchrun's SIGTERM reach the whole process group, and the loop still has to save. A worker that failed of them
    # would take the training process with it. One that just leaves does not: enough is ready for the last steps.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
