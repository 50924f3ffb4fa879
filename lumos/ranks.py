"""Several processes (ranks) as one: joining, errors that all of them leave by, and work divided among them.

Started by torchrun there are as many ranks as it says, on CUDA through NCCL, otherwise through gloo; without torchrun one.
"""

import hashlib
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name up to torch 2.12
BACKENDS = "cpu:gloo,cuda:nccl"  # gloo carries what checkpoints say to each other


@dataclass(frozen=True)
class Ranks:
    """This process's place: `rank` of `world`, computing on `device`."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0


ALONE = Ranks(0, 1, torch.device("cpu"))


def start(device_name: str | None = None, dividing: bool = False) -> Ranks:
    """Join the other processes when torchrun started this one (it sets RANK, WORLD_SIZE and LOCAL_RANK).

    device_name: cpu or cuda, for what torchrun started; None = the usual one. dividing: they are to divide frames among them.
    """
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    if "WORLD_SIZE" not in os.environ:
        return Ranks(0, 1, torch.device(usual))
    if device_name not in (None, "cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda where torchrun deals out the cards, got {device_name}; leave it out")
    device = torch.device(device_name or usual)
    if device.type == "cuda":
        number, cards = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= cards:
            raise ValueError(f"every process needs a GPU, got {number + 1} for {cards}; lower --nproc-per-node")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
        if dividing:  # of four cards NCCL gathers a layer's keys and values a third faster than by the protocol that it chooses
            os.environ.setdefault("NCCL_PROTO", "Simple")
        dist.init_process_group(BACKENDS, device_id=device)
    else:
        dist.init_process_group("gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def ensure_group(ranks: Ranks) -> None:
    """Make one process without torchrun a group of its own, for what of torch.distributed works on groups alone."""
    if not dist.is_initialized():
        backend = BACKENDS if ranks.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """What fails inside on one rank (ValueError, OSError) ends all: rank 0 tells it, the others leave without a word.

    Nothing inside may wait for other ranks.
    """
    failure: ValueError | OSError | None = None
    try:
        yield
    except (ValueError, OSError) as error:
        failure = error
    messages = gather("" if failure is None else str(failure) or type(failure).__name__)
    if any(messages) and not ranks.is_main:
        raise SystemExit(2)
    for rank, message in enumerate(messages):
        if message:
            raise failure or ValueError(f"process {rank}: {message}")


@contextmanager
def tell_of_lost_ranks(ranks: Ranks, remedy: str) -> Iterator[None]:
    """A message of one line instead of the library's when another rank has died."""
    try:
        yield
    except (RuntimeError, OSError) as error:  # OSError: a checkpoint that was being written
        lost = isinstance(error, dist.DistError) or re.search(r"(?i)connection (closed|reset)|broken pipe|timed out", str(error))
        if ranks.world == 1 or not lost:
            raise
        rule = f"all {ranks.world} processes must go on together, but one has gone"
        raise ValueError(f"{rule}; {remedy}") from error


def gather(mine: T) -> list[T]:
    """What every rank has, by rank."""
    if not dist.is_initialized():
        return [mine]
    found = [mine] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def check_alike(what: object) -> None:
    """ValueError, on every rank, unless all of them want the same. `what`: anything whose repr says all of it."""
    digests = gather(hashlib.blake2b(repr(what).encode(), digest_size=16).hexdigest())
    if other := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
        rule = "all processes must be asked for the same video: prompt, seed, length, size and settings"
        raise ValueError(f"{rule}; those of process {other[0]} differ from those of process 0")


@dataclass(frozen=True)
class Division:
    """`count` things in equal parts, one for each rank; where they do not come out even, the last parts repeat the last thing."""

    count: int
    world: int = 1
    rank: int = 0

    def mine(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's part of a tensor along `dim`."""
        if self.world == 1:
            return whole
        part = -(-self.count // self.world)
        first = self.rank * part
        return whole.index_select(dim, torch.arange(first, first + part, device=whole.device).clamp(max=self.count - 1))

    def whole(self, mine: Tensor, dim: int) -> Tensor:
        """All parts put together along `dim`, on every rank. Every rank must ask."""
        if self.world == 1:
            return mine
        part = mine.movedim(dim, 0).contiguous()
        parts = part.new_empty(self.world * part.shape[0], *part.shape[1:])
        _all_gather(parts, part)
        return parts[: self.count].movedim(0, dim)


def divide(count: int, is_shared: bool = True) -> Division:
    """How the ranks of this process's group share `count` things; all are its own where nothing is shared."""
    if not is_shared or not dist.is_initialized():
        return Division(count)
    return Division(count, dist.get_world_size(), dist.get_rank())


def leave_when_told(ranks: Ranks) -> None:
    """At SIGTERM, which torchrun sends when another rank has died, end at once and in one line, also while waiting for a GPU.

    Python hears no signal then; the thread here does.
    """
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(mouth.fileno())

    def hear() -> None:
        while ears.recv(1) != bytes([signal.SIGTERM]):
            pass
        if ranks.is_main:
            print(
                f"lumos: ended with one of {ranks.world} processes, all of which must go on together", file=sys.stderr, flush=True
            )
        mouth.close()
        os._exit(2)

    threading.Thread(target=hear, daemon=True).start()


def finish(ranks: Ranks) -> None:
    """Leave the group; the counterpart of `start`."""
    if dist.is_initialized():
        if ranks.world > 1:
            dist.barrier()  # a rank that left earlier would break the others' connections
        dist.destroy_process_group()


def average(value: Tensor, ranks: Ranks) -> Tensor:
    """The mean of a tensor over the ranks."""
    if ranks.world > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
        value /= ranks.world
    return value


def agree(values: tuple[float, ...], ranks: Ranks) -> tuple[float, ...]:
    """The largest of each number over the ranks, so that all of them decide alike. Waits for the device."""
    if ranks.world == 1:
        return values
    largest = torch.tensor(values, dtype=torch.float64, device=ranks.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return tuple(largest.tolist())
