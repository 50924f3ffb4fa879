"""Marks of single prompts -> scores with confidence intervals, by class, split and task."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest


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
