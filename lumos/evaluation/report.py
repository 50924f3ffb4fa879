"""Results -> what people look at: report.html (one file with the videos inside, worst and best first) and contact sheets."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lumos.evaluation.scores import Result, in_percent
from lumos.media.pixels import to_float
from lumos.media.sheet import contact_sheet

WORST, BEST = 12, 6  # of each class in the report
IN_SHEET = 5  # frames of a video on the contact sheet
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: 3px 12px 3px 0; text-align: left; border-bottom: 1px solid #ddd; }
.cards { display: flex; flex-wrap: wrap; gap: 14px; } .card { width: 160px; font-size: 12px; }
.card img { width: 160px; height: 160px; border-radius: 6px; display: block; border: 3px solid transparent; }
.wrong img { border-color: #d9483b; } .unclear img { border-color: #e0a030; } .right img { border-color: #3a9d5d; }
.note { color: #666; } h2 { margin-top: 2em; }
"""


def write_report(out: Path, report: dict[str, Any], results: Sequence[Result]) -> None:
    """Write report.html and, for images and videos, a contact sheet of the worst and best of every class."""
    parts = [_head(report)]
    sheets: dict[str, dict[str, tuple[Result, str]]] = {"images": {}, "videos": {}}
    for name, entry in report["classes"].items():
        of_class = [result for result in results if name in result.classes]
        # What is not right comes first, and of that the worst.
        of_class.sort(key=lambda result: (result.classes[name] is True, result.classes[name] is None, -result.faults, result.id))
        parts.append(_cards(out, name, entry, of_class))
        for result in (*of_class[:2], *of_class[-2:]):
            chosen = sheets["images" if result.file.endswith(".png") else "videos"]
            chosen.setdefault(result.id, (result, f"{name}, {_word(result.classes[name])}: {result.text}"))
    page = f"<!doctype html><meta charset=utf-8><title>lumos: shapes benchmark</title><style>{STYLE}</style>{''.join(parts)}"
    (out / "report.html").write_text(page, "utf-8")
    for kind, frames, columns in (("images", 1, 8), ("videos", IN_SHEET, IN_SHEET)):
        if shown := sheets[kind].values():
            pixels_BCFHW = torch.stack([_spread_frames(out / result.file, frames) for result, _ in shown])
            contact_sheet(pixels_BCFHW, [caption for _, caption in shown], columns).save(out / f"sheet_{kind}.png")


def _head(report: dict[str, Any]) -> str:
    share, interval = in_percent(report["overall"])
    splits = "; ".join(f"{split} {in_percent(entry)[0]}" for split, entry in report["splits"].items())
    classes = [["class", "right", "95 %", "seen", "held out", "wrong", "unclear"]]
    for name, entry in report["classes"].items():
        by_split = [in_percent(entry[split])[0] if split in entry else "" for split in ("seen", "held-out")]
        classes.append([name, *in_percent(entry), *by_split, entry["wrong"], entry["unclear"]])
    attributes = [["attribute", "right", "95 %", "wrong", "unclear"]]
    attributes += [[name, *in_percent(entry), entry["wrong"], entry["unclear"]] for name, entry in report["attributes"].items()]
    return (
        f"<h1>Shapes benchmark: {share}</h1><p>{interval}; {splits}</p>"
        f"<details><summary>Settings</summary>{_html_table(list(report['settings'].items()))}</details>"
        f"<h2>Classes</h2>{_html_table(classes)}<h2>What the judge sees, in all videos</h2>"
        "<p>Against the scene each prompt was made from; sizes, speeds and places are mostly not told.</p>"
        f"{_html_table(attributes)}"
    )


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
        f'<div class="card {_word(result.classes[name])}"><img src="data:image/{kind};base64,{picture}" alt="">'
        f'{html.escape(result.text)} <span class="note">({html.escape(result.split)}) {html.escape(notes)}</span></div>'
    )


def _spread_frames(path: Path, count: int) -> Tensor:
    """Some frames of a file, evenly spread: pixels_CFHW."""
    from PIL import Image

    with Image.open(path) as image:
        frames = []
        for number in np.linspace(0, getattr(image, "n_frames", 1) - 1, count).round().astype(int):
            image.seek(int(number))
            frames.append(torch.from_numpy(np.array(image.convert("RGB"))))
    return to_float(torch.stack(frames).permute(3, 0, 1, 2))


def _word(mark: bool | None) -> str:
    return "unclear" if mark is None else "right" if mark else "wrong"
