"""Marks of prompts -> scores with confidence intervals -> report.html (one file with the videos inside) and a model card."""

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from lumos.files import write_text
from lumos.generate import Generator

WORST, BEST = 12, 6  # of each class in the report
CARD = "MODEL_CARD.md"
WEAK = 0.75  # classes below this are told as limits
HEADINGS = ("", "right", "95 %", "seen pairs", "held-out pairs", "wrong", "unclear")
VERDICTS = {True: "right", False: "wrong", None: "unclear"}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: 3px 12px 3px 0; text-align: left; border-bottom: 1px solid #ddd; }
.cards { display: flex; flex-wrap: wrap; gap: 14px; } .card { width: 160px; font-size: 12px; }
.card img { width: 160px; height: 160px; border-radius: 6px; display: block; border: 3px solid transparent; }
.wrong img { border-color: #d9483b; } .unclear img { border-color: #e0a030; } .right img { border-color: #3a9d5d; }
.note { color: #666; } h2 { margin-top: 2em; }
"""


@dataclass(frozen=True)
class Result:
    """How one prompt came out: a mark (True, False, None for unclear) for each of its classes, and for all attributes."""

    id: str
    task: str
    split: str
    text: str
    classes: dict[str, bool | None]
    marks: dict[str, bool | None]
    notes: dict[str, str]
    file: str

    @property
    def faults(self) -> float:
        """Share of its classes that are not right, unclear ones for half: what is worst comes first."""
        return sum(0.0 if mark else 0.5 if mark is None else 1.0 for mark in self.classes.values()) / len(self.classes)


def wilson(right: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share."""
    interval = binomtest(right, of).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def score(marks: Iterable[bool | None]) -> dict[str, Any]:
    """How many of some marks, at least one, are right, wrong and unclear; the share of right ones and its interval."""
    known = list(marks)
    right, unclear = known.count(True), known.count(None)
    shares = {"score": right / len(known), **dict(zip(("low", "high"), wilson(right, len(known)), strict=True))}
    counts = {"right": right, "wrong": len(known) - right - unclear, "unclear": unclear}
    return {**counts, **{name: round(share, 4) for name, share in shares.items()}}


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Scores as plain data: overall and held-out, by task, by class and by split; and all attributes of the judge."""
    marks = [(result, name, mark) for result in results for name, mark in result.classes.items()]
    tasks = {name: result.task for result, name, _ in marks}
    classes = _grouped((name, mark) for _, name, mark in marks)
    for name, entry in classes.items():
        by_split = _grouped((result.split, mark) for result, other, mark in marks if other == name)
        entry |= {"task": tasks[name], **by_split}
    return {
        "overall": score(mark for _, _, mark in marks),
        "splits": _grouped((result.split, mark) for result, _, mark in marks),
        "tasks": _grouped((result.task, mark) for result, _, mark in marks),
        "classes": classes,
        "attributes": _grouped(mark for result in results for mark in result.marks.items()),
    }


def _grouped(marks: Iterable[tuple[str, bool | None]]) -> dict[str, Any]:
    groups: dict[str, list[bool | None]] = {}
    for name, mark in marks:
        groups.setdefault(name, []).append(mark)
    return {name: score(group) for name, group in groups.items()}


def in_percent(entry: dict[str, Any]) -> tuple[str, str]:
    """A score and its interval in words."""
    return f"{100 * entry['score']:.1f} %", f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f} %"


def write_report(out: Path, report: dict[str, Any], results: Sequence[Result]) -> None:
    """Write report.html, with the worst and the best of every class."""
    parts = [_head(report)]
    for name, entry in report["classes"].items():
        of_class = [result for result in results if name in result.classes]
        # What is not right comes first, and of that the worst.
        of_class.sort(key=lambda result: (result.classes[name] is True, result.classes[name] is None, -result.faults, result.id))
        parts.append(_cards(out, name, entry, of_class))
    page = f"<!doctype html><meta charset=utf-8><title>lumos: shapes benchmark</title><style>{STYLE}</style>{''.join(parts)}"
    write_text(out / "report.html", page)


def _head(report: dict[str, Any]) -> str:
    share, interval = in_percent(report["overall"])
    splits = "; ".join(f"{split} {in_percent(entry)[0]}" for split, entry in report["splits"].items())
    return (
        f"<h1>Shapes benchmark: {share}</h1><p>{interval}; {splits}</p>"
        f"<details><summary>Settings</summary>{_html_table(list(report['settings'].items()))}</details>"
        f"<h2>Classes</h2>{_html_table([HEADINGS, *_rows(report['classes'])])}<h2>What the judge sees, in all videos</h2>"
        "<p>Against the scene each prompt was made from; sizes, speeds and places are mostly not told.</p>"
        f"{_html_table([HEADINGS, *_rows(report['attributes'])])}"
    )


def _rows(entries: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Scores under HEADINGS; of attributes there are none by split."""
    rows = []
    for name, entry in entries.items():
        by_split = [in_percent(entry[split])[0] if split in entry else "" for split in ("seen", "held-out")]
        rows.append([name, *in_percent(entry), *by_split, str(entry["wrong"]), str(entry["unclear"])])
    return rows


def _html_table(rows: Sequence[Sequence[object]]) -> str:
    lines = ("<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in row) for row in rows)
    return f"<table>{''.join(lines)}</table>"


def _cards(out: Path, name: str, entry: dict[str, Any], results: Sequence[Result]) -> str:
    failed = [result for result in results if result.classes[name] is not True]
    right = results[len(failed) :]
    cards = "".join(_card(out, name, result) for result in (*failed[:WORST], *right[:BEST]))
    shown = f"{min(len(failed), WORST)} of {len(failed)} that are not right, {min(len(right), BEST)} of {len(right)} right ones"
    return f'<h2>{html.escape(name)}: {in_percent(entry)[0]}</h2><p class="note">{shown}</p><div class="cards">{cards}</div>'


def _card(out: Path, name: str, result: Result) -> str:
    kind = "png" if result.file.endswith(".png") else "webp"
    picture = base64.b64encode((out / result.file).read_bytes()).decode()
    notes = "; ".join(result.notes.values()) if result.classes[name] is not True else ""
    return (
        f'<div class="card {VERDICTS[result.classes[name]]}"><img src="data:image/{kind};base64,{picture}" alt="">'
        f'{html.escape(result.text)} <span class="note">({html.escape(result.split)}) {html.escape(notes)}</span></div>'
    )


def write_card(out: Path, generator: Generator, scores: dict[str, Any]) -> Path:
    """Write the card from the report of the whole benchmark, unless there is one; returns its path."""
    if (path := out / CARD).exists():
        return path
    config, settings = generator.config, scores["settings"]
    sizes = [sum(part.numel() for part in module.parameters()) / 1e6 for module in (generator.model, generator.tokenizer)]
    video, shape = config.video, config.model
    weak = [name for name, entry in scores["classes"].items() if entry["score"] < WEAK]
    rows = {"**overall**": {**scores["overall"], **scores["splits"]}, **scores["classes"]}
    table = "\n".join(f"| {' | '.join(row)} |" for row in (HEADINGS, ["---"] * len(HEADINGS), *_rows(rows)))
    text = f"""# Model card

Written by `lumos evaluate shapes`; scores are of exactly these weights.

## The model

{sizes[0]:.1f} M parameters ({shape.layers} layers of width {shape.width}, {shape.rope}), and a visual tokenizer of \
{sizes[1]:.1f} M with {config.vocabulary.codes} codes. Videos of {video.frames} frames at {video.fps} per second, \
{video.width}x{video.height} pixels; prompts of at most {video.slots - 2} ids, of {config.vocabulary.text_size} that there are.
Sampling settings that come with it: {_listed(asdict(config.sampler))}. Weights {settings["weights"]} (a fingerprint).

## Data

Not told by the weights: say here what they were trained on.

## Scores

Shapes benchmark version {settings["benchmark"]}, {settings["count"]} prompts, seed {settings["seed"]}, on \
{settings["device"]}, sampled with {_listed(settings["sampler"])}. A judge reads the pixels and compares with what the prompt \
promises; what is unclear is not right. Intervals are Wilson's 95 %.

{table}

## Limits

It knows what it was trained on and nothing else; words that no caption had mean nothing to it.
Below {100 * WEAK:.0f} %: {", ".join(weak) if weak else "no class"}.
"""
    write_text(path, text)
    return path


def _listed(sampler: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sampler.items())
