"""Train the decoder by AR-DF (paper section 3.3): one visible loop from a batch of codes to a weights folder.

In: a configuration, a tokenizer folder, and a stream of (prompt ids, codes). Out: RUN/model (ready for `lumos generate`),
RUN/checkpoints, RUN/metrics.jsonl, RUN/samples. Images are videos of one frame; image steps and video steps take turns. The
same command with `resume` goes on where the last checkpoint was, on any number of GPUs.
"""

import time
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from lumos.data.loader import caption_report
from lumos.generate import Generator
from lumos.media.sheet import contact_sheet
from lumos.model.transformer import Transformer
from lumos.model_folder import save_model
from lumos.ranks import finish, start, tell_of_lost_ranks, together
from lumos.training.checkpoint import Checkpoints
from lumos.training.clock import Clock
from lumos.training.config import NOTHING, Sources, TrainModelConfig
from lumos.training.learner import Learner
from lumos.training.lora import add_adapter, save_adapter, split
from lumos.training.metrics import Meter, RunLog
from lumos.training.objective import backward, generator_of, mask_batch, work_of
from lumos.training.parallel import average_gradients, build, whole
from lumos.training.run_parts import RunParts, gather_parts


def train_model(
    config: TrainModelConfig, out: Path, tokenizer_folder: Path, sources: Sources = NOTHING, resume: bool = False
) -> Path:
    """Train until the budget is used or Ctrl-C; returns the weights folder. ValueError for a run that cannot start.

    With sources.init its text vocabulary is kept, or carried over to config.new_words. With config.lora only adapters are
    trained, and RUN/lora holds them beside RUN/model, where they are merged.
    """
    ranks = start()
    device = ranks.device
    with together(ranks):
        parts = gather_parts(config, tokenizer_folder, sources, ranks, out / "model" if resume else None)
        config, vocabulary = parts.config, parts.vocabulary
        checkpoints = Checkpoints(out, resume, parts.record(), ranks, config.keep)
        stream = parts.open_stream(checkpoints.step, device)

    model = build(config.model, config.parallel, ranks, config.seed, parts.initial)
    if config.lora.rank:
        add_adapter(model, config.lora, config.seed)
    learner = Learner(model, config.optim, config.spike, device)
    step = checkpoints.start(learner)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if config.parallel.precision == "float32" else "high")

    def save() -> None:
        checkpoints.save(step, clock.seconds, learner)
        weights, adapter = best_weights(learner, config)
        if ranks.is_main:
            save_model(out / "model", parts.folder, weights, parts.text, parts.tokenizer)
            if adapter:
                save_adapter(out / "lora", config.lora, adapter, str(sources.init))

    def samples() -> None:
        weights, _ = best_weights(learner, config)
        if ranks.is_main:
            log.picture(step, "prompts", sample_sheet(parts, weights, device))

    log, meter = RunLog(out, step, ranks.is_main), Meter(config.model, ranks)
    clock = Clock(config.max_steps, config.max_seconds, ranks, checkpoints.seconds)
    with log, clock, tell_of_lost_ranks(ranks, f"the same command with --resume goes on from {out}"):
        log.say(checkpoints.began + parts.about_run(sum(parameter.numel() for parameter in model.parameters()), device))
        if parts.shards and (about := caption_report(parts.shards, config.video.height, config.video.width)):
            log.say(about)
        while (progress := clock.progress(step)) < 1 and not clock.interrupted:
            draw, asked = generator_of(config.seed, ranks.rank, step), time.monotonic()
            shown = stream.batch(step, draw)
            waited = time.monotonic() - asked
            batch = mask_batch(shown, config, draw)
            loss_T = backward(model, vocabulary, batch, config, ranks)
            if not config.parallel.shard:  # sharded gradients are averaged as they are made
                average_gradients(model.parameters(), ranks)
            norm = learner.update(step, progress)
            step += 1
            meter.add(batch.image, loss_T, norm, work_of(batch, config, vocabulary), waited)
            if step % config.log_every == 0:
                values = meter.take() | learner.report(config.patience, step)
                log.scalars(step, values | {"seconds": clock.seconds})
                loss = values.get("loss_video", values.get("loss_image", 0.0))
                log.progress(step, clock.progress(step), f"loss {loss:.3f}  {values['ids_per_second']:,.0f} ids/s")
            if step % config.save_every == 0:
                save()
            if config.worlds is not None and step % config.sample_every == 0:
                samples()
        save()
        if config.worlds is not None and step % config.sample_every and not clock.interrupted:
            samples()
        checkpoints.close()
        if clock.interrupted:
            log.say(f"stopped at step {step}; the same command with --resume goes on from there")
    finish(ranks)
    return out / "model"


def best_weights(learner: Learner, config: TrainModelConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The averaged weights, whole, in bf16 on the CPU, with adapters merged; and the adapters. Every rank must ask."""
    weights = {name: whole(tensor).to("cpu", torch.bfloat16) for name, tensor in learner.best().items()}
    return split(weights, config.lora) if config.lora.rank else (weights, {})


def sample_sheet(parts: RunParts, weights: dict[str, Tensor], device: torch.device) -> Image:
    """Videos of a few prompts, a row each."""
    model = Transformer(parts.config.model)
    model.load_state_dict(weights)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    prompts = parts.sample_prompts()
    return contact_sheet(
        Generator(parts.folder, model, parts.text, parts.tokenizer, device, dtype)(prompts, seed=1), list(prompts)
    )
