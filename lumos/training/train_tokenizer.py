"""Train the video tokenizer on the shapes world, and on picture shards if you like: RUN/tokenizer (a weights folder) and samples
come out.

Scenes are drawn in worker processes and rendered on the training device. Scene number n of a run is a function of (seed, n)
alone, so any number of ranks sees the same data and a resumed run goes on bit-exactly. No single images are needed beside
the clips: the tokenizer is causal, so a clip's first frame is an image, and the loss gives it a latent frame's weight.
"""

import copy
import itertools
import math
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lumos.data.pixels import PixelBatches, held_out_clips, to_pixels
from lumos.data.shards import open_shards
from lumos.tokenizer.losses import LossConfig, codes_used, psnr, reconstruction_loss
from lumos.tokenizer.model import TokenizerConfig, VideoTokenizer, load_tokenizer, save_tokenizer
from lumos.training import checkpoint, parallel
from lumos.training.clock import Budget, Clock
from lumos.training.metrics import RunLog, sheet
from lumos.training.optim import Ema, OptimConfig, build_optimizer, learning_rate, set_learning_rate
from lumos.training.parallel import Ranks
from lumos.worlds.shapes.render import PackedScenes, pack, render
from lumos.worlds.shapes.scene import sample_scene

T = TypeVar("T")
SHOWN = 6  # clips in a sample sheet


@dataclass(frozen=True)
class TrainTokenizerConfig:
    """`batch` clips a step and process, of `frames` frames of `size` x `size` pixels; what is done every how many steps.

    `data_share`: share of a batch that comes from the picture shards, when there are some; the rest is shapes.
    `decoder_only`: leave the encoder as it is. Clips keep their codes then, so models and code shards made with the tokenizer
    stay valid, and its pictures get better.
    """

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-3, weight_decay=0.01, warmup_steps=200))
    loss: LossConfig = field(default_factory=LossConfig)
    batch: int = 32
    data_share: float = 0.5
    decoder_only: bool = False
    size: int = 128
    frames: int = 17
    fps: float = 8.0
    max_steps: int | None = 20_000
    max_seconds: float | None = None
    seed: int = 0
    workers: int = 4
    compile: bool = True  # on CUDA only
    log_every: int = 20
    evaluate_every: int = 1000
    evaluation_clips: int = 256
    save_every: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.data_share <= 1:
            raise ValueError(f"data_share must be above 0 and up to 1, got {self.data_share}; use 0.5")


def train_tokenizer(
    config: TrainTokenizerConfig, out: Path, resume: bool = False, data: str | None = None, init: Path | None = None
) -> VideoTokenizer:
    """Train until the budget is used or Ctrl-C, then save; returns the tokenizer with averaged weights, in eval mode.

    data: a folder of picture shards. init: a tokenizer's folder to start from instead of random weights.

    With `resume`, goes on from the newest checkpoint in `out` (from the start when there is none). Raises ValueError when
    `out` holds a run and `resume` is not given, when that run had another config, or for `decoder_only` without `init`.
    """
    if config.decoder_only and init is None:
        raise ValueError("decoder_only must start from a trained tokenizer, got none; name one with --init")
    budget = Budget(config.max_steps, config.max_seconds)
    found = checkpoint.find(out, resume)
    ranks = parallel.start()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True

    tokenizer = VideoTokenizer(config.tokenizer)
    tokenizer.initialise(torch.Generator().manual_seed(config.seed))
    if init is not None:
        started = load_tokenizer(init)
        if started.config != config.tokenizer:
            raise ValueError(
                f"{init} must hold a tokenizer of shape {config.tokenizer}, got {started.config}; use its own preset"
            )
        tokenizer.load_state_dict(started.state_dict())
    tokenizer.encoder.requires_grad_(not config.decoder_only)
    tokenizer.to(ranks.device)
    optimizer, ema = build_optimizer(tokenizer, config.optim), Ema(tokenizer, config.optim.ema)
    step, seconds = 0, 0.0
    if found is not None:
        tensors, state = checkpoint.load(found)
        checkpoint.check_config(state["config"], _fixed(config, data), found)
        checkpoint.restore(tensors, state, tokenizer, optimizer, ema, found)
        step, seconds = state["step"], state["seconds"]

    fast = config.compile and ranks.device.type == "cuda"
    loss_of = torch.compile(_loss) if fast else _loss
    draw = torch.compile(render) if fast else render
    recorded = _fixed(config, data)
    real = 0 if data is None else max(1, round(config.data_share * config.batch))
    scenes = (
        None
        if real == config.batch
        else batches_of(SceneBatches(config.seed, config.batch - real, *_place(ranks)), config, ranks, step)
    )
    clips = None
    if data is not None:
        clips = batches_of(PixelBatches(data, real, config.frames, config.size, config.seed, *_place(ranks)), config, ranks, step)

    with RunLog(out, step, ranks.is_main) as log, Clock(budget, ranks, seconds) as clock:
        while (progress := clock.progress(step)) < 1 and not clock.interrupted:
            rate = learning_rate(step, progress, config.optim)
            set_learning_rate(optimizer, rate)
            parts = []
            if scenes is not None:
                parts.append(draw(next(scenes).to(ranks.device, non_blocking=True), config.frames, config.size, config.fps))
            if clips is not None:
                parts.append(to_pixels(next(clips).to(ranks.device, non_blocking=True)))
            pixels_BCFHW = torch.cat(parts)
            loss, quality = loss_of(tokenizer, pixels_BCFHW, config.loss)
            loss.backward()
            parallel.average_gradients(tokenizer.parameters(), ranks)
            norm = torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), config.optim.clip)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(tokenizer, step)
            step += 1

            if step % config.log_every == 0:
                numbers = parallel.average(torch.stack((loss.detach(), quality, norm)), ranks).tolist()
                _report(log, step, progress, numbers, rate, clock.seconds)
            if step % config.evaluate_every == 0 and ranks.is_main:
                _evaluate_and_show(log, step, tokenizer, ema, config, data)
            if step % config.save_every == 0 and ranks.is_main:
                _save(out, step, clock.seconds, tokenizer, optimizer, ema, recorded)

        if ranks.is_main:
            _save(out, step, clock.seconds, tokenizer, optimizer, ema, recorded)
            if step % config.evaluate_every and not clock.interrupted:
                _evaluate_and_show(log, step, tokenizer, ema, config, data)
            log.say(f"{'interrupted, resume to go on' if clock.interrupted else 'finished'}: step {step}, saved in {out}")
    parallel.finish(ranks)
    ema.copy_to(tokenizer)
    return tokenizer.eval()


class SceneBatches(Dataset[PackedScenes]):
    """Batch number `step` of one rank: scenes of the numbers that are its share of the step's."""

    def __init__(self, seed: int, batch: int, rank: int, world: int, held_out: bool = False) -> None:
        self.seed, self.batch, self.rank, self.world, self.held_out = seed, batch, rank, world, held_out

    def __getitem__(self, step: int) -> PackedScenes:
        first = (step * self.world + self.rank) * self.batch
        return pack([sample_scene(random.Random(f"{self.seed} {n}"), self.held_out) for n in range(first, first + self.batch)])


def batches_of(source: Dataset[T], config: TrainTokenizerConfig, ranks: Ranks, step: int) -> Iterator[T]:
    """The endless batches of a rank from `step` on, drawn ahead in worker processes."""
    loader: DataLoader[T] = DataLoader(
        source,
        batch_size=None,
        sampler=itertools.count(step),
        num_workers=config.workers,
        pin_memory=ranks.device.type == "cuda",
        prefetch_factor=8 if config.workers else None,
        worker_init_fn=_leave_signals_to_the_loop,
    )
    return iter(loader)


@torch.no_grad()
def evaluate_tokenizer(tokenizer: VideoTokenizer, clips: int, batch: int, size: int, frames: int, fps: float) -> dict[str, float]:
    """Mean PSNR (dB) over held-out clips, always the same ones, and how much of the codebook they use.

    Every clip's first object is of a (colour, shape) pair that training never shows.
    """
    device = next(tokenizer.parameters()).device
    source = SceneBatches(-1, 1, 0, 1, held_out=True)
    scenes = [source[n] for n in range(clips)]
    qualities, firsts, codes = [], [], []
    for start in range(0, clips, batch):
        packed = _join(scenes[start : start + batch]).to(device)
        pixels_BCFHW = render(packed, frames, size, fps)
        with _autocast(device):
            reconstruction_BCFHW, codes_BTHW = tokenizer(pixels_BCFHW)
        qualities.append(psnr(reconstruction_BCFHW, pixels_BCFHW))
        firsts.append(psnr(reconstruction_BCFHW[:, :, :1], pixels_BCFHW[:, :, :1]))
        codes.append(codes_BTHW.flatten())
    used, perplexity = codes_used(torch.cat(codes), tokenizer.codebook_size)
    quality = torch.cat(qualities)
    return {
        "psnr": float(quality.mean()),
        "psnr_lowest": float(quality.min()),
        "psnr_first_frame": float(torch.cat(firsts).mean()),
        "codes_used": used,
        "codes_perplexity": perplexity,
    }


@torch.no_grad()
def evaluate_on_clips(tokenizer: VideoTokenizer, rgb_BFHWC: Tensor, batch: int) -> tuple[dict[str, float], Tensor]:
    """Mean PSNR (dB) over clips, and the reconstructions_BCFHW of the first six."""
    device = next(tokenizer.parameters()).device
    qualities: list[Tensor] = []
    shown: list[Tensor] = []
    for rgb in rgb_BFHWC.split(batch):
        pixels_BCFHW = to_pixels(rgb.to(device))
        with _autocast(device):
            reconstruction_BCFHW, _ = tokenizer(pixels_BCFHW)
        qualities.append(psnr(reconstruction_BCFHW, pixels_BCFHW))
        if len(shown) * batch < SHOWN:
            shown.append(reconstruction_BCFHW.float().clamp(-1, 1).cpu())
    quality = torch.cat(qualities)
    numbers = {"data_psnr": float(quality.mean()), "data_psnr_lowest": float(quality.min())}
    return numbers, torch.cat(shown)[:SHOWN]


def _place(ranks: Ranks) -> tuple[int, int]:
    return ranks.rank, ranks.world


def _leave_signals_to_the_loop(worker: int) -> None:
    # Ctrl-C and torchrun's SIGTERM reach the whole process group; a worker that failed of them would take the training
    # process with it, unsaved. A worker that just leaves does not: enough batches are drawn ahead for the last steps.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))


def _loss(tokenizer: VideoTokenizer, pixels_BCFHW: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """(loss, mean PSNR) of one batch."""
    with _autocast(pixels_BCFHW.device):
        reconstruction_BCFHW, _ = tokenizer(pixels_BCFHW)
    loss = reconstruction_loss(reconstruction_BCFHW, pixels_BCFHW, config)
    return loss, psnr(reconstruction_BCFHW.detach(), pixels_BCFHW).mean()


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _report(log: RunLog, step: int, progress: float, numbers: list[float], rate: float, seconds: float) -> None:
    loss, quality, norm = numbers
    if not math.isfinite(loss):
        raise ValueError(f"the loss must stay finite, got {loss} at step {step}; resume with a lower learning rate or clip")
    values = {"loss": loss, "train_psnr": quality, "gradient_norm": norm, "learning_rate": rate, "seconds": seconds}
    log.scalars(step, values)
    log.progress(step, progress, f"loss {loss:.4f}  PSNR {quality:.2f} dB")


def _evaluate_and_show(
    log: RunLog, step: int, tokenizer: VideoTokenizer, ema: Ema, config: TrainTokenizerConfig, data: str | None
) -> None:
    averaged = copy.deepcopy(tokenizer)
    ema.copy_to(averaged)
    numbers = evaluate_tokenizer(averaged, config.evaluation_clips, config.batch, config.size, config.frames, config.fps)
    log.scalars(step, numbers)
    log.say(
        f"step {step}: PSNR {numbers['psnr']:.2f} dB on {config.evaluation_clips} held-out clips "
        f"(first frames {numbers['psnr_first_frame']:.2f}, worst clip {numbers['psnr_lowest']:.2f}), "
        f"{numbers['codes_used']:.0%} of the codes used, perplexity {numbers['codes_perplexity']:.0%}"
    )
    packed = SceneBatches(-1, 6, 0, 1, held_out=True)[0].to(next(averaged.parameters()).device)
    pixels_BCFHW = render(packed, config.frames, config.size, config.fps)
    again_BCFHW = averaged.decode(averaged.encode(pixels_BCFHW))
    shown = [round(i * (config.frames - 1) / 4) for i in range(5)]
    pairs = zip(pixels_BCFHW, again_BCFHW, strict=True)
    log.picture(step, "reconstruction", sheet([clip[:, shown].transpose(0, 1) for pair in pairs for clip in pair]))
    held = None if data is None else held_out_clips(data, config.evaluation_clips, config.frames, config.size)
    if held is not None and len(held):
        numbers, again_BCFHW = evaluate_on_clips(averaged, held, config.batch)
        log.scalars(step, numbers)
        log.say(f"step {step}: PSNR {numbers['data_psnr']:.2f} dB on {len(held)} held-out clips of the data")
        pairs = zip(to_pixels(held[: len(again_BCFHW)]), again_BCFHW, strict=True)
        log.picture(step, "data_reconstruction", sheet([clip[:, shown].transpose(0, 1) for pair in pairs for clip in pair]))


def _save(
    out: Path,
    step: int,
    seconds: float,
    tokenizer: VideoTokenizer,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    config: dict[str, object],
) -> None:
    tensors, state = checkpoint.collect(tokenizer, optimizer, ema)
    checkpoint.save(out, step, tensors, {**state, "seconds": seconds, "config": config})
    with ema.applied(tokenizer):
        save_tokenizer(out / "tokenizer", tokenizer)


def _fixed(config: TrainTokenizerConfig, data: str | None) -> dict[str, object]:
    """What a resumed run must share with its beginning."""
    free = ("max_steps", "max_seconds", "workers", "compile", "log_every", "evaluate_every", "evaluation_clips", "save_every")
    fixed = {name: value for name, value in asdict(config).items() if name not in free}
    if data is None:
        del fixed["data_share"]
        return fixed
    return {**fixed, "data": open_shards(data).digest}


def _join(parts: list[PackedScenes]) -> PackedScenes:
    return PackedScenes(torch.cat([part.objects_BNP for part in parts]), torch.cat([part.background_BP for part in parts]))
