"""Small models that differ in one thing, trained for the same time on the same clips: what the paper's claims are tested on.

One object of the shapes world with its plainest caption -> codes (rendered and tokenised once) -> a model folder and its
validation curve, by latent frame. A `Variant` is what differs; a `Scale` is what is alike.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumos.data.batch import Batch
from lumos.diffusion.masking import MaskKind
from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.prompts import Prompt
from lumos.generate import Generator
from lumos.model.rope import RopeKind
from lumos.model.transformer import ModelConfig, Transformer
from lumos.model_folder import FolderConfig, VideoConfig, save_model
from lumos.ranks import Ranks
from lumos.sequence.layout import text_batch
from lumos.sequence.text import TextTokenizer, train_text_tokenizer
from lumos.sequence.vocabulary import Vocabulary, small_vocabulary
from lumos.tokenizer.model import VideoTokenizer
from lumos.training.config import TrainModelConfig
from lumos.training.objective import backward, batch_loss, generator_of, mask_batch
from lumos.training.optim import Ema, OptimConfig, build_optimizer, learning_rate, set_learning_rate
from lumos.worlds.shapes.captions import canonical_caption
from lumos.worlds.shapes.motion import DIRECTIONS
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import HELD_OUT_PAIRS, SEEN_PAIRS, Scene, sample_one

MOTIONS = (*DIRECTIONS, "still", "growing", "shrinking", "circling")
FPS, SLOTS = 8, 24
Size = tuple[int, int]  # height, width
Codes = dict[Size, Batch]


@dataclass(frozen=True)
class Variant:
    """What may differ: positions, training mask, attention inside a frame, sizes of the training clips, optimiser."""

    rope: RopeKind = "mm-rope"
    mask: MaskKind = "tube"
    causal: bool = False
    sizes: tuple[Size, ...] = ((128, 128),)
    muon: bool = True

    @property
    def name(self) -> str:
        parts = [self.rope, self.mask, *(["causal"] if self.causal else []), *([] if self.muon else ["adamw"])]
        parts += ["many-sizes"] if len(self.sizes) > 1 else []
        return "_".join(parts)


@dataclass(frozen=True)
class Scale:
    """What is alike. seconds: training time of each model, validation and compilation left out."""

    model: ModelConfig
    optim: OptimConfig
    sampler: SamplerConfig
    seconds: float
    frames: int = 17
    clips: int = 12_288
    validation: int = 256
    batch: int = 64
    prompts: int = 96
    points: int = 10  # of the validation curve


FULL = Scale(
    model=ModelConfig(vocabulary=0, layers=6, width=256, heads=4, kv_heads=2, head_width=64, ffn=704),
    optim=OptimConfig(lr=2e-3, warmup_steps=100, ema=0.996, muon=2.5),
    sampler=SamplerConfig(steps=16, guidance=3.0, temperature=0.6, noise=50.0, history=0.7, first=3.0),
    seconds=36.0,
)
TOY = Scale(
    model=ModelConfig(vocabulary=0, layers=1, width=32, heads=1, kv_heads=1, head_width=32, ffn=32),
    optim=OptimConfig(lr=2e-3, warmup_steps=2, ema=0.5),
    sampler=SamplerConfig(steps=2, guidance=2.0),
    seconds=1.0,
    frames=5,
    clips=8,
    validation=4,
    batch=2,
    prompts=2,
    points=2,
)


def one_thing(rng: random.Random, motion: str, held_out: bool) -> Scene:
    """A plain thing that moves at the usual speed."""
    pair = rng.choice(HELD_OUT_PAIRS if held_out else SEEN_PAIRS)
    scene = sample_one(rng, motion=motion, speed="normally", pair=pair)
    return replace(scene, things=(replace(scene.things[0], texture="plain"),))


def claim_prompts(count: int) -> list[Prompt]:
    """Always the same ones: every motion in turn, half of them of pairs that training does not show."""
    prompts = []
    for i in range(count):
        rng = random.Random(f"claims, prompt {i}")
        held = bool(i // len(MOTIONS) % 2)
        scene = one_thing(rng, MOTIONS[i % len(MOTIONS)], held)
        split = "held-out" if held else "seen"
        prompts.append(Prompt(f"claim-{i:03d}", "text to video", split, canonical_caption(scene), {}, scene))
    return prompts


@dataclass
class World:
    """Everything that all models share: tokenizer, text vocabulary, and codes of training and validation clips by size."""

    tokenizer: VideoTokenizer
    text: TextTokenizer
    vocabulary: Vocabulary
    scale: Scale
    device: torch.device
    training: Codes
    validation: Codes

    @classmethod
    def make(cls, tokenizer: VideoTokenizer, scale: Scale, device: torch.device) -> "World":
        """Without clips: `need` makes those of a size."""
        rng = random.Random("claims, captions")
        captions = [canonical_caption(one_thing(rng, rng.choice(MOTIONS), bool(i % 2))) for i in range(4000)]
        text = train_text_tokenizer(captions, 256)
        vocabulary = small_vocabulary(text.size, tokenizer.codebook_size)
        return cls(tokenizer.to(device).eval(), text, vocabulary, scale, device, {}, {})

    def need(self, sizes: tuple[Size, ...]) -> None:
        """Render and tokenise the clips of these sizes that are not there yet."""
        for size in sizes:
            if size not in self.training:
                self.training[size] = self._clips("training", self.scale.clips, size)
                self.validation[size] = self._clips("validation", self.scale.validation, size)

    def _clips(self, name: str, count: int, size: Size) -> Batch:
        rng = random.Random(f"claims, {name}, {size}")
        codes, texts = [], []
        for start in range(0, count, 32):
            scenes = [one_thing(rng, rng.choice(MOTIONS), False) for _ in range(min(32, count - start))]
            texts += [self.text.encode(canonical_caption(scene)) for scene in scenes]
            low = torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")
            with torch.no_grad(), low:
                packed = pack(scenes).to(self.device)
                pixels = render(packed, self.scale.frames, fps=FPS, height=size[0], width=size[1])
                codes.append(self.tokenizer.encode(pixels).to(torch.int32))
        text_BS, length_B = text_batch(self.vocabulary, texts, SLOTS)
        return Batch(text_BS.to(self.device), length_B, torch.cat(codes))


def batch_of(clips: Batch, which: Tensor) -> Batch:
    """Some clips, ready for a step."""
    rows = clips.rows(which)
    return rows._replace(codes_BTHW=rows.codes_BTHW.long())


def config_of(variant: Variant, world: World) -> TrainModelConfig:
    """A run's configuration as the training functions take it."""
    scale = world.scale
    latent = 1 + (scale.frames - 1) // 4
    height, width = variant.sizes[0]
    shape = replace(scale.model, vocabulary=world.vocabulary.size, rope=variant.rope, causal=variant.causal)
    return TrainModelConfig(
        model=shape,
        video=VideoConfig(height, width, scale.frames, FPS, SLOTS, latent, latent - 1),
        worlds=None,
        optim=scale.optim if variant.muon else replace(scale.optim, muon=0.0),
        sampler=scale.sampler,
        mask=variant.mask,
        videos=scale.batch,
        image_every=0,
        late_windows=0.0,
    )


def train(variant: Variant, seed: int, world: World, out: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Train one model for `scale.seconds` and save it as the model folder `out`; returns its curve and counts."""
    world.need(variant.sizes)
    config, device, scale = config_of(variant, world), world.device, world.scale
    model = Transformer(config.model)
    model.initialise(torch.Generator().manual_seed(seed))
    model.to(device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        for layer in model.layers:  # two small graphs, shared by all layers and models
            for side in ("before_attention", "after_attention"):
                setattr(layer, side, torch.compile(getattr(layer, side), dynamic=False))
    optimizer, ema, ranks = build_optimizer(model, config.optim), Ema(model, config.optim.ema), Ranks(0, 1, device)

    def step_of(step: int) -> Tensor:
        draw = generator_of(seed, 0, step)
        clips = world.training[variant.sizes[step % len(variant.sizes)]]
        which = torch.randint(len(clips.length_B), (scale.batch,), generator=draw)
        return backward(model, world.vocabulary, mask_batch(batch_of(clips, which), config, draw), config, ranks)

    for step in range(2 * len(variant.sizes)):  # compiles everything; no weight changes
        step_of(step)
        optimizer.zero_grad(set_to_none=True)
    clock, step = _Clock(device), 0
    curve: list[dict[str, Any]] = []
    while (progress := clock.seconds / scale.seconds) < 1 or step == 0:
        set_learning_rate(optimizer, learning_rate(step, progress, config.optim))
        step_of(step)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(model, step)
        step += 1
        if step % 10 == 0 or device.type == "cpu":
            clock.read()
        if clock.seconds >= (len(curve) + 1) * scale.seconds / scale.points:
            with clock.stopped():
                curve.append({"seconds": round(clock.seconds, 2), "step": step, **_validate(model, variant, config, world)})
                spent = f"{clock.seconds:.0f} of {scale.seconds:.0f} s"
                say(f"{variant.name}, seed {seed}: {spent}, step {step}, loss {curve[-1]['loss']:.3f}")
    weights = {name: tensor.detach() for name, tensor in ema.average.items()}
    folder = FolderConfig(config.model, world.vocabulary, config.video, config.sampler)
    save_model(out, folder, weights, world.text, world.tokenizer)
    return {"steps": step, "samples": step * scale.batch, "seconds": round(clock.seconds, 2), "curve": curve}


def generator_from(folder: Path, device: torch.device) -> Generator:
    """A saved model, ready to sample."""
    return Generator.from_folder(folder, str(device))


@torch.no_grad()
def _validate(model: Transformer, variant: Variant, config: TrainModelConfig, world: World) -> dict[str, Any]:
    """Losses of the weights as they are on clips never trained on: under the tube mask, the same for all models (the mean, and
    by latent frame), and by latent frame under the model's own training mask."""
    found: dict[str, Any] = {}
    masks: dict[str, MaskKind] = {"frames": "tube", "own_frames": variant.mask}
    for name, mask in masks.items():
        sums: Tensor | None = None
        counts: Tensor | None = None
        for size in variant.sizes:
            clips = world.validation[size]
            for start in range(0, len(clips.length_B), world.scale.batch):
                which = torch.arange(start, min(start + world.scale.batch, len(clips.length_B)))
                draw = generator_of(start, 0, 0)
                masked = mask_batch(batch_of(clips, which), replace(config, mask=mask, drop_text=0.0), draw)
                _, loss_T = batch_loss(model, world.vocabulary, masked, config, torch.ones((), device=world.device))
                count_T = masked.target_BTHW.sum(dim=(0, 2, 3)).to(loss_T)
                sums, counts = (loss_T, count_T) if sums is None or counts is None else (sums + loss_T, counts + count_T)
        assert sums is not None and counts is not None
        found[name] = [round(value, 4) for value in (sums / counts).tolist()]
    return {"loss": round(sum(found["frames"]) / len(found["frames"]), 4), **found}


class _Clock:
    """Training time: reading it waits for the device, and it stands still inside `stopped`."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0
        self.since = self._now()

    def read(self) -> None:
        now = self._now()
        self.seconds, self.since = self.seconds + now - self.since, now

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.read()
        yield
        self.since = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()
