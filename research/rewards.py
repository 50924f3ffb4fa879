"""A last stage: reinforcement learning from the judge (GRPO), on the first latent frame, where most faults of the shapes begin.

    torchrun --nproc-per-node 1 -m research.rewards --out runs/rewards --seconds 225

A sampler of fixed order (halton) makes a frame's probability exact: a product over its steps, of the guided and tempered
distribution that the codes were drawn from. Each update takes a few steps of all frames, so that its gradient is unbiased.
A prompt's frames are rewarded by the share of the judge's marks that are right, above or below the mean of their group
(arXiv 2402.03300), and held near the weights that the run began with. Half of the prompts are images, half the beginnings
of videos; pairs that are held out are none of them. Writes OUT/model, curve.jsonl, curve.png, before.png and after.png.
What came of it: docs/lab/rewards.md.
"""

import argparse
import json
import random
import time
from concurrent.futures import Executor, Future
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lumos.config import PACKAGED
from lumos.diffusion.draw import guide
from lumos.diffusion.frame_model import FrameModel
from lumos.diffusion.sampler import SamplerConfig, codes_left, guidance_strengths, halton_order, sample_frame
from lumos.evaluation.judge.judge import judge
from lumos.evaluation.run import SIDE, usual_workers, worker_pool
from lumos.files import add_line
from lumos.generate import Generator
from lumos.media.pixels import to_bytes, to_float
from lumos.media.sheet import contact_sheet
from lumos.model.attention import dense
from lumos.model.transformer import Transformer
from lumos.model_folder import save_model
from lumos.ranks import Ranks, agree, average, finish, start
from lumos.sequence.layout import content_ids, content_of, pack, text_batch
from lumos.sequence.prompt_template import clock
from lumos.training.parallel import average_gradients, clip_gradients
from lumos.worlds.shapes.captions import caption
from lumos.worlds.shapes.motion import DIRECTIONS
from lumos.worlds.shapes.scene import Scene, freeze, sample_scene

MARKS = ("count", "colour", "shape", "binding", "position", "occlusion", "wholeness")  # what a caption always says
AT_START = ("still", "circling", "bouncing", *DIRECTIONS)  # motions whose first frame shows all
GROUP = 8  # frames of each prompt
PARTS = 2  # that a rollout's gradients are computed in


class Task(NamedTuple):
    """A prompt, and what its first frame shows."""

    text: str
    scene: Scene


class Rollout(NamedTuple):
    """Frames of one length of video, GROUP of each prompt side by side."""

    texts: list[list[int]]  # of every frame
    frames: int  # pixel frames, as the header says them
    codes_BN: Tensor
    rewards: list[Future[tuple[float, bool]]]


@dataclass(frozen=True)
class Policy:
    """The distribution that codes are drawn from: the generator's sampler, by any weights."""

    generator: Generator
    settings: SamplerConfig  # of the first frame

    def sample(self, tasks: list[Task], frames: int, rng: random.Random, workers: Executor) -> Rollout:
        generator = self.generator
        each = [task for task in tasks for _ in range(GROUP)]
        texts, grid = [self.ids(task, frames) for task in each], generator._grid(None, None)
        seeds, spec = [rng.getrandbits(32) for _ in each], generator._spec(grid, frames)
        with torch.inference_mode():
            model = FrameModel(generator.model, generator.config.vocabulary, spec, texts, seeds, self.settings, generator.compute)
            codes_BN = sample_frame(model, self.settings, 0, None)
            pixels_BCHW = self.pixels(codes_BN)
        rgb = to_bytes(avg_pool2d(pixels_BCHW, pixels_BCHW.shape[-1] // SIDE or 1)).cpu().numpy()
        rewards = [workers.submit(reward, task.scene, picture) for task, picture in zip(each, rgb, strict=True)]
        return Rollout(texts, frames, codes_BN.clone(), rewards)

    def ids(self, task: Task, frames: int) -> list[int]:
        video = self.generator.config.video
        return self.generator.prompts.ids(task.text, frames, video.height, video.width)

    def pixels(self, codes_BN: Tensor) -> Tensor:
        tokenizer, grid = self.generator.tokenizer, self.generator._grid(None, None)
        parts = codes_BN.unflatten(1, (1, grid.rows, grid.columns)).split(32)
        return torch.cat([tokenizer.decode(part)[:, :, 0].float() for part in parts])

    def log_probability(self, model: Transformer, rollout: Rollout, rows: slice, step: int) -> Tensor:
        """Of the codes that `step` revealed, behind those revealed before: log_BM, by the weights of `model`."""
        generator, settings = self.generator, self.settings
        vocabulary, video, grid = generator.config.vocabulary, generator.config.video, generator._grid(None, None)
        codes_BN, texts = rollout.codes_BN[rows], rollout.texts[rows]
        device, N = codes_BN.device, codes_BN.shape[1]
        masked = [N, *codes_left(N, settings.steps)]
        order_N = torch.tensor(halton_order(grid.rows, grid.columns), device=device)
        known_N = torch.zeros(N, dtype=torch.bool, device=device)
        known_N[order_N[: N - masked[step]]] = True
        asked_M = order_N[N - masked[step] : N - masked[step + 1]]
        strength = guidance_strengths(settings)[step]
        branches = 1 if strength == 1 else 2
        content = content_ids(vocabulary, codes_BN.unflatten(1, (1, grid.rows, grid.columns)))
        content[..., :-1] = torch.where(known_N.view(grid.rows, -1), content[..., :-1], vocabulary.mask)
        slots = max(len(text) for text in texts) + 2
        text_BS, length_B = text_batch(vocabulary, [*texts, *([[]] * len(texts) * (branches - 1))], slots)
        length_B, content = length_B.to(device), content.repeat(branches, 1, 1, 1)
        batch = pack(vocabulary, grid, text_BS.to(device), length_B, content, *clock(rollout.frames, video.fps))
        place_N = content_of(grid, torch.arange(batch.ids_BL.shape[1], device=device)[None], slots, 1)[0, 0, :, :-1].flatten()
        code_BM, low_head = codes_BN[:, asked_M], vocabulary.first_code
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            hidden_BLD = model(batch.ids_BL, batch.position_BL3, dense(batch.block_BL, batch.block_BL))
            hidden_RMD = hidden_BLD[:, place_N[asked_M]]
            if model.second is None:
                return self._of(model.logits(hidden_RMD, low_head, vocabulary.choices), code_BM, strength)
            low_BM, high_BM = code_BM % vocabulary.sub_codes, code_BM // vocabulary.sub_codes
            low = self._of(model.logits(hidden_RMD, low_head, vocabulary.sub_codes), low_BM, strength)
            hidden_RMD = model.second(hidden_RMD, low_BM.repeat(branches, 1))
            high_head = low_head + vocabulary.sub_codes
            return low + self._of(model.logits(hidden_RMD, high_head, vocabulary.sub_codes), high_BM, strength)

    def _of(self, logits_RMV: Tensor, code_BM: Tensor, strength: float) -> Tensor:
        if len(logits_RMV) > len(code_BM):
            conditional, unconditional = logits_RMV.chunk(2)
            logits_RMV = guide(conditional, unconditional, strength)
        log_BMV = (logits_RMV.float() / self.settings.temperature).log_softmax(dim=-1)
        return log_BMV.gather(-1, code_BM[..., None])[..., 0]


def reward(scene: Scene, rgb_CHW: np.ndarray) -> tuple[float, bool]:
    """Share of the marks that are right, and whether all are."""
    verdict = judge(scene, to_float(torch.from_numpy(rgb_CHW))[:, None])
    marks = [verdict.marks[name] is True for name in MARKS if name in verdict.marks]
    return sum(marks) / len(marks), all(marks)


def draw_tasks(rng: random.Random, wanted: int, image: bool) -> list[Task]:
    """Prompts of the training's own mixture, of images or of videos whose first frame shows everything."""
    tasks: list[Task] = []
    while len(tasks) < wanted:
        scene = sample_scene(rng)
        if image:
            scene = freeze(scene)
        elif scene.relation in ("in front of", "behind") or any(thing.motion not in AT_START for thing in scene.things):
            continue
        tasks.append(Task(caption(scene, rng, image=image), freeze(scene)))
    return sorted(tasks, key=lambda task: len(task.text.split()))  # those of equal length share calls of attention


def advantages(rewards_B: Tensor) -> Tensor:
    """Above or below the mean of a prompt's frames, in deviations; small where they hardly differ."""
    grouped = rewards_B.view(-1, GROUP)
    return ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 0.1)).flatten()


def gradients(
    policy: Policy, model: Transformer, first: Transformer, rollout: Rollout, steps: list[int], keep: float
) -> dict[str, float]:
    """Add the gradients of one rollout at some of the sampler's steps. Returns rewards, and how far the weights have gone."""
    found, far = [future.result() for future in rollout.rewards], 0.0
    rewards_B = torch.tensor([share for share, _ in found], device=rollout.codes_BN.device)
    advantage_B, size = advantages(rewards_B), -(-len(found) // PARTS)
    for step in steps:
        for row in range(0, len(found), size):
            rows = slice(row, row + size)
            log_BM = policy.log_probability(model, rollout, rows, step)
            with torch.no_grad():
                first_BM = policy.log_probability(first, rollout, rows, step)
            apart_BM = (first_BM - log_BM).square() / 2  # an estimate of the divergence
            loss = (keep * apart_BM - advantage_B[rows, None] * log_BM).sum() / (len(found) * len(steps))
            loss.backward()
            far += float(apart_BM.detach().sum()) / (len(found) * len(steps))
    return {"reward": float(rewards_B.mean()), "right": sum(right for _, right in found) / len(found), "apart": far}


def train(args: argparse.Namespace, ranks: Ranks) -> None:
    generator = Generator.from_folder(args.weights, str(ranks.device))
    grid = generator._grid(None, None)
    settings = replace(generator.config.sampler, first=args.first).for_frame(0, grid.rows * grid.columns)
    if settings.sampler != "halton":
        raise ValueError(f"weights must be sampled in halton's order, got {settings.sampler}")
    policy = Policy(generator, settings)
    model = deepcopy(generator.model).float().requires_grad_(True)
    model.make_tables(ranks.device)
    first = generator.model
    generator.model = deepcopy(first)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=0.0)
    began, made = time.monotonic(), None
    with worker_pool(usual_workers(ranks.device)) as workers:
        if ranks.is_main:
            show(policy, args.out / "before.png")
        for number in count():
            rng = random.Random(f"rewards {args.seed} {ranks.rank} {number}")
            lengths = (1, generator.config.video.frames)
            drawn = [(draw_tasks(rng, args.prompts // 2, frames == 1), frames) for frames in lengths]
            # judged while the one before is learnt from
            next_made = [policy.sample(tasks, frames, rng, workers) for tasks, frames in drawn]
            if made is not None:
                [spent] = agree((time.monotonic() - began,), ranks)
                if spent > args.seconds:
                    break
                learn(policy, model, first, made, optimizer, number, args, ranks, spent)
            made = next_made
        if ranks.is_main:
            show(policy, args.out / "after.png")
            save_model(args.out / "model", generator.config, model.state_dict(), generator.text, generator.tokenizer)


def learn(
    policy: Policy,
    model: Transformer,
    first: Transformer,
    made: list[Rollout],
    optimizer: torch.optim.Optimizer,
    number: int,
    args: argparse.Namespace,
    ranks: Ranks,
    spent: float,
) -> None:
    """One update of the weights that sample."""
    steps = random.Random(f"steps {args.seed} {number}").sample(range(policy.settings.steps), args.steps)
    told = [gradients(policy, model, first, rollout, steps, args.keep) for rollout in made]
    average_gradients(model.parameters(), ranks)
    norm = clip_gradients(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = args.lr * min(1.0, number / 10)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for mine, learnt in zip(policy.generator.model.parameters(), model.parameters(), strict=True):
            mine.copy_(learnt)
    values = torch.tensor([list(each.values()) for each in told], device=ranks.device)
    means = average(values.mean(0), ranks).tolist()
    if ranks.is_main:
        line = {"update": number, "seconds": round(spent, 1), **dict(zip(told[0], means, strict=True)), "norm": float(norm)}
        add_line(args.out / "curve.jsonl", line)
        if number % 10 == 0:
            print("  ".join(f"{name} {value:.4g}" for name, value in line.items()), flush=True)


def show(policy: Policy, file: Path) -> None:
    """First frames of 12 prompts, six seeds of each in a row: do they differ?"""
    tasks, rng = draw_tasks(random.Random("shown"), 12, image=True), random.Random("seeds")
    with worker_pool(0) as one:
        rollout = policy.sample(tasks, 1, rng, one)
        pixels = policy.pixels(rollout.codes_BN)
        right = [future.result()[0] for future in rollout.rewards]
    rows = avg_pool2d(pixels, 2).unflatten(0, (len(tasks), GROUP))[:, :6]
    words = [f"{sum(right[GROUP * n :][:GROUP]) / GROUP:.2f} {task.text}" for n, task in enumerate(tasks)]
    contact_sheet(rows.transpose(1, 2), words, columns=6).convert("RGB").save(file)


def plot(out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in (out / "curve.jsonl").read_text("utf-8").splitlines()]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.5))
    for axis, name in zip(axes, ("reward", "right", "apart"), strict=True):
        axis.plot([line["update"] for line in lines], [line[name] for line in lines])
        axis.set(title=name, xlabel="update")
    figure.tight_layout()
    figure.savefig(out / "curve.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=PACKAGED)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0, help="(default: 300)")
    parser.add_argument("--first", type=float, default=2.0, help="how many times the steps the first frame takes (default: 2)")
    parser.add_argument("--prompts", type=int, default=32, help=f"of an update on one card, {GROUP} frames each (default: 32)")
    parser.add_argument("--steps", type=int, default=2, help="of the sampler, that an update looks at (default: 2)")
    parser.add_argument("--lr", type=float, default=3e-5, help="(default: 3e-5)")
    parser.add_argument("--keep", type=float, default=0.02, help="weight of the distance from the first weights (default: 0.02)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ranks = start()
    train(args, ranks)
    if ranks.is_main:
        plot(args.out)
    finish(ranks)


if __name__ == "__main__":
    main()
