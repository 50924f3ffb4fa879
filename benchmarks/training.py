"""How fast and in how much memory models of the published sizes train: forward, backward and AdamW on random codes.

One JSON line a case and a table at the end, the most important cases first, as many as fit into --max-seconds (counted from
after the imports). Beside every peak stands what `lumos estimate` predicts.

    python benchmarks/training.py --max-seconds 230 --out training.jsonl
    torchrun --nproc-per-node 2 benchmarks/training.py --cases scaling --out training_x2.jsonl
    python benchmarks/training.py --toy
"""

import argparse
import gc
import json
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from kernels import profiled, wait
from torch import Tensor
from torch.nn.attention import SDPBackend

from lumos.data.batch import Batch
from lumos.files import add_line
from lumos.model.attention import Attend, dense, flex
from lumos.model.prefix import prefix
from lumos.model.transformer import LUMOS_1B, LUMOS_3B, ModelConfig
from lumos.model_folder import VideoConfig
from lumos.ranks import Ranks, agree, finish, start
from lumos.sequence.layout import HEADER, Grid
from lumos.sequence.vocabulary import LUMOS, Vocabulary, small_vocabulary
from lumos.training import step_cost
from lumos.training.config import TrainModelConfig
from lumos.training.learner import SpikeGuard, step_unless
from lumos.training.objective import backward, generator_of, mask_batch
from lumos.training.optim import OptimConfig, build_optimizer
from lumos.training.parallel import ParallelConfig, average_gradients, build, clip_gradients, local
from lumos.training.step_cost import Work

RELEASED = 6975  # ids/s of the released code: 1B, one 384p sample, forward and backward with checkpointing, one H200
SMALL = small_vocabulary(text_size=635, codes=4096)
TINY = ModelConfig(vocabulary=SMALL.size, layers=8, width=384, heads=6, kv_heads=2, head_width=64, ffn=1024)
TOY = ModelConfig(vocabulary=SMALL.size, layers=2, width=64, heads=2, kv_heads=1, head_width=32, ffn=96)
MODELS = {"tiny": TINY, "1b": LUMOS_1B, "3b": LUMOS_3B, "toy": TOY}
# pixels, latent frames and prompt places: 384p with 268 places is the 28,859-id sample of the released code's figure
VIDEOS = {
    "128p": VideoConfig(128, 128, 17, 8, 64, 5, 4),
    "256p": VideoConfig(256, 448, 25, 12, 268, 7, 6),
    "384p": VideoConfig(384, 672, 25, 12, 268, 7, 6),
    "toy": VideoConfig(32, 64, 9, 8, 20, 3, 2),
}


@dataclass(frozen=True)
class Case:
    """A model on `samples` videos per GPU."""

    model: str
    video: str
    samples: int
    plan: ParallelConfig
    expected: float = 15.0  # seconds on one H200, compilation included where no case before needed the same
    profile: bool = False  # one step, by part

    @property
    def name(self) -> str:
        plan = self.plan
        parts = ["profile of"] if self.profile else []
        parts += [self.model, self.video, f"x{self.samples}", plan.recompute, plan.attention]
        parts += [] if plan.compile == "static" else [f"compile={plan.compile}"]
        parts += [] if plan.shard else ["replicated"]
        return " ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", choices=("main", "scaling", "attention", "profile", "all"), default="main")
    parser.add_argument("--max-seconds", type=float, default=240.0, help="start no case that would end later")
    parser.add_argument("--steps", type=int, default=4, help="measured steps a case, after as many and two more to warm up")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--out", type=Path, help="write the JSON lines here too")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to try the script on the CPU")
    args = parser.parse_args()
    began = time.monotonic()
    ranks = start()
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64  # every case compiles the same functions for its own shapes
    rows: list[dict[str, Any]] = []
    origin = about(ranks)

    def run(name: str, expected: float, work: Callable[[], dict[str, Any]]) -> None:
        if args.only not in name:
            return
        since, failed = time.monotonic(), False
        spent = agree((since - began,), ranks)[0]
        if spent + expected > args.max_seconds:
            row: dict[str, Any] = {"case": name, "left_out": f"would end after {args.max_seconds:.0f} s"}
        else:
            try:
                row = {"case": name, **work()}
            except Exception as error:  # out of memory too: the other cases still run
                traceback.print_exc()
                row = {"case": name, "error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"}
                failed = True
            row["case_seconds"] = round(time.monotonic() - since, 1)
        clean_up(ranks.device)
        if ranks.is_main:
            rows.append({**row, **origin})
            print(json.dumps(rows[-1]), flush=True)
            if args.out:
                add_line(args.out, rows[-1])
        if failed and ranks.world > 1:  # the others may wait for this one for ever: torchrun ends them
            print("\n" + table(rows), flush=True)
            os._exit(1)

    wanted = ("main", "attention", "profile") if args.cases == "all" else (args.cases,)
    if "attention" in wanted:
        for model in ("toy",) if args.toy else ("1b", "3b"):
            run(f"attention {model}", 15, lambda model=model: measure_attention(model, ranks.device, args.toy))  # type: ignore[misc]
    for case in cases(wanted, ranks.world, args.toy):
        run(case.name, case.expected, lambda case=case: measure(case, ranks, args.steps))  # type: ignore[misc]
    if ranks.is_main:
        print("\n" + table(rows))
    finish(ranks)


def cases(wanted: tuple[str, ...], world: int, toy: bool) -> list[Case]:
    """The most important first."""
    full = ParallelConfig(shard=True, recompute="full", attention="prefix")
    off, some = replace(full, recompute="off"), replace(full, recompute="selective")
    if toy:
        slow = ParallelConfig(attention="dense")
        found = [Case("toy", "toy", 1, plan, 1) for plan in (full, off, some, replace(full, attention="dense"), slow)]
        return [*found, Case("toy", "toy", 1, off, 1, profile=True)]
    found = []
    if "main" in wanted:
        found += [
            Case("1b", "384p", 1, full, 50),
            Case("1b", "384p", 1, off),
            Case("1b", "384p", 1, some),
            Case("1b", "384p", 1, off, profile=True),
            Case("3b", "384p", 1, full, 40),
            Case("1b", "256p", 2, full, 25),
            Case("1b", "256p", 2, off),
            Case("3b", "384p", 1, off, 25),
            Case("1b", "384p", 1, replace(off, attention="flex"), 35),
            Case("3b", "384p", 1, some, 25),
            Case("1b", "384p", 1, replace(full, attention="flex")),
            Case("1b", "384p", 1, replace(full, compile="off")),
            Case("tiny", "128p", 64, ParallelConfig(attention="flex"), 30),
            Case("tiny", "128p", 64, ParallelConfig(shard=True, attention="flex"), 20),
            Case("1b", "384p", 1, replace(off, shard=False), 30),
            Case("3b", "256p", 2, full, 30),
        ]
    if "profile" in wanted:
        found += [Case(model, "384p", 1, plan, 50, profile=True) for model in ("1b", "3b") for plan in (off, full)]
    if "scaling" in wanted:
        found += [Case("1b", "384p", 1, full, 60), Case("1b", "384p", 1, off, 20), Case("3b", "384p", 1, full, 40)]
        if world > 1:
            found.append(Case("1b", "384p", 1, replace(full, replicas=world), 25))
    return found


def measure(case: Case, ranks: Ranks, steps: int) -> dict[str, Any]:
    """Whole steps of one case: time, ids a second over all GPUs, MFU, peak memory, and what was predicted."""
    model_config, video, plan = MODELS[case.model], VIDEOS[case.video], case.plan
    vocabulary = LUMOS if model_config.vocabulary == LUMOS.size else SMALL
    optim = OptimConfig(lr=1e-5, ema=0.0)
    before = torch.cuda.memory_allocated() if ranks.device.type == "cuda" else 0  # 0, unless a case before left something
    config = TrainModelConfig(model_config, video, None, optim, plan, videos=case.samples, images=1)
    model = build(model_config, plan, ranks, seed=0)
    optimizer, guard = build_optimizer(model, optim), SpikeGuard(config.spike, ranks.device)
    draw = generator_of(0, ranks.rank, 0)
    batch = random_batch(vocabulary, video, case.samples, draw, ranks.device)
    losses: list[Tensor] = []
    gradients = 0  # bytes of them, when all are made

    def step() -> None:
        nonlocal gradients
        loss_T = backward(model, vocabulary, mask_batch(batch, config, draw), config, ranks)
        if not plan.shard:
            average_gradients(model.parameters(), ranks)
        gradients = sum(local(p.grad).nbytes for p in model.parameters() if p.grad is not None)
        norm = clip_gradients(model.parameters(), optim.clip)
        step_unless(guard.check(norm), optimizer)
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss_T.mean())

    for _ in range(2):
        step()
    wait(ranks.device)
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    work = step_cost.work_of_videos(video, video.window, case.samples, vocabulary.codes, masked=0.8)
    if case.profile:
        return profiled(step, model_config, work, ranks.device)
    for _ in range(2):  # the second time counts: the first case of several processes can take a third longer in its first steps
        began = time.perf_counter()
        for _ in range(steps):
            step()
        wait(ranks.device)
        seconds = (time.perf_counter() - began) / steps

    card = step_cost.CARDS["H200"]
    ids = work.ids * work.samples * ranks.world
    achieved = sum(step_cost.flops(model_config, work)) / seconds / 1e12
    peak = torch.cuda.max_memory_allocated() if ranks.device.type == "cuda" else 0
    reserved = torch.cuda.max_memory_reserved() if ranks.device.type == "cuda" else 0
    predicted = step_cost.step_memory(model_config, work, plan, ranks.world)
    moments = sum(local(value).nbytes for state in optimizer.state.values() for value in state.values())
    weights = sum(local(parameter).nbytes for parameter in model.parameters())
    return {
        "gpus": ranks.world,
        "ids": ids,
        "seconds_a_step": round(seconds, 4),
        "ids_per_second": round(ids / seconds),
        "tflops_a_gpu": round(achieved, 1),
        "mfu": round(achieved / card.peak, 3),
        "peak_gib": round(peak / 2**30, 2),
        "before_gib": round(before / 2**30, 2),
        "reserved_gib": round(reserved / 2**30, 2),
        "moments_gib": round(moments / 2**30, 2),
        "float32_weights_gib": round(weights / 2**30, 2),
        "float32_gradients_gib": round(gradients / 2**30, 2),  # when all are made, which is seldom at the peak
        "beyond_moments_gib": round((peak - moments) / 2**30, 2),
        "beyond_optimiser_gib": round((peak - moments - weights) / 2**30, 2),  # its state: moments and float32 weights
        "predicted_gib": round(predicted.total / 2**30, 2),
        "predicted_parts_gib": {name: round(value / 2**30, 2) for name, value in vars(predicted).items()},
        "predicted_ids_per_second": round(ids / step_cost.step_seconds(model_config, work, plan, card, ranks.world)),
        "losses": [round(value, 4) for value in torch.stack(losses).tolist()],
        **asdict(plan),
    }


def random_batch(vocabulary: Vocabulary, video: VideoConfig, samples: int, draw: torch.Generator, device: torch.device) -> Batch:
    """Prompts that fill all their places, and random codes."""
    text_BS = torch.randint(vocabulary.text_size, (samples, video.slots), generator=draw)
    shape = (samples, video.window, video.height // 8, video.width // 8)
    codes_BTHW = torch.randint(vocabulary.codes, shape, generator=draw)
    return Batch(text_BS.to(device), torch.full((samples,), video.slots), codes_BTHW.to(device))


def measure_attention(model: str, device: torch.device, toy: bool) -> dict[str, Any]:
    """One layer's attention over a 384p sample, by mask and by prefixes on every kernel: TFLOP/s of what is visible."""
    config, video = MODELS[model], VIDEOS["toy" if toy else "384p"]
    grid, text = Grid(video.height // 8, video.width // 8), video.slots + HEADER
    L = text + video.window * grid.frame_length
    kind = torch.float32 if toy else torch.bfloat16
    query = torch.randn(1, L, config.heads, config.head_width, device=device, dtype=kind).transpose(1, 2).requires_grad_()
    key, value = (
        torch.randn(1, L, config.kv_heads, config.head_width, device=device, dtype=kind).transpose(1, 2).requires_grad_()
        for _ in range(2)
    )
    frame = (torch.arange(L, device=device) - text).div(grid.frame_length, rounding_mode="floor")
    block_BL = torch.where(frame < 0, torch.arange(L, device=device), text + frame)[None]
    work = Work(1, text, grid.frame_length, video.window, 0, 0)
    forward = 4.0 * work.visible * config.heads * config.head_width / 1e12

    def rates(attend: Attend) -> dict[str, float]:
        def whole() -> None:
            query.grad = key.grad = value.grad = None
            attend(query, key, value).sum().backward()

        with torch.no_grad():
            one = timed(lambda: attend(query, key, value), device)
        return {"forward": round(forward / one, 1), "forward_backward": round(3.5 * forward / timed(whole, device), 1)}

    found: dict[str, Any] = {}
    if toy:
        found["dense"] = rates(dense(block_BL, block_BL))
    else:
        found["flex"] = rates(flex(block_BL))
    by_prefix = prefix([0], text, grid.frame_length, video.window)
    found["prefix"] = rates(by_prefix)
    if not toy:
        import lumos.model.prefix as module

        usual = module.fastest
        module.fastest = lambda device: usual(device, SDPBackend.FLASH_ATTENTION)  # type: ignore[assignment]
        found["prefix_flash"] = rates(by_prefix)
        module.fastest = usual
        began = time.perf_counter()  # a prompt of another length: kernels may have to be planned anew
        for padding in range(1, 6):
            prefix([padding], text, grid.frame_length, video.window)(query, key, value).sum().backward()
        wait(device)
        found["new_prompt_length_seconds"] = round((time.perf_counter() - began) / 5, 4)
    return found


def timed(function: Callable[[], Any], device: torch.device, times: int = 5) -> float:
    """Seconds a call, after two to warm up."""
    for _ in range(2):
        function()
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        function()
    wait(device)
    return (time.perf_counter() - began) / times


def clean_up(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def about(ranks: Ranks) -> dict[str, str]:
    """When, on what, with what: so that a number can be made again."""
    card = torch.cuda.get_device_name() if ranks.device.type == "cuda" else "CPU"
    commit = os.environ.get("COMMIT", "")
    if not commit and shutil.which("git"):
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        commit = found.stdout.strip()
    return {"date": time.strftime("%Y-%m-%d"), "card": card, "torch": torch.__version__, "commit": commit}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown. `beyond`: of the peak, beyond the optimiser's state, which is moments and float32 weights."""
    head = (
        "case",
        "GPUs",
        "ids/s",
        "x released",
        "MFU",
        "s a step",
        "peak GiB",
        "predicted",
        "off by",
        "moments",
        "weights",
        "beyond",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        if "ids_per_second" not in row:
            shown = {k: row[k] for k in row if k not in ("case", "date", "card", "torch", "commit", "longest")}
            note = row.get("error") or row.get("left_out") or json.dumps(shown)
            lines.append(f"| {row['case']} | {note[:600]} |" + " |" * (len(head) - 2))
            continue
        off = f"{row['predicted_gib'] / row['peak_gib'] - 1:+.0%}" if row["peak_gib"] else ""
        speedup = f"{row['ids_per_second'] / RELEASED:.2f}" if row["case"].startswith("1b 384p") else ""
        cells = (row["case"], row["gpus"], row["ids_per_second"], speedup, row["mfu"], row["seconds_a_step"], row["peak_gib"])
        parts = (row["moments_gib"], row["float32_weights_gib"], row["beyond_optimiser_gib"])
        lines.append("| " + " | ".join(map(str, (*cells, row["predicted_gib"], off, *parts))) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
