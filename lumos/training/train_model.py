"""Train the decoder by AR-DF (paper section 3.3): one visible loop from a batch of codes to a weights folder.

In: a configuration, a tokenizer folder, and a stream of (prompt ids, codes). Out: RUN/model (ready for `lumos generate`),
RUN/checkpoints, RUN/metrics.jsonl, RUN/samples. Images are videos of one frame; image steps and video steps take turns. The
same command with `resume` goes on where the last checkpoint was, on any number of GPUs.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lumos.generate import Generator
from lumos.media.sheet import contact_sheet
from lumos.model.transformer import Transformer
from lumos.model_folder import save_model
from lumos.training import checkpoint, step_cost
from lumos.training.checkpoint import Learner
from lumos.training.clock import Budget, Clock
from lumos.training.config import TrainModelConfig
from lumos.training.lora import add_adapter, save_adapter, split
from lumos.training.metrics import Meter, RunLog
from lumos.training.objective import backward, generator_of, mask_batch, work_of
from lumos.training.optim import Ema, build_optimizer, learning_rate, set_learning_rate
from lumos.training.parallel import (
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
from lumos.training.run_parts import RunParts, gather_parts, schedule_of
from lumos.training.spike_guard import SpikeGuard, step_unless

if TYPE_CHECKING:
    from PIL.Image import Image


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
        parts = gather_parts(config, tokenizer_folder, init, data, text_file, ranks)
        config, vocabulary = parts.config, parts.vocabulary
        begun = checkpoint.begin(out, resume, parts.record(), ranks)
        stream = parts.open_stream(schedule_of(config, ranks), begun.step, device)

    model = build(config.model, config.parallel, ranks, config.seed)
    if parts.initial is not None:
        fill(model, parts.initial)
    if config.lora.rank:
        add_adapter(model, config.lora, config.seed)
    optimizer, guard = build_optimizer(model, config.optim), SpikeGuard(config.spike, device)
    ema = Ema(model, config.optim.ema) if config.optim.ema else None
    learner = Learner(model, optimizer, ema, guard)
    step, saver = checkpoint.resume(begun, learner, ranks, config.keep)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if config.parallel.precision == "float32" else "high")

    def save() -> None:
        saver.save(step, clock.seconds, learner)
        weights, adapter = best_weights(model, ema, config)
        if ranks.is_main:
            save_model(out / "model", parts.folder, weights, parts.text, parts.tokenizer)
            if adapter:
                save_adapter(out / "lora", config.lora, adapter, str(init))

    def samples() -> None:
        weights, _ = best_weights(model, ema, config)
        if ranks.is_main:
            log.picture(step, "prompts", sample_sheet(parts, weights, device))

    budget, remedy = Budget(config.max_steps, config.max_seconds), f"the same command with --resume goes on from {out}"
    with (
        begun.lock,
        RunLog(out, step, ranks.is_main) as log,
        Clock(budget, ranks, begun.seconds) as clock,
        tell_of_lost_ranks(ranks, remedy),
    ):
        if about := parts.about_captions():
            log.say(about)
        meter = Meter(ranks)
        while (progress := clock.progress(step)) < 1 and not clock.interrupted:
            rate = learning_rate(step, progress, config.optim)
            set_learning_rate(optimizer, rate)
            draw, asked = generator_of(config.seed, ranks.rank, step), time.monotonic()
            shown = stream.batch(step, draw)
            waited = time.monotonic() - asked
            batch = mask_batch(shown, config, draw)
            loss_T = backward(model, vocabulary, batch, config, ranks)
            if not config.parallel.shard:  # sharded gradients are averaged as they are made
                average_gradients(model.parameters(), ranks)
            norm = clip_gradients(model.parameters(), config.optim.clip)
            step_unless(guard.check(norm), optimizer)
            optimizer.zero_grad(set_to_none=True)
            if ema is not None:
                ema.update(model, step)
            step += 1
            work = work_of(batch, config, vocabulary)
            meter.add(batch.image, loss_T, norm, work, step_cost.flops(config.model, work).total, waited)
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


def best_weights(model: Transformer, ema: Ema | None, config: TrainModelConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The averaged weights where there are any, whole, in bf16 on the CPU, with adapters merged; and the adapters. Every rank
    must ask."""
    tensors = dict(model.named_parameters()) | ({} if ema is None else ema.average)
    weights = {name: whole(tensor.detach()).to("cpu", torch.bfloat16) for name, tensor in tensors.items()}
    return split(weights, config.lora) if config.lora.rank else (weights, {})


def sample_sheet(parts: RunParts, weights: dict[str, Tensor], device: torch.device) -> "Image":
    """Videos of a few prompts, a row each."""
    model = Transformer(parts.config.model)
    model.load_state_dict(weights)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    prompts = parts.sample_prompts()
    return contact_sheet(
        Generator(parts.folder, model, parts.text, parts.tokenizer, device, dtype)(prompts, seed=1), list(prompts)
    )
