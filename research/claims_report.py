"""Results of `research.claims` -> research/paper_claims.md and its plots: every number from the lines of the files.

`python -m research.claims_report --results FOLDER [FOLDER ...] --out research/paper_claims.md`. A folder holds the models of
one training time. Seeds are the units: means and standard errors over them, and Welch's t-test at 95 % for differences.
What stands behind `BY_HAND` in the page stays.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumos.files import read_lines
from research.claims import ALL_RIGHT, CLAIMS, LATENCY, RUNS, SCORES, Claim, Setting
from research.small_runs import FULL, Variant

SHOWN = ("mean", "all", "count", "colour", "shape", "motion", "direction", "wholeness")
COMPARED = ("rope", "masks", "attention", "optimizer")  # claims in which the first variant is said to be the best
BY_HAND = "<!-- Written by hand from here on: claims_report keeps it. -->"
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Results:
    """What one folder holds."""

    scale: dict[str, Any]
    runs: Lines
    scores: Lines
    latency: Lines

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """ValueError for a folder without results."""
        runs, scores, latency = (read_lines(folder / name) for name in (RUNS, SCORES, LATENCY))
        if not (runs or scores or latency):
            raise ValueError(f"{folder} must hold results of research.claims, found none; run a claim first")
        scale = folder / "scale.json"
        return cls(json.loads(scale.read_text("utf-8")) if scale.exists() else {}, runs, scores, latency)

    def of(self, claim: Claim) -> Lines:
        """The scores of a claim's models and settings; none as long as there is nothing to compare: every variant once, and
        several settings if there is one variant alone."""
        wanted = {(variant.name, setting.label) for variant in claim.variants for setting in claim.settings}
        found = [line for line in self.scores if (line["variant"], line["label"]) in wanted]
        variants, labels = {line["variant"] for line in found}, {line["label"] for line in found}
        return found if len(variants) == len(claim.variants) and len(labels) >= min(len(claim.settings), 2) else []


def write_claims(folders: Sequence[Path], out: Path, plots: bool = False) -> None:
    """Write the page, and if asked its plots into `img` beside it. ValueError for a folder without results."""
    results = [Results.read(folder) for folder in folders]
    pictures = out.parent / "img" if plots else None
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    parts, missing = [_head(results)], []
    for name, claim in CLAIMS.items():
        measured = [each for each in results if each.of(claim)]
        if measured:
            whose = "Ours, not the paper's" if claim.ours else "The paper"
            parts.append(f"## {name}\n\n{whose}: {claim.says}.")
            parts += [_block(name, claim, each, len(measured) > 1, pictures) for each in measured]
        else:
            missing.append(name)
    latency = [line for each in results for line in each.latency]
    if latency:
        parts.append(_latency(latency[-1]))
    else:
        missing.append("latency")
    if missing:
        parts.append("## Not measured yet\n\n" + ", ".join(missing) + ".")
    _, mark, rest = (out.read_text("utf-8") if out.exists() else "").partition(BY_HAND)
    out.write_text("\n\n".join(parts) + "\n" + (f"\n{mark}{rest}" if mark else ""), "utf-8")


def verdict(better: Sequence[float], worse: Sequence[float]) -> str:
    """Of one value per seed: "confirmed" if the first are higher in Welch's t-test at 95 %, "opposite", or "not decided".

    Seeds are the units: videos of one model are not independent of each other, so pooling them would claim too much.
    """
    if min(len(better), len(worse)) < 2:
        return "one seed tells nothing"
    from scipy.stats import ttest_ind_from_stats

    (one, one_error), (other, other_error) = _mean_and_error(better), _mean_and_error(worse)
    if max(one_error, other_error) == 0:
        return "not decided" if one == other else "confirmed" if one > other else "opposite"
    n, m = len(better), len(worse)
    test = ttest_ind_from_stats(one, one_error * n**0.5, n, other, other_error * m**0.5, m, equal_var=False)
    return "not decided" if test.pvalue > 0.05 else "confirmed" if test.statistic > 0 else "opposite"


def shares(scores: Lines, variant: Variant, setting: Setting) -> dict[str, list[float]]:
    """Attribute -> percent right of every seed; "mean": of what was told (number, colour, shape, motion, direction)."""
    found: dict[str, list[float]] = {}
    for line in scores:
        if (line["variant"], line["label"]) == (variant.name, setting.label):
            right = {name: 100 * marks[0] / marks[2] for name, marks in line["marks"].items()}
            told = [right[name] for name in ALL_RIGHT if name in right]
            for name, value in {"mean": sum(told) / len(told), **right}.items():
                found.setdefault(name, []).append(value)
    return found


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error (0 for one seed)."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1) / len(values))


def _head(results: Sequence[Results]) -> str:
    scale, times = results[0].scale, " or ".join(f"{each.scale.get('seconds', 0):g}" for each in results)
    model, models = scale.get("model", {}), sum(len(each.runs) for each in results)
    toy = " **These are toy sizes, which only show that everything runs.**" if scale.get("clips", 99) < 99 else ""
    return f"""# The paper's claims, tested

Made by `python -m research.claims_report`; every number comes from the results of the commands shown.{toy}

The work is the same for all: one plain object of the shapes world, {scale.get("frames")} frames, plainest captions; a model of
{model.get("layers")} layers and width {model.get("width")}, {times} seconds of training each (compilation and
validation left out) on {scale.get("clips")} clips, batch {scale.get("batch")}; {scale.get("prompts")} prompts, half of them with
colour and shape never shown together. {models} models were trained. "all" is the share of videos in which number, colour,
shape, motion and direction are all as told, "mean" the mean of their five shares, with its standard error over seeds. Seeds are
the units of every verdict: "confirmed" and "opposite" mean a difference in Welch's t-test at 95 %, "not decided" a smaller one,
which more seeds could decide; in brackets are the single attributes that differ by as much (one in twenty would by chance)."""


def _block(name: str, claim: Claim, results: Results, is_one_of_several: bool, pictures: Path | None) -> str:
    """Command, comparison, table and plot of the models of one training time."""
    scores, seconds = results.of(claim), results.scale.get("seconds", FULL.seconds)
    by_variant = [{line["seed"] for line in scores if line["variant"] == variant.name} for variant in claim.variants]
    usual, seeds = seconds == FULL.seconds, len(set.intersection(*by_variant)) or 1
    folder, time = ("runs/claims", "") if usual else ("runs/claims_longer", f" --seconds {seconds:g}")
    parts = [f"### After {seconds:g} seconds of training"] if is_one_of_several else []
    parts.append(f"    python -m research.claims {name} --out {folder} --seeds {seeds}{time}")
    if name in COMPARED:
        parts.append(_compared(claim, results.runs, scores))
    if name == "history":
        parts.append(_collapse(claim, scores))
    parts.append(_table(claim, scores))
    file = f"claim_{name}{'' if usual else f'_{seconds:g}s'}.png"
    if pictures:
        _plot(name, claim, results.runs, scores, pictures / file)
    parts.append(f"![{name}](img/{file})")
    return "\n\n".join(parts)


def _compared(claim: Claim, runs: Lines, scores: Lines) -> str:
    """A line for each comparison with the first variant."""
    lines = ["| against | validation loss | frame by frame, own mask | verdict |", "| --- | --- | --- | --- |"]
    base = claim.variants[0]
    base_losses = [final["loss"] for final in _finals(runs, base)]
    for variant in claim.variants:
        finals = _finals(runs, variant)
        if not finals:
            continue
        losses = [final["loss"] for final in finals]
        frames = [sum(values) / len(values) for values in zip(*(final["own_frames"] for final in finals), strict=True)]
        said = [f"loss: {verdict(losses, base_losses)}"] if variant != base else []
        for setting in claim.settings if variant != base else ():
            ours, theirs = shares(scores, base, setting), shares(scores, variant, setting)
            if ours and theirs:
                said.append(f"{setting.label}: {verdict(ours['mean'], theirs['mean'])}{_apart(ours, theirs)}")
        shown = ", ".join(f"{frame:.2f}" for frame in frames)
        lines.append(f"| {variant.name} | {_mean(losses)} | {shown} | {'; '.join(said) or 'said to be best'} |")
    return "\n".join(lines)


def _apart(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> str:
    """Single attributes that differ."""
    found = {name: verdict(ours[name], theirs[name]) for name in SHOWN[1:] if name in ours and name in theirs}
    words = {"confirmed": "better", "opposite": "worse"}
    parts = [
        f"{word} {', '.join(name for name, what in found.items() if what == key)}"
        for key, word in words.items()
        if key in found.values()
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def _finals(runs: Lines, variant: Variant) -> Lines:
    """The last points of the curves of a variant's models."""
    return [line["curve"][-1] for line in runs if line["variant"] == variant.name and line["curve"]]


def _collapse(claim: Claim, scores: Lines) -> str:
    """Does hiding part of the history help, for each model?"""
    lines = ["| model | history mask 0.7 better than 0 | 0.9 better than 0.7 |", "| --- | --- | --- |"]
    for variant in claim.variants:
        none, some, most = (shares(scores, variant, Setting(f"random {ratio}")) for ratio in (0.0, 0.7, 0.9))
        if none and some and most:
            lines.append(f"| {variant.name} | {verdict(some['mean'], none['mean'])} | {verdict(most['mean'], some['mean'])} |")
    return "\n".join(lines)


def _table(claim: Claim, scores: Lines) -> str:
    lines = ["| model | sampled with | seeds | " + " | ".join(SHOWN) + " |", "| --- " * (3 + len(SHOWN)) + "|"]
    for variant in claim.variants:
        for setting in claim.settings:
            found = shares(scores, variant, setting)
            if found:
                means = {name: _mean_and_error(values) for name, values in found.items()}
                cells = [f"{means[name][0]:.1f}" if name in means else "" for name in SHOWN]
                seeds = len(found["mean"])
                cells[0] += f" +- {means['mean'][1]:.1f}" if seeds > 1 else ""
                lines.append(f"| {variant.name} | {setting.label} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _latency(line: dict[str, Any]) -> str:
    parts = [
        "## latency\n\nThe paper: 960 s by next-token prediction, 383 s by mask prediction without a cache, 77.8 s with one.",
        "    python -m research.claims latency --out runs/claims",
        f"Measured on {line['device']}:",
    ]
    for model, ways in line.items():
        if isinstance(ways, dict):
            rows = [
                f"| {way} | {found['seconds']:.3g} | {found['passes']} | {found['measured']} |" for way, found in ways.items()
            ]
            head = f"| {model} | seconds a video | passes | of them measured |\n| --- | --- | --- | --- |\n"
            parts.append(head + "\n".join(rows))
    return "\n\n".join(parts)


def _mean(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.3f} (one seed)"
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.3f} +- {spread:.3f} ({len(values)} seeds)"


def _plot(name: str, claim: Claim, runs: Lines, scores: Lines, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawings = {"masks": _plot_frames, "history": _plot_history, "sampling": _plot_grid}
    drawing = drawings.get(name, _plot_losses if name in COMPARED else _plot_bars)
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    drawing(axes, claim, runs, scores)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _plot_losses(axes: Any, claim: Claim, runs: Lines, _: Lines) -> None:
    for number, variant in enumerate(claim.variants):
        for line in (line for line in runs if line["variant"] == variant.name and line["curve"]):
            points = [(point["seconds"], point["loss"]) for point in line["curve"]]
            axes.plot(*zip(*points, strict=True), color=f"C{number}", alpha=0.8)
        axes.plot([], [], color=f"C{number}", label=variant.name)
    axes.set(xlabel="seconds of training", ylabel="validation loss, nats a masked code (tube mask)")
    axes.legend()


def _plot_frames(axes: Any, claim: Claim, runs: Lines, _: Lines) -> None:
    for number, variant in enumerate(claim.variants):
        finals = [line["curve"][-1]["own_frames"] for line in runs if line["variant"] == variant.name and line["curve"]]
        if finals:
            frames = [sum(values) / len(values) for values in zip(*finals, strict=True)]
            axes.plot(range(1, len(frames) + 1), frames, "o-", color=f"C{number}", label=variant.name)
    axes.set(xlabel="latent frame", ylabel="loss under the training mask, nats", title="are later frames too easy?")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()


def _plot_history(axes: Any, claim: Claim, _: Lines, scores: Lines) -> None:
    for number, variant in enumerate(claim.variants):
        _line_of(axes, claim, scores, variant, re.compile(r"random (\S+)$"), f"C{number}", "o-", variant.name)
        for kind, style in (("random", "x--"), ("periodic", "s:")):
            name = f"{variant.name}, {kind}, no noise"
            _line_of(axes, claim, scores, variant, re.compile(rf"{kind} (\S+), no noise$"), f"C{number}", style, name)
    axes.set(xlabel="history mask ratio", ylabel="mean of five attributes right, %", ylim=(0, None))
    axes.legend(fontsize=8)


def _line_of(
    axes: Any, claim: Claim, scores: Lines, variant: Variant, label: "re.Pattern[str]", colour: str, style: str, name: str
) -> None:
    points = []
    for setting in claim.settings:
        found, marks = label.match(setting.label), shares(scores, variant, setting)
        if found and marks:
            points.append((float(found[1]), *_mean_and_error(marks["mean"])))
    if points:
        x, y, error = zip(*points, strict=True)
        axes.errorbar(x, y, error, fmt=style, color=colour, label=name, capsize=2, alpha=0.8)


def _plot_grid(axes: Any, claim: Claim, _: Lines, scores: Lines) -> None:
    steps = list(dict.fromkeys(setting.changes["steps"] for setting in claim.settings))
    guidances = list(dict.fromkeys(setting.changes["guidance"] for setting in claim.settings))
    table = [[math.nan] * len(guidances) for _ in steps]
    for setting in claim.settings:
        marks = shares(scores, claim.variants[0], setting)
        if marks:
            row, column = steps.index(setting.changes["steps"]), guidances.index(setting.changes["guidance"])
            table[row][column] = _mean_and_error(marks["mean"])[0]
            bright = "black" if table[row][column] > 60 else "white"
            axes.text(column, row, f"{table[row][column]:.0f}", ha="center", va="center", color=bright)
    axes.imshow(table, vmin=0, vmax=100, cmap="viridis")
    axes.set(xlabel="guidance", ylabel="steps a frame", title="mean of five attributes right, %")
    axes.set_xticks(range(len(guidances)), guidances)
    axes.set_yticks(range(len(steps)), steps)


def _plot_bars(axes: Any, claim: Claim, _: Lines, scores: Lines) -> None:
    bars = [(setting.label, shares(scores, variant, setting)) for variant in claim.variants for setting in claim.settings]
    for number, (_label, marks) in enumerate(bars):
        if marks:
            mean, error = _mean_and_error(marks["mean"])
            axes.bar(number, mean, yerr=error, color="C0", capsize=3)
    axes.set_xticks(range(len(bars)), [label for label, _ in bars], rotation=20, ha="right")
    axes.set(ylabel="mean of five attributes right, %")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, nargs="+", required=True, help="--out folders of research.claims, one a training time"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("research/paper_claims.md"), help="page to write (default: research/paper_claims.md)"
    )
    parser.add_argument("--plots", action="store_true", help="draw its plots, too (needs pip install 'lumos[research]')")
    args = parser.parse_args(words)
    try:
        write_claims(args.results, args.out, args.plots)
    except ModuleNotFoundError as error:
        sys.exit(f"claims_report: plots need the package {error.name}, which is missing; run pip install 'lumos[research]'")
    except (ValueError, OSError) as error:
        sys.exit(f"claims_report: {error}")
    print(args.out)


if __name__ == "__main__":
    main()
