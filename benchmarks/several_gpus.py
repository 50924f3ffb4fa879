"""How much faster several cards make one video: the published shapes with random weights, one card against all of them.

    torchrun --nproc-per-node 4 benchmarks/several_gpus.py --max-seconds 220 --out several_gpus.jsonl
    torchrun --nproc-per-node 2 benchmarks/several_gpus.py                     (without cards: toy sizes, to rehearse)

Rank 0 measures one card while the others wait; then all of them divide every frame (docs/performance.md, "One video on several
GPUs"), with CUDA graphs as `lumos generate` does, and in a second round without, to be profiled. Few steps are run and their
difference multiplied. Every measurement is a line of --out at once, and every case a row of a table, which is printed whole at
the end, and also when the time is up, after which nothing is left running.
"""

import argparse
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench import (
    CELLS,
    PROMPT_IDS,
    TOY_VOCABULARY,
    TOYS,
    Bench,
    Cell,
    Variant,
    frames_of,
    make_model,
    make_video,
    profile_steps,
    spec_of,
)
from torch import Tensor

from lumos.diffusion.compute import Compute, prepare_model
from lumos.diffusion.frame_model import FrameModel
from lumos.diffusion.sampler import SamplerConfig
from lumos.media.video import write_video
from lumos.model.attention import fastest
from lumos.model.quantise import Precision
from lumos.model.transformer import Transformer
from lumos.ranks import Ranks, agree, divide, finish, gather, start
from lumos.sequence.vocabulary import LUMOS, Vocabulary
from lumos.tokenizer.cosmos import CosmosConfig
from lumos.tokenizer.model import VideoTokenizer

WAYS = ALONE, GRAPHS, DIVIDED = "1 card", "divided, CUDA graphs", "divided, no graphs"
# Steps that are run. Capturing a graph keeps the host busy, and a few replays would pass meanwhile as if they took no time.
FEW, MORE = {ALONE: 2, DIVIDED: 2, GRAPHS: 10}, {ALONE: 5, DIVIDED: 5, GRAPHS: 20}
ROUNDS = {(ALONE, GRAPHS): 30.0, (DIVIDED,): 15.0}  # ways, and seconds that another case may take


@dataclass(frozen=True)
class Case:
    """One row of the table. goal: seconds wanted of four cards."""

    cell: str
    precision: Precision
    steps: int
    visible: bool
    goal: float
    first: bool = False  # the first frame on the disk instead of a whole video

    @property
    def name(self) -> str:
        what = "first frame" if self.first else "video"
        return f"{self.cell} {self.precision}, {self.steps} steps{', visible history' * self.visible}, {what}"


CASES = (  # of one model side by side, quantised ones last, as the weights are changed in place
    Case("1b-256p", "plain", 12, True, 0.25, first=True),
    Case("1b-384p", "plain", 50, False, 8.0),
    Case("1b-384p", "fp8", 50, False, 7.2),
    Case("3b-384p", "plain", 12, True, 3.6),
    Case("3b-384p", "plain", 50, False, 16.5),
    Case("3b-384p", "fp8", 50, False, 14.5),
)


class Comparison:
    """The ranks, their model, and what was found."""

    def __init__(self, ranks: Ranks, bench: Bench, toy: bool, cases: Sequence[Case]) -> None:
        self.ranks, self.bench, self.toy, self.cases = ranks, bench, toy, cases
        self.vocabulary: Vocabulary = TOY_VOCABULARY if toy else LUMOS
        self.found: dict[Case, dict[str, float]] = {case: {} for case in cases}
        tokenizer = VideoTokenizer(CosmosConfig(channels=8, blocks=1) if toy else CosmosConfig())
        tokenizer.initialise(torch.Generator().manual_seed(0))
        self.tokenizer = tokenizer.to(ranks.device).eval()

    def keep(self, **line: Any) -> None:
        if self.ranks.is_main:
            self.bench.keep(**line)

    def run(self) -> None:
        """Every case by some ways, then by the others."""
        model, made, precision = None, None, None
        for (ways, seconds), case in product(ROUNDS.items(), self.cases):
            [missing] = agree((seconds - self.bench.left(),), self.ranks)
            if missing > 0:
                self.keep(what="skipped", case=case.name, ways=ways)
                continue
            cell = next(iter(TOYS.values())) if self.toy else CELLS[case.cell]
            if made != case.cell[:2] or precision not in ("plain", case.precision):
                model = None
                self.bench.free()
                torch.compiler.reset()  # there is a limit to how often a function is compiled
                model, made, precision = make_model(cell.model, self.ranks.device, torch.bfloat16), case.cell[:2], None
            assert model is not None
            if precision != case.precision:
                prepare_model(model, Compute(precision=case.precision, compile=True), self.ranks.device)
                precision = case.precision
            self.compare(case, cell, model, ways if self.ranks.world > 1 else [way for way in ways if way == ALONE])
            if self.ranks.is_main:
                print(self.row(case), flush=True)

    def compare(self, case: Case, cell: Cell, model: Transformer, ways: Sequence[str]) -> None:
        for way in ways:
            compute = Compute(compile=True, graphs=way != DIVIDED, divided=way != ALONE)
            variant = Variant(case.name, case.steps, compute, only_visible=case.visible)
            gather(None)  # nobody begins before the others are there
            if way == ALONE and not self.ranks.is_main:
                continue
            try:
                if case.first:
                    seconds, cold = self.first_frame(cell, model, variant)
                else:
                    seconds, cold = self.video(cell, model, variant, FEW[way], MORE[way])
            except RuntimeError as error:
                self.keep(what="failed", case=case.name, way=way, error=f"{type(error).__name__}: {error}"[:400])
                continue
            self.found[case][way] = seconds
            self.keep(what="case", case=case.name, way=way, seconds=round(seconds, 3), cold_seconds=round(cold, 1))
            if way == DIVIDED and case.steps == 50:
                self.profile(cell, model, variant)
                self.difference(case, cell, model)

    def video(self, cell: Cell, model: Transformer, variant: Variant, least: int, most: int) -> tuple[float, float]:
        settings = SamplerConfig(steps=variant.steps, guidance=15.0, only_visible=variant.only_visible)

        def run(steps: int) -> Tensor:
            return make_video(model, cell, self.vocabulary, replace(settings, steps=steps), variant)

        cold, few, more = (self.bench.seconds(lambda steps=steps: run(steps)) for steps in (least, least, most))
        return few + (more - few) * (variant.steps - least) / (most - least), cold

    def first_frame(self, cell: Cell, model: Transformer, variant: Variant) -> tuple[float, float]:
        """From the ids of a prompt to a picture on the disk; the middle of five after two that warm up."""
        settings = SamplerConfig(steps=variant.steps, guidance=15.0, only_visible=variant.only_visible)
        grid = spec_of(cell).grid
        with TemporaryDirectory() as folder:

            def run() -> None:
                frames: Iterator[Tensor] = frames_of(model, cell, self.vocabulary, settings, variant)
                codes_BHW = next(frames).unflatten(1, (grid.rows, grid.columns)) % self.tokenizer.codebook_size
                pixels_BCFHW = self.tokenizer.decode_next(codes_BHW, self.tokenizer.start_stream()).float().clamp(-1, 1).cpu()
                if self.ranks.is_main:
                    write_video(Path(folder) / "x.png", pixels_BCFHW[0], 12, overwrite=True)

            seconds = [self.bench.seconds(run) for _ in range(7)]
        return sorted(seconds[2:])[2], seconds[0]

    def profile(self, cell: Cell, model: Transformer, variant: Variant) -> None:
        """Where the time of a step goes, of rank 0; all must take part."""
        with nullcontext() if self.ranks.is_main else redirect_stderr(StringIO()):
            profile_steps(self.bench, cell, self.vocabulary, model, variant)

    def difference(self, case: Case, cell: Cell, model: Transformer) -> None:
        """How far the hidden states of a pass over a masked frame are from those of one card; 0 is bitwise equal."""
        hidden = []
        for divided in (True, False):
            if divided or self.ranks.is_main:
                compute = Compute(graphs=False, divided=divided)
                made = FrameModel(model, self.vocabulary, spec_of(cell), [PROMPT_IDS], [0], SamplerConfig(), compute, True)
                with fastest(self.ranks.device):
                    places = made.slot_N.expand(len(made.starts), -1)
                    hidden.append(made._pass(made._rotation(0), len(made.starts))(made.blank_1L, places).float())
        if self.ranks.is_main:
            self.keep(what="difference", case=case.name, relative=float((hidden[0] - hidden[1]).norm() / hidden[1].norm()))

    def exchange(self) -> None:
        """Gathering keys and values of a layer of 3B at 672x384, and hidden states: milliseconds and bytes that reach a rank."""
        for name, channels in (("keys and values", 2048), ("hidden states", 3072)):
            ids = divide(4084)
            part = torch.zeros(2, -(-ids.count // ids.world), channels, dtype=torch.bfloat16, device=self.ranks.device)
            seconds = self.bench.repeat(lambda ids=ids, part=part: ids.whole(part, 1), 20)
            came = part.nbytes * (ids.world - 1)
            self.keep(what="gather", of=name, ms=round(seconds * 1e3, 3), gigabytes_a_second=round(came / seconds / 1e9, 1))

    def row(self, case: Case) -> str:
        alone, *several = (self.found[case].get(way, float("nan")) for way in WAYS)
        best = min([seconds for seconds in several if seconds == seconds], default=float("nan"))
        return f"| {case.name} | {' | '.join(f'{seconds:.2f}' for seconds in (alone, *several, alone / best))} | {case.goal} |"

    def table(self) -> str:
        lines = [f"| seconds | {' | '.join(WAYS)} | times | wanted of 4 |", "| --- " * 6 + "|"]
        return "\n".join([*lines, *map(self.row, self.cases), f"divided among {self.ranks.world}"])


def main() -> None:
    parser = argparse.ArgumentParser(description="One video on several cards, at the published shapes.")
    parser.add_argument("--max-seconds", type=float, default=220.0, help="start nothing that may end later (default: 220)")
    parser.add_argument("--out", type=Path, default=None, help="file that gets every measurement as a JSON line")
    parser.add_argument("--cases", default="", help="only cases with this in their name; none of that name: the exchange alone")
    args = parser.parse_args()
    cases = [case for case in CASES if args.cases in case.name]
    ranks = start(dividing=True)
    toy = ranks.device.type == "cpu"
    bench = Bench(ranks.device, args.max_seconds, args.out if ranks.is_main else None, MORE[DIVIDED])
    comparison = Comparison(ranks, bench, toy, cases)

    def give_up() -> None:
        if ranks.is_main:
            print(comparison.table(), "\nthe time is up", flush=True)
        os._exit(1)

    timer = threading.Timer(args.max_seconds + 15, give_up)
    timer.daemon = True
    timer.start()
    name = torch.cuda.get_device_name() if not toy else "cpu"
    comparison.keep(what="machine", cards=ranks.world, name=name, torch=torch.__version__)
    with torch.inference_mode():
        comparison.exchange()
        comparison.run()
    if ranks.is_main:
        print(comparison.table(), flush=True)
    finish(ranks)
    sys.stderr.flush()
    os._exit(0)  # no thread that still waits may turn a good end into a bad one


if __name__ == "__main__":
    main()
