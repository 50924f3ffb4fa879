"""Is anything lost by training fast? The packaged model's shape, trained for the same steps on the same clips and draws: plain
float32 in one process with a written-out mask, against bf16, compiled, sharded, with FlexAttention or attention by prefixes.

The float32 run is repeated with other draws; how far those lie apart is the noise. One JSON line a run and a table at the end.

    python benchmarks/same_loss.py --max-seconds 150 --out same_loss.jsonl
    torchrun --nproc-per-node 2 benchmarks/same_loss.py --out same_loss_x2.jsonl     # sharded runs on two GPUs
    python benchmarks/same_loss.py --toy
"""

import argparse
import gc
import json
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lumos.config import PACKAGED
from lumos.data.batch import Batch
from lumos.data.worlds import WorldsConfig
from lumos.files import add_line
from lumos.model.transformer import ModelConfig
from lumos.model_folder import VideoConfig, load_model
from lumos.presets import MODELS
from lumos.ranks import Ranks, agree, average, finish, start
from lumos.sequence.layout import text_batch
from lumos.sequence.text import TextTokenizer
from lumos.sequence.vocabulary import Vocabulary
from lumos.tokenizer.model import VideoTokenizer
from lumos.training.config import TrainModelConfig
from lumos.training.objective import backward, generator_of, mask_batch
from lumos.training.optim import OptimConfig, build_optimizer, learning_rate, set_learning_rate
from lumos.training.parallel import ParallelConfig, build, clip_gradients
from lumos.weights import PRETRAINED
from lumos.worlds.shapes.captions import caption
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import sample_scene

PLAIN = ParallelConfig(attention="dense", compile="off", precision="float32")
FAST = {
    "bf16, compiled, flex": ParallelConfig(attention="flex"),
    "bf16, compiled, sharded, prefix": ParallelConfig(shard=True, attention="prefix"),
    "bf16, compiled, sharded, flex": ParallelConfig(shard=True, attention="flex"),
}
LAST = 20  # steps whose mean loss is compared
HELD_OUT = 8  # batches of clips that are never trained on, with draws that are the same for all runs
TOY = ModelConfig(vocabulary=0, layers=2, width=64, heads=2, kv_heads=1, head_width=32, ffn=96)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4, help="videos a step, over all GPUs")
    parser.add_argument("--seeds", type=int, default=3, help="float32 runs, each with its own draws")
    parser.add_argument("--only", default="", help="only runs whose name contains this")
    parser.add_argument("--clips", type=int, default=256, help="rendered and tokenised once")
    parser.add_argument("--max-seconds", type=float, default=150.0, help="start no run that would end later")
    parser.add_argument("--out", type=Path, help="write the JSON lines here too")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to try the script on the CPU")
    args = parser.parse_args()
    began = time.monotonic()
    ranks = start()
    if args.batch % ranks.world:
        raise SystemExit(f"--batch must be a multiple of the {ranks.world} processes, got {args.batch}")
    folder, _, text, tokenizer = load_model(PRETRAINED / PACKAGED)
    assert isinstance(tokenizer, VideoTokenizer)
    model = replace(TOY, vocabulary=folder.vocabulary.size, sub_codes=folder.vocabulary.sub_codes) if args.toy else folder.model
    config = config_of(model, args.toy, args.batch)
    if args.toy:
        args.steps, args.clips = min(args.steps, 30), 24
    clips = make_clips(args.clips + HELD_OUT * args.batch, text, folder.vocabulary, tokenizer, config, ranks.device)
    # float32 first and last: when time runs out, it is the noise that is known less well
    cases = [("float32, plain", PLAIN, 0), *((name, plan, 0) for name, plan in FAST.items())]
    cases += [("float32, plain", PLAIN, seed) for seed in range(1, args.seeds)]
    cases = [case for case in cases if args.only in case[0]]
    rows: list[dict[str, Any]] = []
    longest = 0.0
    for name, plan, seed in cases:
        since = time.monotonic()
        if agree((since - began + longest,), ranks)[0] > args.max_seconds:
            if ranks.is_main:
                print(
                    json.dumps({"case": name, "seed": seed, "left_out": f"might end after {args.max_seconds:.0f} s"}), flush=True
                )
            continue
        if ranks.device.type != "cuda" and plan.attention == "flex":
            plan = replace(plan, attention="dense")
        found = train(replace(config, parallel=plan), folder.vocabulary, clips, seed, args.steps, ranks)
        gc.collect()
        longest = max(longest, time.monotonic() - since)
        rows.append({"case": name, "seed": seed, **found, "seconds": round(time.monotonic() - since, 1), **about(args, ranks)})
        if ranks.is_main:
            print(json.dumps(rows[-1]), flush=True)
            if args.out:
                add_line(args.out, rows[-1])
    if ranks.is_main:
        print("\n" + table(rows))
    finish(ranks)


def config_of(model: ModelConfig, toy: bool, batch: int) -> TrainModelConfig:
    """The preset of the packaged model, videos alone, with AdamW: Muon needs whole matrices, which sharded runs have not."""
    config = replace(
        MODELS["box"],
        model=model,
        optim=OptimConfig(lr=1e-3, warmup_steps=50, schedule="constant", ema=0.0),
        videos=batch,
        image_every=0,
        late_windows=0.0,
    )
    if not toy:
        return config
    small = WorldsConfig(size=64, frames=9)
    return replace(config, worlds=small, video=VideoConfig(64, 64, 9, 8, config.video.slots, 3, 2, spatial=16))


@torch.no_grad()
def make_clips(
    count: int,
    text: TextTokenizer,
    vocabulary: Vocabulary,
    tokenizer: VideoTokenizer,
    config: TrainModelConfig,
    device: torch.device,
) -> Batch:
    """Random scenes with their captions, rendered and tokenised."""
    rng, video, tokenizer = random.Random("same loss"), config.video, tokenizer.to(device).eval()
    scenes = [sample_scene(rng) for _ in range(count)]
    text_BS, length_B = text_batch(vocabulary, [text.encode(caption(scene, rng)) for scene in scenes], video.slots)
    frames, codes = 4 * video.window - 3, []
    for first in range(0, count, 32):
        pixels_BCFHW = render(pack(scenes[first : first + 32]).to(device), frames, video.height, video.fps)
        codes.append(tokenizer.encode(pixels_BCFHW))
    return Batch(text_BS.to(device), length_B, torch.cat(codes))


def train(config: TrainModelConfig, vocabulary: Vocabulary, clips: Batch, seed: int, steps: int, ranks: Ranks) -> dict[str, Any]:
    """One run, always from the same weights. Unsharded ones are of one process: every rank does the same."""
    plan, device = config.parallel, ranks.device
    us = ranks if plan.shard else Ranks(0, 1, device)
    torch.set_float32_matmul_precision("highest" if plan.precision == "float32" else "high")
    model = build(config.model, plan, us, seed=0)
    optimizer = build_optimizer(model, config.optim)
    share = config.videos // us.world
    mine = slice(us.rank * share, (us.rank + 1) * share)
    trained = len(clips.length_B) - HELD_OUT * config.videos

    def loss_of(which: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        batch = clips.rows(which)
        masked = mask_batch(batch, config, draw).part(mine)
        loss_T = backward(model, vocabulary, masked, config, us)
        count_T = masked.target_BTHW.sum(dim=(0, 2, 3)).to(loss_T)
        total, count = average(torch.stack([(loss_T * count_T).sum(), count_T.sum()]), us)
        return total / count

    losses = []
    for step in range(steps):
        draw = generator_of(seed, 0, step)
        losses.append(loss_of(torch.randint(trained, (config.videos,), generator=draw), draw))
        clip_gradients(model.parameters(), config.optim.clip)
        set_learning_rate(optimizer, learning_rate(step, step / steps, config.optim))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    held = []
    for number, which in enumerate(torch.arange(trained, len(clips.length_B)).split(config.videos)):
        held.append(loss_of(which, generator_of(-1, 0, number)))
        optimizer.zero_grad(set_to_none=True)
    curve, held_out = torch.stack(losses).tolist(), torch.stack(held).mean().item()
    return {
        "loss": round(statistics.fmean(curve[-LAST:]), 4),
        "held_out_loss": round(held_out, 4),
        "first_loss": round(curve[0], 4),
        "curve": [round(statistics.fmean(curve[at : at + LAST]), 4) for at in range(0, steps, LAST)],
    }


def about(args: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    card = torch.cuda.get_device_name() if ranks.device.type == "cuda" else "CPU"
    settings = {"steps": args.steps, "batch": args.batch, "gpus": ranks.world}
    return {**settings, "date": time.strftime("%Y-%m-%d"), "card": card, "torch": torch.__version__}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown. A fast run is compared with the float32 run of the same draws; the noise is between float32 runs."""
    plain = [row for row in rows if row["case"].startswith("float32")]
    head = ("run", "draws", f"loss, last {LAST} steps", "less float32", "held-out loss", "less float32", "seconds")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        apart = ["", ""]
        if plain and row["case"] not in plain[0]["case"]:
            apart = [f"{row[key] - plain[0][key]:+.4f}" for key in ("loss", "held_out_loss")]
        cells = (row["case"], row["seed"], row["loss"], apart[0], row["held_out_loss"], apart[1], row["seconds"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    if len(plain) > 1:
        noise = [statistics.stdev(row[key] for row in plain) for key in ("loss", "held_out_loss")]
        lines.append(f"| noise: deviation over {len(plain)} draws | | {noise[0]:.4f} | | {noise[1]:.4f} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
