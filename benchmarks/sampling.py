"""How fast sampling is at the published sizes, beside the released code: one table, and where the time goes.

    python benchmarks/sampling.py --max-seconds 300 --out sampling.jsonl     (one CUDA card; without one, toy sizes on the CPU)
    python benchmarks/sampling.py --sessions 1,2,4    (nothing but so many sessions of the model in the package)

Weights are random, made on the device: speed does not depend on them. 24 frames are 7 latent frames; guidance is on; a run that
warms up comes first and is reported as the cold start; decoding is timed apart. Every measurement is a line of --out at once.
The engine is that of `lumos generate` (diffusion/sampler.py); the matrix-product peak is measured in the same process.
"""

import argparse
import typing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import (
    CELLS,
    GIB,
    PROMPT,
    PROMPT_IDS,
    PROMPTS,
    TOY_VOCABULARY,
    TOYS,
    Bench,
    Cell,
    Variant,
    make_model,
    make_video,
    profile_steps,
    spec_of,
    variants,
)
from torch import Tensor

from lumos.config import PACKAGED
from lumos.diffusion.compute import Compute, prepare_model
from lumos.diffusion.cost import generation_cost, matrix_rate
from lumos.diffusion.frame_model import FrameModel
from lumos.diffusion.sampler import SamplerConfig
from lumos.generate import Generator
from lumos.model.quantise import Precision, multiply, quantise, to_fp8
from lumos.model.transformer import Transformer
from lumos.sequence.vocabulary import LUMOS, Vocabulary
from lumos.session import Session, make_next
from lumos.tokenizer.cosmos import CosmosConfig
from lumos.tokenizer.model import VideoTokenizer


def measure(bench: Bench, cell: Cell, vocabulary: Vocabulary, model: Transformer, variant: Variant, rate: float) -> None:
    """One variant: cold start, then a video. With fewer measured steps than the video's, the difference is multiplied."""
    settings = SamplerConfig(steps=variant.steps, guidance=15.0, only_visible=variant.only_visible)

    def run(steps: int) -> Tensor:
        with torch.compiler.set_stance("force_eager" if variant.eager else "default"):
            return make_video(model, cell, vocabulary, replace(settings, steps=steps), variant)

    cold = bench.seconds(lambda: run(2))
    warm = bench.seconds(lambda: run(2))
    measured = min(variant.steps, bench.measured)
    with bench.peak() as peak:
        seconds = bench.seconds(lambda: run(measured))
    whole = seconds if measured == variant.steps else warm + (seconds - warm) * (variant.steps - 2) / max(1, measured - 2)
    item = model.embedding.dtype.itemsize
    counted = generation_cost(model.config, spec_of(cell), 0, PROMPT + 2, vocabulary.codes, 1, item, settings)
    bench.keep(
        what="video",
        cell=cell.name,
        variant=variant.name,
        steps=variant.steps,
        steps_measured=measured,
        seconds=round(whole, 3),
        seconds_a_latent_frame=round(whole / 7, 3),
        peak_gib=peak["gib"],
        cold_seconds=round(cold, 2),
        pflop=round(counted.operations / 1e15, 3),
        tflops=round(counted.operations / whole / 1e12, 1),
        share_of_bf16_peak=round(counted.operations / whole / rate, 3),
        estimated_gib=round(counted.bytes / GIB, 2),
    )


def card(bench: Bench, dtype: torch.dtype) -> float:
    """What the device can do: the bf16 matrix-product peak, returned; FP8; attention of one frame over four."""
    side = 8192 if bench.cuda else 512
    rate = matrix_rate(bench.device, dtype, side)
    line = {"bf16_tflops": round(rate / 1e12, 1)}
    x, weight = torch.randn(2, side, side, device=bench.device).to(dtype)
    eight = to_fp8(weight)
    line["fp8_with_quantising_tflops"] = round(2 * side**3 / bench.repeat(lambda: multiply(x, eight), 5) / 1e12, 1)
    name = torch.cuda.get_device_name(bench.device) if bench.cuda else "cpu"
    bench.keep(what="card", name=name, torch=torch.__version__, **line)
    return rate


def precision_error(bench: Bench, cell: Cell, vocabulary: Vocabulary, dtype: torch.dtype) -> None:
    """How far a pass over an all-masked frame is from bf16: relative error of the logits, agreement of the best code."""
    logits: dict[str, Tensor] = {}
    for precision in typing.get_args(Precision):
        model = make_model(cell.model, bench.device, dtype)
        quantise(model, precision)
        made = FrameModel(model, vocabulary, spec_of(cell), [PROMPT_IDS], [0], SamplerConfig(steps=2), Compute(compile=False))
        hidden = made._pass(made._rotation(0), len(made.starts))(made.template_1N, made.slot_N[:256].expand(len(made.starts), -1))
        logits[precision] = multiply(hidden, made.heads_VD[0]).float()
        del model, made
        bench.free()
    for precision in ("fp8", "int8"):
        error = (logits[precision] - logits["plain"]).norm() / logits["plain"].norm()
        agree = (logits[precision].argmax(-1) == logits["plain"].argmax(-1)).float().mean()
        bench.keep(
            what="error",
            cell=cell.name,
            precision=precision,
            relative=round(float(error), 5),
            best_code_agrees=round(float(agree), 4),
        )


def decoding(bench: Bench, sizes: list[tuple[int, int]], toy: bool) -> None:
    """The Cosmos tokenizer's streaming decode of 7 latent frames, float32 as it is loaded, and under bf16 autocast."""
    tokenizer = VideoTokenizer(CosmosConfig(channels=8, blocks=1) if toy else CosmosConfig()).to(bench.device).eval()
    tokenizer.initialise(torch.Generator(bench.device).manual_seed(0))
    for width, height in sizes:
        codes_BTHW = torch.randint(0, 64_000, (1, 7, height // 8, width // 8), device=bench.device)

        def stream(codes_BTHW: Tensor = codes_BTHW) -> None:
            state = tokenizer.start_stream()
            for codes_BHW in codes_BTHW.unbind(1):
                tokenizer.decode_next(codes_BHW, state)

        for name, low in (("float32", False), ("bf16 autocast", True)):
            with bench.peak() as peak, torch.autocast(bench.device.type, torch.bfloat16, enabled=low):
                seconds = bench.repeat(stream, 2)
            bench.keep(what="decode", size=f"{width}x{height}", precision=name, seconds=round(seconds, 3), peak_gib=peak["gib"])


def packaged(bench: Bench, batches: list[int]) -> None:
    """The model in the package: first frame of one video, and decoded frames a second in a batch, everything included."""
    rehearsal: dict[str, Any] = {} if bench.cuda else {"steps": 1, "first": 1.0}
    frames = None if bench.cuda else 5
    for compiled, graphs in ((True, True), (False, True), (False, False)) if bench.cuda else ((False, False),):
        generator = Generator.from_folder(PACKAGED, str(bench.device), Compute(compile=compiled, graphs=graphs))
        sampler = replace(generator.config.sampler, **rehearsal)

        def first(generator: Generator = generator, sampler: SamplerConfig = sampler) -> None:
            next(generator.stream(PROMPTS[0], frames, sampler=sampler))

        first()  # warms up
        times = sorted(bench.seconds(first) for _ in range(9 if bench.cuda else 1))
        bench.keep(
            what="first frame",
            model=PACKAGED,
            compiled=compiled,
            graphs=graphs,
            steps=sampler.steps,
            first=sampler.first,
            milliseconds=round(times[len(times) // 2] * 1e3, 1),
        )
        for batch in batches:
            texts = [PROMPTS[row % len(PROMPTS)] for row in range(batch)]

            def many(generator: Generator = generator, texts: list[str] = texts, sampler: SamplerConfig = sampler) -> None:
                generator(texts, frames, seed=list(range(len(texts))), sampler=sampler)

            with bench.peak() as peak:
                seconds = bench.repeat(many, 1)
            made = batch * (frames or generator.config.video.frames)
            bench.keep(
                what="batch",
                model=PACKAGED,
                compiled=compiled,
                graphs=graphs,
                videos=batch,
                seconds=round(seconds, 2),
                frames_a_second=round(made / seconds, 1),
                peak_gib=peak["gib"],
            )


def side_by_side(bench: Bench, count: int, turns: int) -> None:
    """Decoded frames a second of all of `count` sessions, made one after another and in the same passes, in alternation."""
    generator = Generator.from_folder(PACKAGED, str(bench.device))
    some = [generator.session(PROMPTS[number % len(PROMPTS)], seed=number) for number in range(count)]
    ways = {"one after another": [[session] for session in some], "together": [some]}
    rates: dict[str, list[float]] = {way: [] for way in ways}

    def make(batches: list[list[Session]]) -> None:
        for batch in batches:
            make_next(batch)
            for session in batch:
                next(session)

    for _ in range(generator.config.video.window):  # from then on every latent frame sees as many
        make(ways["together"])
    for turn in range(turns):
        for way in sorted(ways, reverse=turn % 2 == 1):
            rates[way].append(round(4 * count / bench.seconds(partial(make, ways[way])), 2))
    bench.keep(what="sessions", sessions=count, threads=torch.get_num_threads(), frames_a_second=rates)


def run_cell(
    bench: Bench, cell: Cell, vocabulary: Vocabulary, rate: float, chosen: list[Variant], first: bool, dtype: torch.dtype
) -> None:
    torch.compiler.reset()  # a size compiles anew, and there is a limit to how often
    model, precision = make_model(cell.model, bench.device, dtype), "plain"
    for variant in chosen:
        if not (first or variant.every_cell):
            continue
        if bench.left() < 10:
            bench.keep(what="skipped", cell=cell.name, variant=variant.name, why="the budget is spent")
            continue
        try:
            if variant.compute.precision != precision:
                if precision != "plain":  # already quantised in another way
                    del model
                    bench.free()
                    model = make_model(cell.model, bench.device, dtype)
                precision = variant.compute.precision
                prepare_model(model, replace(variant.compute, compile=not variant.eager), bench.device)
            elif variant is chosen[0]:
                prepare_model(model, variant.compute, bench.device)
            measure(bench, cell, vocabulary, model, variant, rate)
            if variant.name.startswith("exact"):
                profile_steps(bench, cell, vocabulary, model, variant)
        except (RuntimeError, NotImplementedError) as error:  # one variant's failure costs no other's number
            bench.keep(what="failed", cell=cell.name, variant=variant.name, error=f"{type(error).__name__}: {error}"[:400])
        bench.free()
    del model
    bench.free()


def table(bench: Bench, cells: list[Cell]) -> str:
    """The goals beside what was measured; `~` where steps were multiplied."""
    found = {(line["cell"], line["variant"]): line for line in bench.lines if line["what"] == "video"}
    names = ("exact bf16", "exact fp8", "accelerated bf16", "accelerated bf16, visible history", "accelerated fp8")
    rows = ["| | released (measured before) | " + " | ".join(names) + " |", "| --- " * (2 + len(names)) + "|"]
    for cell in cells:
        released = f"{cell.released[0]} s, {cell.released[1]} GiB" if cell.released else "-"
        texts = []
        for name in names:
            line = found.get((cell.name, name))
            mark = "~" if line and line["steps_measured"] < line["steps"] else ""
            texts.append(
                f"{mark}{line['seconds']:.2f} s, {line['peak_gib']} GiB, {100 * line['share_of_bf16_peak']:.0f} %"
                if line
                else "-"
            )
        rows.append(
            f"| {cell.name} (goals {cell.goals[0]}, {cell.goals[1]}, {cell.goals[2]} s) | {released} | {' | '.join(texts)} |"
        )
    return "\n".join([*rows, "", "seconds a video, peak memory with weights, share of the bf16 matrix-product peak of this run"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Sampling speed at the published sizes.")
    parser.add_argument("--toy", action="store_true", help="toy sizes, to rehearse (the default without a CUDA card)")
    parser.add_argument("--cells", default=",".join(CELLS), help=f"which rows, of {', '.join(CELLS)} (default: all)")
    parser.add_argument("--max-seconds", type=float, default=300.0, help="start nothing after so many seconds (default: 300)")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps a latent frame of the exact runs (default: 50)")
    parser.add_argument("--measured-steps", type=int, default=50, help="run so many of them and multiply (default: 50, all)")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument(
        "--skip-parts", action="store_true", help="leave out packaged weights, decoding, the error of fp8 and int8"
    )
    parser.add_argument("--sessions", default="", help="measure sessions side by side alone, so many: 1,2,4")
    parser.add_argument("--out", type=Path, default=None, help="file that gets every measurement as a JSON line")
    args = parser.parse_args()
    toy = args.toy or not torch.cuda.is_available()
    device, dtype = torch.device("cpu" if toy else "cuda"), torch.bfloat16
    bench = Bench(device, args.max_seconds, args.out, 4 if toy else args.measured_steps)
    if args.sessions:
        for count in args.sessions.split(","):
            side_by_side(bench, int(count), 3 if toy else 9)
        return
    cells = list(TOYS.values()) if toy else [CELLS[name] for name in args.cells.split(",")]
    vocabulary = TOY_VOCABULARY if toy else LUMOS
    chosen = [variant for variant in variants(6 if toy else args.steps) if args.only in variant.name]
    bench.keep(what="run", steps=args.steps, measured=bench.measured, variants=[asdict(variant)["name"] for variant in chosen])
    with torch.inference_mode():
        rate = card(bench, dtype)
        if not args.skip_parts:
            packaged(bench, [1] if toy else [64, 256])
            precision_error(bench, cells[0], vocabulary, dtype)
            decoding(bench, [(cell.width, cell.height) for cell in cells if cell is cells[0] or not toy][:2], toy)
        for number, cell in enumerate(cells):
            run_cell(bench, cell, vocabulary, rate, chosen, number == 0, dtype)
    print(table(bench, cells))


if __name__ == "__main__":
    main()
