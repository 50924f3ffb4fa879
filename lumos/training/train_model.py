"""Train the decoder by AR-DF (paper section 3.3): one visible loop from a batch of codes to a weights folder.

In: a configuration, a tokenizer folder, and a stream of (prompt ids, codes). Out: RUN/model (averaged weights, ready for
`lumos generate`), RUN/checkpoints, RUN/metrics.jsonl, RUN/samples. Images are videos of one frame; image steps and video
steps take turns. The same command with `resume` goes on where the last checkpoint was.
"""

import hashlib
import json
import math
import random
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lumos.data.shapes import Batch, Chunks, ShapesConfig, ShapesStream, sample_captions
from lumos.diffusion.loss import weighted_code_loss
from lumos.diffusion.masking import MaskKind, draw_mask
from lumos.diffusion.sampler import SamplerConfig
from lumos.generate import Generator
from lumos.model.attention import attend_by_block
from lumos.model.transformer import ModelConfig, Transformer
from lumos.model_folder import FolderConfig, VideoConfig, save_model
from lumos.sequence.layout import Grid, clock, content_ids, content_of, pack
from lumos.sequence.text import TextTokenizer, train_text_tokenizer
from lumos.sequence.vocabulary import Vocabulary, small_vocabulary
from lumos.tokenizer.model import VideoTokenizer, load_tokenizer
from lumos.training import checkpoint
from lumos.training.clock import Budget, Clock
from lumos.training.metrics import RunLog, sheet
from lumos.training.optim import Ema, OptimConfig, build_optimizer, learning_rate, set_learning_rate
from lumos.training.parallel import Ranks, average, average_gradients, finish, start

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class TrainModelConfig:
    """`model.vocabulary` 0 = as many ids as text, structure and codes need. `videos`, `images`: the batch of a step on one GPU,
    split into `accumulate` parts; every `image_every`-th step is an image step (0 = none). `drop_text`: share of samples that
    lose their prompt (for guidance). `late_windows`: share of video steps whose window starts later than the first frame.
    """

    model: ModelConfig
    video: VideoConfig
    shapes: ShapesConfig
    optim: OptimConfig
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    text_vocabulary: int = 768
    mask: MaskKind = "tube"
    videos: int = 64
    images: int = 256
    accumulate: int = 1
    image_every: int = 4
    drop_text: float = 0.1
    late_windows: float = 0.3
    max_steps: int | None = None
    max_seconds: float | None = None
    log_every: int = 50
    sample_every: int = 2000
    save_every: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, size in (("videos", self.videos), ("images", self.images)):
            if self.accumulate < 1 or size < 1 or size % self.accumulate:
                raise ValueError(f"{name} must be a multiple of accumulate = {self.accumulate}, got {size}; change one")
        for name, value in (("height", self.shapes.size), ("width", self.shapes.size), ("fps", self.shapes.fps)):
            if getattr(self.video, name) != value:
                raise ValueError(f"video.{name} must be {value}, as in shapes, got {getattr(self.video, name)}; change one")
        if self.video.latest > (self.shapes.frames - 1) // 4:
            raise ValueError(
                f"video.latest must be a latent frame of the clips, at most {(self.shapes.frames - 1) // 4}, "
                f"got {self.video.latest}; make shapes.frames longer"
            )


SAMPLE_PROMPTS = (
    "a red circle moves to the right",
    "a blue star moving up",
    "three green hearts",
    "a yellow square to the left of a purple triangle",
    "an orange pentagon spins on a dark background",
    "a small pink ring grows",
)


def train_model(config: TrainModelConfig, out: Path, tokenizer_folder: Path, resume: bool = False) -> Path:
    """Train until the budget is used or Ctrl-C; returns the weights folder. ValueError for a run that cannot start."""
    ranks = start()
    device = ranks.device
    found = checkpoint.find(out, resume)
    tokenizer = load_tokenizer(tokenizer_folder)
    text = train_text_tokenizer(sample_captions(20_000, config.seed), config.text_vocabulary)  # every rank makes the same one
    vocabulary = small_vocabulary(text.size, tokenizer.codebook_size)
    config = replace(config, model=replace(config.model, vocabulary=vocabulary.size))
    grid = Grid(config.video.height // tokenizer.spatial, config.video.width // tokenizer.spatial)

    model = Transformer(config.model)
    model.initialise(torch.Generator().manual_seed(config.seed))
    model.to(device)
    optimizer = build_optimizer(model, config.optim)
    ema = Ema(model, config.optim.ema)
    step, seconds = 0, 0.0
    if found:
        tensors, state = checkpoint.load(found)
        _check_same(state["config"], _recorded(config, tokenizer), found)
        checkpoint.restore(tensors, state, model, optimizer, ema, found)
        step, seconds = state["step"], state["seconds"]
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        for layer in model.layers:
            layer.compile(dynamic=False)

    chunks = Chunks(config.shapes, text, vocabulary, config.video.slots, config.seed, ranks.rank)
    stream = ShapesStream(config.shapes, chunks, tokenizer, device, config.videos, step)
    folder = FolderConfig(config.model, vocabulary, config.video, config.sampler)

    def save() -> None:
        if ranks.is_main:
            kept, state = checkpoint.collect(model, optimizer, ema)
            checkpoint.save(out, step, kept, {**state, "seconds": clock_.seconds, "config": _recorded(config, tokenizer)})
            save_model(out / "model", folder, ema.average, text, tokenizer)

    def samples() -> None:
        if ranks.is_main:
            log.picture(step, "prompts", _sample_sheet(folder, ema.average, text, tokenizer, device))

    budget = Budget(config.max_steps, config.max_seconds)
    with RunLog(out, step, ranks.is_main) as log, Clock(budget, ranks, seconds) as clock_:
        meter = Meter()
        while (progress := clock_.progress(step)) < 1 and not clock_.interrupted:
            rate = learning_rate(step, progress, config.optim)
            set_learning_rate(optimizer, rate)
            image = config.image_every > 0 and step % config.image_every == config.image_every - 1
            size = config.images if image else config.videos
            draw = generator_of(config.seed, ranks.rank, step)
            batch = hide(stream.batch(step, size, image, draw), image, config, grid, draw)
            loss_T = backward(model, vocabulary, grid, batch, image, config, ranks)
            average_gradients(model.parameters(), ranks)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(model, step)
            step += 1
            meter.add(image, loss_T, norm, size * ranks.world)
            if step % config.log_every == 0:
                values = meter.take(ranks)
                _check_finite(values, step)
                log.scalars(step, {**values, "learning_rate": rate, "seconds": clock_.seconds})
                shown = values.get("loss_video", values.get("loss_image", 0.0))
                log.progress(step, clock_.progress(step), f"loss {shown:.3f}  {values['samples_per_second']:.0f} samples/s")
            if step % config.save_every == 0:
                save()
            if step % config.sample_every == 0:
                samples()
        save()
        if step % config.sample_every and not clock_.interrupted:
            samples()
        if clock_.interrupted:
            log.say(f"stopped at step {step}; the same command with --resume goes on from there")
    finish(ranks)
    return out / "model"


def generator_of(seed: int, rank: int, step: int) -> torch.Generator:
    """What one rank draws in one step, from these three alone: so a resumed run draws the same."""
    # A CPU generator keeps only 32 bits of its seed: numbers put side by side would lose the rank and the seed.
    return torch.Generator().manual_seed(random.Random(f"{seed}/{rank}/{step}").getrandbits(32))


class Hidden(NamedTuple):
    """A batch with everything drawn: prompts (length 0 = dropped), a window of codes_BTHW that starts at latent frame `first`,
    and which of its content is masked, mask [B, T, H, W + 1]."""

    text_BS: Tensor
    length_B: Tensor
    codes_BTHW: Tensor
    mask: Tensor
    first: int

    def part(self, rows: slice) -> "Hidden":
        return Hidden(self.text_BS[rows], self.length_B[rows], self.codes_BTHW[rows], self.mask[rows], self.first)


def hide(batch: Batch, image: bool, config: TrainModelConfig, grid: Grid, draw: torch.Generator) -> Hidden:
    """Draw the window in time, the prompts to drop, and the mask. `draw` lives on the CPU."""
    device = batch.codes_BTHW.device
    window = 1 if image else config.video.window
    latest_start = batch.codes_BTHW.shape[1] - window
    late = latest_start > 0 and float(torch.rand((), generator=draw)) < config.late_windows
    first = int(torch.randint(1, latest_start + 1, (), generator=draw)) if late else 0
    codes_BTHW = batch.codes_BTHW[:, first : first + window]
    B, T = codes_BTHW.shape[:2]
    dropped = (torch.rand(B, generator=draw) < config.drop_text).to(device, non_blocking=True)
    on_device = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=draw)))
    mask = draw_mask(config.mask, B, T, grid.rows, grid.columns + 1, on_device, device)
    return Hidden(batch.text_BS, torch.where(dropped, 0, batch.length_B), codes_BTHW, mask, first)


def backward(
    model: Transformer, vocabulary: Vocabulary, grid: Grid, batch: Hidden, image: bool, config: TrainModelConfig, ranks: Ranks
) -> Tensor:
    """Gradients of the mean cross-entropy over the masked codes of all ranks and parts; returns this rank's, by latent frame.

    The loss counts `world` times, because gradients are averaged over the ranks.
    """
    B, T = batch.codes_BTHW.shape[:2]
    count_T = batch.mask[..., :-1].sum(dim=(0, 2, 3))
    count = count_T.sum().float()
    if ranks.world > 1:
        dist.all_reduce(count)
    loss_T = torch.zeros(T, device=count.device)
    size = B // config.accumulate
    for row in range(0, B, size):
        part = batch.part(slice(row, row + size))
        loss, part_T = batch_loss(model, vocabulary, grid, part, image, config, ranks.world / count)
        loss.backward()
        loss_T += part_T
    return loss_T / count_T.clamp(min=1)


def batch_loss(
    model: Transformer,
    vocabulary: Vocabulary,
    grid: Grid,
    batch: Hidden,
    image: bool,
    config: TrainModelConfig,
    weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """Sum of the masked codes' cross-entropy times `weight`, and without weight (no gradient) by latent frame."""
    text_BS, length_B, codes_BTHW, mask, first = batch
    T = codes_BTHW.shape[1]
    content = torch.where(mask, vocabulary.mask, content_ids(vocabulary, codes_BTHW))
    seconds, fps = clock(1 if image else config.video.frames, config.video.fps)
    ids_BL, position_BL3, block_BL = pack(vocabulary, grid, text_BS, length_B, content, seconds, fps, first)
    with torch.autocast(codes_BTHW.device.type, torch.bfloat16, enabled=codes_BTHW.is_cuda):
        hidden_BLD = model(ids_BL, position_BL3, attend_by_block(block_BL))
        hidden = content_of(grid, hidden_BLD, config.video.slots, T)[:, :, :, :-1]
        is_target = mask[..., :-1]
        head = model.head[vocabulary.first_code : vocabulary.first_code + vocabulary.codes]
        loss, loss_M = weighted_code_loss(hidden.flatten(0, 3), head, codes_BTHW.flatten(), (is_target * weight).flatten())
    return loss, (loss_M.view(codes_BTHW.shape) * is_target).sum(dim=(0, 2, 3)).detach()


class Meter:
    """Sums on the device between two log lines; reading them is the only wait."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.frames: dict[bool, list[Tensor]] = {False: [], True: []}
        self.norms: list[Tensor] = []
        self.samples = 0

    def add(self, image: bool, loss_T: Tensor, norm: Tensor, samples: int) -> None:
        self.frames[image].append(loss_T)
        self.norms.append(norm)
        self.samples += samples

    def take(self, ranks: Ranks) -> dict[str, float]:
        """Means since the last call, over the ranks: loss of images, of videos, of each latent frame; gradient norm; rate."""
        values = {"gradient_norm": float(torch.stack(self.norms).mean())}
        for image, name in ((False, "loss_video"), (True, "loss_image")):
            if self.frames[image]:
                loss_T = average(torch.stack(self.frames[image]).mean(dim=0), ranks).tolist()
                values[name] = sum(loss_T) / len(loss_T)
                if not image:
                    values |= {f"loss_frame_{number}": value for number, value in enumerate(loss_T)}
        now = time.monotonic()
        values["samples_per_second"] = self.samples / (now - self.since)
        self.__init__()  # type: ignore[misc]
        return values


def _sample_sheet(
    folder: FolderConfig, weights: dict[str, Tensor], text: TextTokenizer, tokenizer: VideoTokenizer, device: torch.device
) -> "Image":
    """Every fourth frame of a few prompts, a row each."""
    model = Transformer(folder.model)
    model.load_state_dict(weights)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pixels_BCFHW = Generator(folder, model, text, tokenizer, device, dtype)(SAMPLE_PROMPTS, seed=1)
    return sheet([video.transpose(0, 1)[::4] for video in pixels_BCFHW])


def _check_finite(values: dict[str, float], step: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must stay finite, got {value} at step {step}; resume with a lower learning rate or clip")


def _recorded(config: TrainModelConfig, tokenizer: VideoTokenizer) -> dict[str, Any]:
    """What a checkpoint says of its run: every setting, and which tokenizer made the codes."""
    weights = b"".join(tensor.numpy(force=True).tobytes() for tensor in tokenizer.state_dict().values())
    return {**asdict(config), "tokenizer": hashlib.sha256(weights).hexdigest()[:16]}


def _check_same(saved: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Resuming must not change what is trained; budget, logging and how the work is split up may differ."""
    free = ("max_steps", "max_seconds", "log_every", "sample_every", "save_every", "sampler", "accumulate", "shapes.workers")
    then = _flat(saved)
    for name, value in _flat(json.loads(json.dumps(now))).items():
        if then.get(name, value) != value and not name.startswith(free):
            raise ValueError(
                f"a resumed run must keep its config, got {name} = {value} where {where} has {then[name]}; "
                "use that, or a new folder"
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, as --set calls them."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
