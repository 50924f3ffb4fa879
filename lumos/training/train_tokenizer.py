"""Train the video tokenizer on the built-in worlds, on picture shards or on both: RUN/tokenizer (a weights folder) and samples.

Scenes are drawn in worker processes and rendered on the training device. Scene number n of a run is a function of (seed, n)
alone, so a run that is resumed on as many ranks goes on exactly. No single images are needed beside the
clips: the tokenizer is causal, so a clip's first frame is an image, and the loss gives it a latent frame's weight.
"""

import copy
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from PIL.Image import Image
from torch import Tensor

from lumos.config import Range, Scale, Share, Size, SomeShare, Whole
from lumos.data.batch import drawn_ahead
from lumos.data.pixels import PixelBatches, held_out_clips
from lumos.data.worlds import World, WorldBatches, WorldsConfig, open_worlds
from lumos.media.pixels import clips_to_pixels
from lumos.media.sheet import contact_sheet
from lumos.ranks import Ranks, average, finish, start, tell_of_lost_ranks, together
from lumos.tokenizer.losses import LossConfig, codes_used, psnr, reconstruction_loss
from lumos.tokenizer.model import TokenizerConfig, VideoTokenizer, load_tokenizer, save_tokenizer
from lumos.training.checkpoint import Checkpoints
from lumos.training.clock import Clock
from lumos.training.config import NOTHING, Sources
from lumos.training.learner import Learner, Spike
from lumos.training.metrics import RunLog
from lumos.training.optim import OptimConfig
from lumos.training.parallel import average_gradients
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import sample_scene

SHEET_CLIPS = 6


@dataclass(frozen=True)
class TrainTokenizerConfig:
    """A run of `train_tokenizer`."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-3, weight_decay=0.01, warmup_steps=200))
    loss: LossConfig = field(default_factory=LossConfig)
    batch: Whole = 32  # clips of a step on one GPU
    data_share: SomeShare = 0.5  # of a batch that comes from the picture shards, if there are any; the rest is of the worlds:
    stickers: Share = 0.0  # share of it that is stickers (which need --stickers),
    creatures: Share = 0.0  # and creatures (which need --creatures); what is left is shapes
    # leave the encoder as it is: clips keep their codes, so models and shards made with the tokenizer stay valid
    decoder_only: bool = False
    size: Size = 128  # pixels of a clip's sides
    frames: Whole = 17  # of a clip, 1 + 4k
    fps: Scale = 8.0  # frames per second
    spike: Spike = 20.0  # a step whose gradient is so many times its usual size, or no number, is skipped
    patience: Whole = 10  # so many skipped steps in a row end the run
    max_steps: Whole | None = 20_000  # steps at most; null = no limit
    max_seconds: Scale | None = None  # seconds at most; null = no limit
    seed: int = 0  # of weights and data
    workers: Annotated[int, Range(0, 1000)] = 4  # processes that make batches
    compile: bool = True  # on CUDA only
    log_every: Whole = 20  # steps
    evaluate_every: Whole = 1000  # steps
    evaluation_clips: Whole = 256  # held-out clips that PSNR is measured on
    save_every: Whole = 1000  # steps
    keep: Whole = 2  # checkpoints

    def __post_init__(self) -> None:
        if self.stickers + self.creatures > 1:
            total = self.stickers + self.creatures
            raise ValueError(f"the shares of stickers and creatures must be at most 1 together, got {total:g}; change one")

    @property
    def worlds(self) -> WorldsConfig:
        """The clips that the worlds give."""
        shares = (1 - self.stickers - self.creatures, self.stickers, self.creatures)
        return WorldsConfig(self.size, self.frames, self.fps, *shares, workers=self.workers)


def train_tokenizer(config: TrainTokenizerConfig, out: Path, sources: Sources = NOTHING, resume: bool = False) -> VideoTokenizer:
    """Train until the budget is used or Ctrl-C, then save; returns the tokenizer with averaged weights, in eval mode.

    With `resume`, goes on from the newest checkpoint in `out`. ValueError for a run that cannot start.
    """
    ranks = start()
    device = ranks.device
    with together(ranks):
        data, tokenizer = sources.data, new_tokenizer(config, sources.init)
        shown = max(1, round(config.data_share * config.batch))
        where = (config.seed, ranks.rank, ranks.world)
        clips = None if data is None else PixelBatches(data, shown, config.frames, config.size, *where)
        clips_of_worlds(config, config.batch - (0 if clips is None else clips.batch))  # told before anything is written
        worlds = open_worlds(config.worlds, sources.stickers, sources.creatures)
        record = {**asdict(config), "data": "" if clips is None else clips.index.digest}
        checkpoints = Checkpoints(out, resume, record, ranks, config.keep)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    learner = Learner(tokenizer.to(device), config.optim, config.spike, device)
    step = checkpoints.start(learner)
    loss_of = torch.compile(_loss) if config.compile and device.type == "cuda" else _loss
    batches = pixel_batches(config, worlds, clips, ranks, step)

    def save() -> None:
        checkpoints.save(step, clock.seconds, learner)
        if ranks.is_main:
            save_tokenizer(out / "tokenizer", averaged(learner))

    def evaluate() -> None:
        if ranks.is_main:
            evaluate_and_show(log, step, averaged(learner), config, data)

    log, clock = RunLog(out, step, ranks.is_main), Clock(config.max_steps, config.max_seconds, ranks, checkpoints.seconds)
    with log, clock, tell_of_lost_ranks(ranks, f"the same command with --resume goes on from {out}"):
        log.say(f"{checkpoints.began}a tokenizer on {device}")
        while (progress := clock.progress(step)) < 1 and not clock.interrupted:
            loss, quality = loss_of(tokenizer, next(batches), config.loss)
            loss.backward()
            average_gradients(tokenizer.parameters(), ranks)
            norm = learner.update(step, progress)
            step += 1
            if step % config.log_every == 0:
                numbers = average(torch.stack((loss.detach(), quality, norm)), ranks).tolist()
                values = dict(zip(("loss", "train_psnr", "gradient_norm"), numbers, strict=True))
                log.scalars(step, values | learner.report(config.patience, step) | {"seconds": clock.seconds})
                log.progress(step, progress, f"loss {values['loss']:.4f}  PSNR {values['train_psnr']:.2f} dB")
            if step % config.evaluate_every == 0:
                evaluate()
            if step % config.save_every == 0:
                save()
        save()
        if step % config.evaluate_every and not clock.interrupted:
            evaluate()
        checkpoints.close()
        log.say(f"{'interrupted, resume to go on' if clock.interrupted else 'finished'}: step {step}, saved in {out}")
    finish(ranks)
    return averaged(learner).eval()


def new_tokenizer(config: TrainTokenizerConfig, init: Path | None) -> VideoTokenizer:
    """A tokenizer to train, with random weights or those of `init`. ValueError for weights of another shape."""
    if init is not None:
        tokenizer = load_tokenizer(init).train()
        if tokenizer.config != config.tokenizer:
            raise ValueError(f"{init} must hold a tokenizer of shape {config.tokenizer}, got {tokenizer.config}")
    elif config.decoder_only:
        raise ValueError("decoder_only must start from a trained tokenizer, got none; name one with --init")
    else:
        tokenizer = VideoTokenizer(config.tokenizer)
        tokenizer.initialise(torch.Generator().manual_seed(config.seed))
    tokenizer.encoder.requires_grad_(not config.decoder_only)
    return tokenizer


def averaged(learner: Learner) -> VideoTokenizer:
    """A copy with the averaged weights."""
    found: VideoTokenizer = copy.deepcopy(learner.module)  # type: ignore[assignment]
    found.load_state_dict(learner.best())
    return found


def pixel_batches(
    config: TrainTokenizerConfig, worlds: dict[str, World], clips: PixelBatches | None, ranks: Ranks, step: int
) -> Iterator[Tensor]:
    """This rank's batches of pixels_BCFHW from `step` on: of the worlds, then clips of the data if there are any."""
    sources: list[Iterator[Tensor]] = []
    for name, count in clips_of_worlds(config, config.batch - (0 if clips is None else clips.batch)).items():
        scenes = WorldBatches(worlds[name], config.seed, count, ranks.rank, ranks.world)
        ahead = drawn_ahead(scenes, step, config.workers, 8, ranks.device)
        sources.append(map(partial(worlds[name].render, frames=config.frames, config=config.worlds, device=ranks.device), ahead))
    if clips is not None:
        read = drawn_ahead(clips, step, config.workers, 8, ranks.device)
        sources.append(clips_to_pixels(rgb_BFHWC.to(ranks.device, non_blocking=True)) for rgb_BFHWC in read)
    return (torch.cat(parts) for parts in zip(*sources, strict=True))


def clips_of_worlds(config: TrainTokenizerConfig, drawn: int) -> dict[str, int]:
    """How many of a batch's `drawn` clips are of each world; at least one of a world that has a share."""
    shares = {"stickers": config.stickers, "creatures": config.creatures}
    counts = {name: max(1, round(share * drawn)) for name, share in shares.items() if share and drawn}
    counts["shapes"] = drawn - sum(counts.values())
    if counts["shapes"] < 0:
        raise ValueError(f"batch must have room for a clip of each world, got {drawn}; raise it")
    return {name: count for name, count in counts.items() if count}


def evaluate_and_show(log: RunLog, step: int, tokenizer: VideoTokenizer, config: TrainTokenizerConfig, data: str | None) -> None:
    """Log how well held-out clips are kept, of the shapes world and of the data, and a sheet of some beside their originals."""
    device = next(tokenizer.parameters()).device
    sets = [("", "shapes", held_out_scenes(config, device))]
    if data is not None and len(rgb_BFHWC := held_out_clips(data, config.evaluation_clips, config.frames, config.size)):
        sets.append(("data_", "the data", (clips_to_pixels(part.to(device)) for part in rgb_BFHWC.split(config.batch))))
    for prefix, name, batches in sets:
        numbers, sheet = evaluate_tokenizer(tokenizer, batches)
        log.scalars(step, {f"{prefix}{key}": value for key, value in numbers.items()})
        log.say(
            f"step {step}: PSNR {numbers['psnr']:.2f} dB on held-out clips of {name} "
            f"(first frames {numbers['psnr_first_frame']:.2f}, worst clip {numbers['psnr_lowest']:.2f}), "
            f"{numbers['codes_used']:.0%} of the codes used, perplexity {numbers['codes_perplexity']:.0%}"
        )
        log.picture(step, f"{prefix}reconstruction", sheet)


def held_out_scenes(config: TrainTokenizerConfig, device: torch.device) -> Iterator[Tensor]:
    """Shapes, always the same; every clip's first object is of a (colour, shape) pair that training never shows."""
    for first in range(0, config.evaluation_clips, config.batch):
        scenes = [sample_scene(random.Random(f"-1 {number}"), held_out=True) for number in range(first, first + config.batch)]
        pixels_BCFHW = render(pack(scenes).to(device), config.frames, config.size, config.fps)
        yield pixels_BCFHW[: config.evaluation_clips - first]


@torch.no_grad()
def evaluate_tokenizer(tokenizer: VideoTokenizer, batches: Iterable[Tensor]) -> tuple[dict[str, float], Image]:
    """PSNR (dB) of all clips of batches of pixels_BCFHW, and how much of the codebook they use; and the first batch as a sheet,
    each clip above its reconstruction."""
    found, pairs = [], torch.empty(0)
    for pixels_BCFHW in batches:
        with _autocast(pixels_BCFHW.device):
            again_BCFHW, codes_BTHW = tokenizer(pixels_BCFHW)
        found.append((psnr(again_BCFHW, pixels_BCFHW), psnr(again_BCFHW[:, :, :1], pixels_BCFHW[:, :, :1]), codes_BTHW.flatten()))
        if not len(pairs):
            pairs = torch.stack([pixels_BCFHW, again_BCFHW.to(pixels_BCFHW.dtype)], 1)[:SHEET_CLIPS].flatten(0, 1).cpu()
    quality, first_frames, codes = (torch.cat(each) for each in zip(*found, strict=True))
    used, perplexity = codes_used(codes, tokenizer.codebook_size)
    numbers = {"psnr": float(quality.mean()), "psnr_lowest": float(quality.min())}
    numbers |= {"psnr_first_frame": float(first_frames.mean()), "codes_used": used, "codes_perplexity": perplexity}
    return numbers, contact_sheet(pairs, ["original", "reconstruction"] * (len(pairs) // 2))


def _loss(tokenizer: VideoTokenizer, pixels_BCFHW: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """(loss, mean PSNR) of one batch."""
    with _autocast(pixels_BCFHW.device):
        reconstruction_BCFHW, _ = tokenizer(pixels_BCFHW)
    loss = reconstruction_loss(reconstruction_BCFHW, pixels_BCFHW, config)
    return loss, psnr(reconstruction_BCFHW.detach(), pixels_BCFHW).mean()


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
