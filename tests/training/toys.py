"""A model and a tokenizer that train in a second, and work for two processes."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from lumos.data.worlds import WorldsConfig, sample_captions
from lumos.diffusion.sampler import SamplerConfig
from lumos.model.transformer import ModelConfig
from lumos.model_folder import VideoConfig
from lumos.tokenizer.model import save_tokenizer
from lumos.training import run_parts
from lumos.training.clock import Clock
from lumos.training.config import TrainModelConfig
from lumos.training.optim import OptimConfig
from tests.toy_model import toy_tokenizer

TOY = TrainModelConfig(
    model=ModelConfig(vocabulary=0, layers=1, width=32, heads=1, kv_heads=1, head_width=32, ffn=32),
    video=VideoConfig(height=32, width=32, frames=5, fps=8, slots=64, window=2, latest=2),
    worlds=WorldsConfig(size=32, frames=9, chunk=4, pool=2, reuse=1, workers=0),
    optim=OptimConfig(lr=1e-2, warmup_steps=2, ema=0.9),
    sampler=SamplerConfig(steps=2),
    videos=2,
    images=4,
    image_every=2,
    max_steps=4,
    log_every=2,
    sample_every=4,
    save_every=2,
    keep=1,
)


def save_toy_tokenizer(folder: Path, seed: int = 0) -> Path:
    """An untrained tokenizer of 25 codes."""
    save_tokenizer(folder, toy_tokenizer(seed=seed))
    return folder


def use_few_captions(patch: pytest.MonkeyPatch) -> None:
    """Enough to make a text vocabulary from."""
    patch.setattr(run_parts, "sample_captions", lambda worlds, count, seed: sample_captions(worlds, 300, seed))


@contextmanager
def stopped_after_two(module: Any) -> Iterator[None]:
    """As if Ctrl-C had come during the second step of a training loop."""

    class StoppedClock(Clock):
        def progress(self, step: int) -> float:
            progress = super().progress(step)
            self.interrupted = step == 2
            return progress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Clock", StoppedClock)
        yield


def two(work: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Run work(rank, *arguments) as two processes; their exit codes. One that hangs is killed, and has none of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.get_context("forkserver").set_forkserver_preload(["lumos.training.train_model", "torch._dynamo"])  # once
    context = multiprocessing.start_processes(_joined, (port, work, *arguments), 2, join=False, start_method="forkserver")
    for process in context.processes:
        process.join(timeout=90)
        process.kill()
        process.join()
    return [process.exitcode for process in context.processes]


def _joined(rank: int, port: int, work: Callable[..., None], *arguments: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}.items():
            patch.setenv(name, str(value))
        patch.setenv("MASTER_ADDR", "localhost")
        use_few_captions(patch)
        torch.set_num_threads(1)
        work(rank, *arguments)
