"""Train the decoder by AR-DF (paper section 3.3): one visible loop from a batch of codes to a weights folder.

In: a configuration, a tokenizer folder, and a stream of (prompt ids, codes). Out: RUN/model (ready for `lumos generate`),
RUN/checkpoints, RUN/metrics.jsonl, RUN/samples. Images are videos of one frame; image steps and video steps take turns. The
same command with `resume` goes on where the last checkpoint was, on any number of GPUs.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lumos.data.loader import Deal, MixedStream, Plan, ShardStream, Stream, caption_report, captions_by_clip, captions_of, fits
from lumos.data.shapes import Chunks, ShapesStream, sample_captions
from lumos.data.shards import TOKENS, ShardIndex, check_tokenizer, open_shards
from lumos.generate import Generator
from lumos.model.transformer import Transformer
from lumos.model_folder import FolderConfig, load_model, save_model
from lumos.sequence.prompt_template import check_text
from lumos.sequence.text import TextTokenizer, train_text_tokenizer
from lumos.sequence.vocabulary import LUMOS, Vocabulary, small_vocabulary
from lumos.tokenizer.cosmos import CosmosConfig
from lumos.tokenizer.model import VideoTokenizer, load_tokenizer
from lumos.training import estimate, shared_checkpoint
from lumos.training.clock import Budget, Clock
from lumos.training.config import TrainModelConfig, check_same, recorded
from lumos.training.estimate import Spread
from lumos.training.guard import Guard, step_unless
from lumos.training.lora import add_adapter, plan_for, save_adapter, split
from lumos.training.metrics import Meter, RunLog, sheet
from lumos.training.objective import backward, generator_of, mask_batch, work_of
from lumos.training.optim import Ema, build_optimizer, learning_rate, set_learning_rate
from lumos.training.parallel import (
    Ranks,
    average_gradients,
    build,
    clip_gradients,
    fill,
    finish,
    start,
    tell_of_lost_ranks,
    together,
    whole,
)
from lumos.training.words import carried_over

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLE_PROMPTS = (
    "a red circle moves to the right",
    "a blue star moving up",
    "three green hearts",
    "a yellow square to the left of a purple triangle",
    "an orange pentagon spins on a dark background",
    "a small pink ring grows",
)


def train_model(
    config: TrainModelConfig,
    out: Path,
    tokenizer_folder: Path,
    resume: bool = False,
    init: Path | None = None,
    data: str | None = None,
    text_file: Path | None = None,
) -> Path:
    """Train until the budget is used or Ctrl-C; returns the weights folder. ValueError for a run that cannot start.

    init: a weights folder to start from instead of random weights; its text vocabulary is kept, or carried over to
    config.new_words. data: shards to train on, a folder or URL. With config.lora only adapters are trained, and RUN/lora holds
    them beside RUN/model, where they are merged.
    """
    ranks = start()
    device = ranks.device
    with together(ranks):
        found = shared_checkpoint.find(out, resume)
        parts = gather(config, tokenizer_folder, init, data, text_file)
        config, text, vocabulary, tokenizer = parts.config, parts.text, parts.vocabulary, parts.tokenizer
        config.parallel.check(ranks.world)
        state = {} if found is None else shared_checkpoint.read_state(found)
        if found is not None:
            check_same(state["config"], record(parts), found)
        check_memory(config, vocabulary, ranks)

    model = build(config.model, config.parallel, ranks, config.seed)
    if parts.initial is not None:
        fill(model, parts.initial)
    if config.lora.rank:
        add_adapter(model, config.lora, config.seed)
    optimizer = build_optimizer(model, config.optim)
    ema = Ema(model, config.optim.ema) if config.optim.ema else None
    with together(ranks):
        stream = open_stream(config, parts, ranks, state.get("step", 0))
    if found is not None:
        shared_checkpoint.load(found, model, optimizer, ema, ranks)
    step, seconds = state.get("step", 0), state.get("seconds", 0.0)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if config.parallel.precision == "float32" else "high")
    folder = FolderConfig(config.model, vocabulary, config.video, config.sampler)
    saver = shared_checkpoint.Saver(out, ranks, config.keep, state.get("step"))

    def save() -> None:
        said = {"seconds": clock.seconds, "config": record(parts)}
        saver.save(step, shared_checkpoint.tensors_of(model, optimizer, ema), said)
        weights = best_weights(model, ema)
        if config.lora.rank:
            weights, adapter = split(weights, config.lora)
            if ranks.is_main:
                save_adapter(out / "lora", config.lora, adapter, str(init))
        if ranks.is_main:
            save_model(out / "model", folder, weights, text, tokenizer)

    def samples() -> None:
        weights = best_weights(model, ema)
        if config.lora.rank:
            weights, _ = split(weights, config.lora)
        if ranks.is_main:
            log.picture(step, "prompts", _sample_sheet(folder, weights, text, tokenizer, device, prompts))

    prompts = sample_prompts(parts)
    budget, remedy = Budget(config.max_steps, config.max_seconds), f"the same command with --resume goes on from {out}"
    with RunLog(out, step, ranks.is_main) as log, Clock(budget, ranks, seconds) as clock, tell_of_lost_ranks(ranks, remedy):
        if about := about_captions(parts):
            log.say(about)
        meter, guard = Meter(ranks), Guard(config.spike, device)
        while (progress := clock.progress(step)) < 1 and not clock.interrupted:
            rate = learning_rate(step, progress, config.optim)
            set_learning_rate(optimizer, rate)
            image = config.image_every > 0 and step % config.image_every == config.image_every - 1
            size = config.images if image else config.videos
            draw, asked = generator_of(config.seed, ranks.rank, step), time.monotonic()
            shown = stream.batch(step, size, image, draw)
            waited = time.monotonic() - asked
            batch = mask_batch(shown, image, config, draw)
            loss_T = backward(model, vocabulary, batch, config, ranks)
            if not config.parallel.shard:  # sharded gradients are averaged as they are made
                average_gradients(model.parameters(), ranks)
            norm = clip_gradients(model.parameters(), config.optim.clip)
            step_unless(guard.check(norm), optimizer)
            optimizer.zero_grad(set_to_none=True)
            if ema is not None:
                ema.update(model, step)
            step += 1
            work, count = work_of(batch, config, vocabulary), size * ranks.world
            flops = estimate.flops(config.model, work).total * ranks.world
            meter.add(image, loss_T, norm, count, work.ids * count, flops, waited)
            if step % config.log_every == 0:
                values = meter.take() | {"skipped": guard.report(config.patience, step)}
                log.scalars(step, {**values, "learning_rate": rate, "seconds": clock.seconds})
                loss = values.get("loss_video", values.get("loss_image", 0.0))
                log.progress(step, clock.progress(step), f"loss {loss:.3f}  {values['ids_per_second']:,.0f} ids/s")
            if step % config.save_every == 0:
                save()
            if config.shapes is not None and step % config.sample_every == 0:
                samples()
        save()
        if config.shapes is not None and step % config.sample_every and not clock.interrupted:
            samples()
        saver.wait()
        if clock.interrupted:
            log.say(f"stopped at step {step}; the same command with --resume goes on from there")
    finish(ranks)
    return out / "model"


class Parts(NamedTuple):
    """What a run is put together from: its config with the vocabulary's size in it, and perhaps weights to start from."""

    config: TrainModelConfig
    text: TextTokenizer
    vocabulary: Vocabulary
    tokenizer: VideoTokenizer
    initial: dict[str, Tensor] | None
    shards: ShardIndex | None


def gather(
    config: TrainModelConfig, tokenizer_folder: Path, init: Path | None, data: str | None, text_file: Path | None
) -> Parts:
    """Tokenizers and vocabulary, the same on every rank. ValueError for weights of another shape or foreign shards."""
    if config.shapes is None and data is None:
        raise ValueError("this preset trains on shards, got none; give --data FOLDER (lumos prepare makes one)")
    tokenizer = load_tokenizer(tokenizer_folder)
    shards = None if data is None else open_shards(data)
    if shards is not None:
        check_tokenizer(shards, tokenizer)
        if shards.form != TOKENS and shards.fps != config.video.fps:
            raise ValueError(
                f"video.fps must be {shards.fps:g}, as in {data}, got {config.video.fps}; change it, or prepare again"
            )
    if init is None and config.model.vocabulary == LUMOS.size:
        text, vocabulary, initial = published_text(text_file, tokenizer.codebook_size), LUMOS, None
    elif init is None:
        text = new_text(config, shards)
        vocabulary, initial = small_vocabulary(text.size, tokenizer.codebook_size), None
    else:
        started, first, text, _ = load_model(init)
        vocabulary, initial = started.vocabulary, first.state_dict()
        expected = replace(config.model, vocabulary=vocabulary.size)
        if started.model != expected:
            raise ValueError(f"{init} must hold a model of shape {expected}, got {started.model}; use its own preset")
        if config.new_words:
            if vocabulary == LUMOS:
                raise ValueError("new_words must be false for the published vocabulary, got true; its words are fixed")
            before, text = text, new_text(config, shards)
            vocabulary = small_vocabulary(text.size, tokenizer.codebook_size)
            initial = carried_over(initial, before, started.vocabulary, text, vocabulary)
    config = replace(config, model=replace(config.model, vocabulary=vocabulary.size))
    if config.lora.rank:
        if init is None:
            raise ValueError("lora.rank must be 0 without weights to start from, got none; give --init NAME or FOLDER")
        config = replace(config, parallel=plan_for(config.parallel))
    return Parts(config, text, vocabulary, tokenizer, initial, shards)


def new_text(config: TrainModelConfig, shards: ShardIndex | None) -> TextTokenizer:
    """A text vocabulary of the words in the captions that the run will see."""
    captions = [] if config.shapes is None else [sample_captions(20_000, config.seed)]
    captions += [] if shards is None or shards.form == TOKENS else [captions_of(shards)]
    return train_text_tokenizer(chain(*captions), config.text_vocabulary)


def published_text(file: Path | None, codes: int) -> TextTokenizer:
    """The text tokenizer of the published vocabulary, checked."""
    if file is None:
        raise ValueError(
            "the published vocabulary needs its text tokenizer, got none; give --text text_tokenizer.json, or --init"
        )
    if codes != LUMOS.codes:
        raise ValueError(
            f"the published vocabulary has {LUMOS.codes} codes, got a tokenizer of {codes}; give the Cosmos tokenizer "
            "(--tokenizer FOLDER), or make a vocabulary of its own (--set model.vocabulary=0)"
        )
    text = TextTokenizer.from_file(file)
    check_text(text)
    return text


def record(parts: Parts) -> dict[str, Any]:
    """What a checkpoint says of its run, the shards included."""
    return recorded(parts.config, parts.tokenizer) | ({} if parts.shards is None else {"data": parts.shards.digest})


def sample_prompts(parts: Parts) -> tuple[str, ...]:
    """What the sample sheets show: shapes, and captions of the shards."""
    if parts.shards is None or parts.shards.form == TOKENS:
        return SAMPLE_PROMPTS
    slots = parts.config.video.slots
    fitting = ([caption for caption in clip if fits(parts.text, caption, slots)] for clip in captions_by_clip(parts.shards, 6))
    own = SAMPLE_PROMPTS[:3] if parts.config.shapes is not None and parts.config.data_share < 1 else ()
    return (*own, *(captions[0] for captions in fitting if captions)) or SAMPLE_PROMPTS


def about_captions(parts: Parts) -> str:
    """What will happen to captions that the model cannot take as they are; empty when there are none."""
    if parts.shards is None:
        return ""
    shares = caption_report(parts.shards, parts.text, parts.config.video.slots)
    said = [f"{shares[key]:.0%} of the captions are {words}" for key, words in CAPTION_FATES.items() if shares[key] >= 0.005]
    return "; ".join(said)


CAPTION_FATES = {
    "cut": "cut at their end to fit the prompt's slots",
    "with_unknown": "shown without characters that are not known",
}


def open_stream(config: TrainModelConfig, parts: Parts, ranks: Ranks, step: int) -> Stream:
    """Where batches come from: shapes, shards or both."""
    slots = config.video.slots
    shapes: ShapesStream | None = None
    if config.shapes is not None and (parts.shards is None or config.data_share < 1):
        if isinstance(parts.tokenizer.config, CosmosConfig):
            raise ValueError("the built-in world needs a tokenizer trained on it, got a Cosmos one; give --tokenizer")
        chunks = Chunks(config.shapes, parts.text, parts.vocabulary, slots, config.seed, ranks.rank)
        shapes = ShapesStream(config.shapes, chunks, parts.tokenizer, ranks.device, config.videos, step)
    if parts.shards is None:
        assert shapes is not None
        return shapes
    deal = Deal(config.videos, config.images, config.image_every, config.seed, ranks.rank, ranks.world)
    shards = ShardStream(parts.shards, parts.text, parts.vocabulary, slots, deal, config.loader, ranks.device)
    check_enough(parts.shards, shards.plans)
    return shards if shapes is None else MixedStream(shards, shapes, config.data_share)


def check_enough(shards: ShardIndex, plans: Mapping[bool, Plan]) -> None:
    """ValueError when a step over all groups of GPUs would have to show a clip twice. `plans`: of videos and (True) of images."""
    deal, few = plans[False].deal, dict[str, int]()
    asked = {"videos": deal.videos * deal.world, "images": deal.images * deal.world}
    for name, plan, is_used in (("videos", plans[False], deal.image_every != 1), ("images", plans[True], deal.image_every > 0)):
        have = sum(len(bucket) for bucket in plan.buckets)
        if is_used and have < asked[name]:
            few[name] = have
    if few:
        wanted, held = (" and ".join(f"{of[name]} {name}" for name in few) for of in (asked, few))
        least = min(few.values())
        smaller = " ".join(f"--set {name}={have // deal.world}" for name, have in few.items())
        remedy = smaller if least >= deal.world else f"at most {least} GPUs"
        raise ValueError(f"{shards.folder} must hold the {wanted} of a step on all GPUs, got {held}; use {remedy}, or more clips")


def check_memory(config: TrainModelConfig, vocabulary: Vocabulary, ranks: Ranks) -> None:
    """ValueError, with what would fit, for a run that this card has no room for."""
    if ranks.device.type != "cuda":
        return
    plan = config.parallel
    spread = Spread.of(plan, ranks.world, bool(config.optim.ema))
    gibibytes = torch.cuda.get_device_properties(ranks.device).total_memory / 2**30
    for frames, size in ((config.video.window, config.videos), (1, config.images if config.image_every else 0)):
        work = estimate.work(config.video, frames, size // config.accumulate, vocabulary.codes)
        need = estimate.memory(config.model, work, plan.recompute, spread).total / 2**30
        if need > estimate.RESERVE * gibibytes:
            raise ValueError(
                f"a step must fit into the {gibibytes:.0f} GiB of this GPU, got about {need:.0f} GiB by estimate; "
                f"{estimate.advice(config.model, work, plan.recompute, spread, gibibytes)}"
            )


def best_weights(model: Transformer, ema: Ema | None) -> dict[str, Tensor]:
    """The averaged weights where there are any, whole and on the CPU; every rank must ask."""
    tensors = dict(model.named_parameters()) | ({} if ema is None else ema.average)
    return {name: whole(tensor.detach()).to("cpu", torch.bfloat16) for name, tensor in tensors.items()}


def _sample_sheet(
    folder: FolderConfig,
    weights: dict[str, Tensor],
    text: TextTokenizer,
    tokenizer: VideoTokenizer,
    device: torch.device,
    prompts: tuple[str, ...],
) -> "Image":
    """Every fourth frame of a few prompts, a row each."""
    model = Transformer(folder.model)
    model.load_state_dict(weights)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pixels_BCFHW = Generator(folder, model, text, tokenizer, device, dtype)(prompts, seed=1)
    return sheet([video.transpose(0, 1)[::4] for video in pixels_BCFHW])
