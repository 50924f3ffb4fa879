"""`lumos estimate`: what a preset needs in memory and how fast it would train, without a GPU."""

import re
from dataclasses import dataclass, replace
from typing import Any

from lumos.cli.options import UsageError, Word, choose, report, with_settings, within

SMALL_CODES = 4096  # of the tokenizers that the shapes presets are made for
STRUCTURE = 8 + 64  # ids beside text and codes in a vocabulary of our own


@dataclass(frozen=True)
class EstimateArgs:
    """Memory and speed of a training step for every recomputation mode, by arithmetic.

    lumos estimate 3b-384p --gpus 8 --memory 80GB
    lumos estimate 1b-384p --gpus 1 --memory 24GB --set parallel.recompute=full
    """

    preset: Word[str]  # name of a configuration
    gpus: int = 1  # number of GPUs, over all hosts
    memory: str | None = None  # memory of one GPU, as 80GB (default: the card's)
    card: str = "H200"  # whose speed to reckon with: H200, H100, A100, H20
    set: tuple[str, ...] = ()  # change one setting of the preset; repeat for more; --help after the preset's name lists them
    json: bool = False  # print one JSON document as the last line of stdout


def run_estimate(args: EstimateArgs) -> None:
    from lumos.presets import MODELS
    from lumos.training import step_cost

    config = with_settings(choose("preset", args.preset, MODELS), args.set)
    card = choose("card", args.card, step_cost.CARDS)
    within(args, {"gpus": (1, 100_000)})
    config.parallel.check(args.gpus)
    gibibytes = card.memory if args.memory is None else _gibibytes(args.memory)
    model, codes = config.model, 64_000
    if not model.vocabulary:
        codes = SMALL_CODES
        model = replace(model, vocabulary=config.text_vocabulary + STRUCTURE + codes)
    plan, average = config.parallel, bool(config.optim.ema)
    steps: dict[str, Any] = {}
    for name, frames, samples in (("videos", config.video.window, config.videos), ("images", 1, config.images)):
        if config.image_every == (1 if name == "videos" else 0):
            continue  # a preset of images alone, or of videos alone
        work = step_cost.work_of_videos(config.video, frames, samples // config.accumulate, codes)
        modes = []
        for mode in step_cost.MODES:
            each = replace(plan, recompute=mode)
            need = step_cost.step_memory(model, work, each, args.gpus, average)
            speed = work.ids * work.samples / step_cost.step_seconds(model, work, each, card, args.gpus)
            operations = sum(step_cost.flops(model, work)) / (work.ids * work.samples)
            modes.append(
                {
                    "recompute": mode,
                    "fits": step_cost.fits(need, gibibytes),
                    "gib": round(need.total / 2**30, 2),
                    **{part: round(value / 2**30, 2) for part, value in vars(need).items()},
                    "ids_per_second": round(speed * args.gpus),
                    "mfu": round(operations * speed / (card.peak * 1e12), 3),
                }
            )
        steps[name] = {"samples": work.samples, "ids": work.samples * work.ids, "modes": modes}
        if not any(mode["fits"] for mode in modes):
            steps[name]["advice"] = step_cost.advice(model, work, plan, args.gpus, average, gibibytes)
    document = {"preset": args.preset, "gpus": args.gpus, "gib": gibibytes, "card": args.card, "steps": steps}
    if args.json:
        report(document, True)
    else:
        print(_printed(document))


def _gibibytes(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:Gi?B)?", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise UsageError(f"--memory must be a size in GB, got {text!r}; for example --memory 80GB")
    return float(found[1])


def _printed(document: dict[str, Any]) -> str:
    lines = [f"{document['preset']} on {document['gpus']} x {document['card']} of {document['gib']:.0f} GiB; GiB per GPU by part"]
    for name, step in document["steps"].items():
        lines += ["", f"a step of {step['samples']} {name} a GPU at a time ({step['ids']:,} ids)"]
        for cells in (list(step["modes"][0]), *(list(mode.values()) for mode in step["modes"])):
            shown = [("yes" if cell else "no") if isinstance(cell, bool) else str(cell) for cell in cells]
            lines.append(f"{shown[0]:<11}{shown[1]:<6}" + "".join(f"{cell:>15}" for cell in shown[2:]))
        if "advice" in step:
            lines.append(f"nothing fits; {step['advice']}")
    return "\n".join(lines)
