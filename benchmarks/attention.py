"""What 8-bit attention could gain: kernels on the shapes of an exact sampling step at 672x384, with guidance's two rows.

    python benchmarks/attention.py --max-seconds 90 --out attention.jsonl          (one Hopper card)

A frame's 4,084 queries see a cache of 0, 3 or 6 frames, their own and the prompt, whose padding the unconditional row skips.
cuDNN and flash in bf16, attention_8bit.py in three forms, SageAttention 1 where it can be imported: milliseconds of a layer,
TFLOP/s, and the error against float64 (norm of the difference over the norm), also over cuDNN's, for queries as a normalised
head has them and four times as large. Without a card, toy sizes by Triton's interpreter.
"""

import argparse
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from bench import CELLS, PROMPT, TOYS, Bench, spec_of
from torch import Tensor
from torch.nn.attention import SDPBackend

os.environ.setdefault("TRITON_INTERPRET", str(int(not torch.cuda.is_available())))
from attention_8bit import FORMS, KeysAndValues, Query, Tiling, attend, quantise_cache, quantise_query

from lumos.model.attention import attend_to_all, fastest
from lumos.sequence.layout import HEADER

TILINGS = (
    *(Tiling(128, 128, 8, 3, True), Tiling(64, 128, 4, 3, True), Tiling(128, 64, 4, 4, True), Tiling(128, 256, 8, 2, True)),
    *(Tiling(64, 64, 4, 4, True), Tiling(128, 64, 8, 4, True), Tiling(128, 128, 8, 3, False)),
)
TOY_TILINGS = (Tiling(32, 32, 4, 1, True), Tiling(64, 32, 4, 1, False))
BF16 = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
SHARP = 4.0  # how much larger the queries of the second error are: a power of two, so that bf16 holds them exactly
SEEN = 256  # queries of one group that the error is taken of


class Problem(NamedTuple):
    """One layer's attention to a cache, of which row 1 leaves out the first `start` slots."""

    query_BNLK: Tensor
    key_BGSK: Tensor
    value_BGSK: Tensor
    start: int

    def part(self, out_BNLK: Tensor) -> Tensor:
        return out_BNLK[:, : self.query_BNLK.shape[1] // self.key_BGSK.shape[1], :SEEN].double()

    def exact(self, sharp: float) -> Tensor:
        """What `part` of the output should be."""
        score = self.part(self.query_BNLK) @ self.key_BGSK[:, :1].double().mT * (sharp * self.query_BNLK.shape[-1] ** -0.5)
        score[1, :, :, : self.start] = -torch.inf
        return score.softmax(-1) @ self.value_BGSK[:, :1].double()


def make_problem(cell_name: str, history: int, device: torch.device) -> Problem:
    cell = CELLS.get(cell_name) or TOYS[cell_name]
    model, frame = cell.model, spec_of(cell).grid.frame_length
    draw = torch.Generator(device).manual_seed(0)

    def normal(heads: int, ids: int) -> Tensor:
        return torch.randn(2, ids, heads, model.head_width, device=device, generator=draw).bfloat16().transpose(1, 2)

    slots = PROMPT + 2 + HEADER + (history + 1) * frame
    key = normal(model.kv_heads, slots) + normal(model.kv_heads, 1)  # a bias of the key's norm, as trained ones have
    return Problem(normal(model.heads, frame), key.contiguous(), normal(model.kv_heads, slots).contiguous(), PROMPT)


def kernel_of(name: str, problem: Problem, tiling: Tiling | None) -> Callable[[float], Tensor]:
    """A kernel as a function of the queries' size. Quantising is not timed: `quantising` does it."""
    query, key, value, start = problem
    starts = [0, start]
    if tiling:
        cache = quantise_cache(key, value, FORMS[name], tiling.keys)
        ready = quantise_query(query, FORMS[name][0], tiling.queries)
        shape = torch.tensor(starts, dtype=torch.int32, device=key.device), query.shape[2], key.shape[2]
        return lambda sharp: attend(ready._replace(scale_BNL=ready.scale_BNL * sharp), cache, *shape, tiling)
    if name == "sage":
        from sageattention.core import sageattn

        # it takes the mean from the keys in place, but here they are needed again
        parts = [(row, key[row : row + 1, :, start:], value[row : row + 1, :, start:]) for row, start in enumerate(starts)]
        return lambda sharp: torch.cat([sageattn(query[row : row + 1] * sharp, k.clone(), v) for row, k, v in parts])

    def bf16(sharp: float) -> Tensor:
        with fastest(key.device, BF16[name]):
            return attend_to_all(starts)(query if sharp == 1 else query * sharp, key, value)

    return bf16


def measure(bench: Bench, cell: str, history: int, best: dict[str, Tiling]) -> None:
    """Every kernel on one problem. Our own are tried in every tiling, or in the best one if it is known."""
    problem = make_problem(cell, history, bench.device)
    truths = {sharp: problem.exact(sharp) for sharp in (1.0, SHARP)}
    operations = 2.0 * problem.query_BNLK.numel() * (2 * problem.key_BGSK.shape[2] - problem.start)
    base: list[float] = []
    for name in (*BF16, *FORMS, "sage"):
        tilings = (TILINGS if bench.cuda else TOY_TILINGS) if name in FORMS else (None,)
        found: dict[Tiling | None, float] = {}
        for tiling in [best[name]] if name in best else tilings:
            if bench.left() < 0:
                return
            line = {"cell": cell, "history": history, "kernel": name, "tiling": tiling}
            try:
                run = kernel_of(name, problem, tiling)
                found[tiling] = bench.repeat(lambda run=run: run(1.0), 20 if bench.cuda else 1)
                errors = [float((problem.part(run(s)) - truth).norm() / truth.norm()) for s, truth in truths.items()]
            except Exception as error:  # one kernel's failure costs no other's number
                bench.keep(what="failed", **line, error=f"{type(error).__name__}: {error}"[:300])
                continue
            base = base or errors
            over_bf16 = [round(error / one, 2) for error, one in zip(errors, base, strict=True)]
            tflops = round(operations / found[tiling] / 1e12, 1)
            bench.keep(what="attention", **line, ms=found[tiling] * 1e3, tflops=tflops, errors=errors, over_bf16=over_bf16)
        if name in FORMS and found:
            best[name] = min(found, key=lambda tiling: found[tiling])


def quantising(bench: Bench, cell: str) -> None:
    """What a step must quantise: a frame's queries, keys and values, by compiled kernels."""
    problem = make_problem(cell, 0, bench.device)

    def both() -> tuple[Query, KeysAndValues]:
        cache = quantise_cache(problem.key_BGSK, problem.value_BGSK, FORMS["fp8"], 128)
        return quantise_query(problem.query_BNLK, FORMS["fp8"][0], 128), cache

    seconds = bench.repeat(torch.compile(both, dynamic=False) if bench.cuda else both, 20)
    bench.keep(what="quantising", cell=cell, kernel="fp8", ms=seconds * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description="8-bit attention against bf16.")
    parser.add_argument("--max-seconds", type=float, default=90.0, help="start nothing after so many seconds (default: 90)")
    parser.add_argument("--out", type=Path, default=None, help="file that gets every measurement as a JSON line")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(device, args.max_seconds, args.out, 0)
    bench.keep(what="machine", name=torch.cuda.get_device_name() if bench.cuda else "cpu", torch=torch.__version__)
    known: dict[str, dict[str, Tiling]] = {cell: {} for cell in (("1b-384p", "3b-384p") if bench.cuda else TOYS)}
    with torch.inference_mode():
        for history, cell in product((3, 6, 0), known):  # the middle frame first, which is also the mean of all
            measure(bench, cell, history, known[cell])
        for cell in known:
            quantising(bench, cell)


if __name__ == "__main__":
    main()
