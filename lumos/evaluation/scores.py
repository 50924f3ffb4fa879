"""Marks of single prompts -> scores with confidence intervals, by class, split and task."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# What the shipped `tiny` should reach on held-out prompts.
TARGETS = {
    "one object": 0.95,
    "colour": 0.95,
    "position": 0.85,
    "counting": 0.75,
    "colour binding": 0.75,
    "motion direction": 0.95,
    "motion kind": 0.80,
}


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


@dataclass(frozen=True)
class Score:
    """A share of right answers with its Wilson 95 % confidence interval. Unclear answers are not right."""

    right: int
    wrong: int
    unclear: int
    score: float
    low: float
    high: float


def wilson(right: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's confidence interval of a share; z = 1.96 is 95 %."""
    if not 0 <= right <= of or of < 1:
        raise ValueError(f"right must be 0 to of, and of at least 1, got {right} of {of}; count again")
    share, spread = right / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def score(marks: Iterable[bool | None]) -> Score:
    """The score of some marks, at least one."""
    known = list(marks)
    right = sum(mark is True for mark in known)
    low, high = wilson(right, len(known))
    unclear = sum(mark is None for mark in known)
    return Score(right, len(known) - right - unclear, unclear, round(right / len(known), 4), round(low, 4), round(high, 4))


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Scores as plain data: overall and held-out, by task, by class and by split; and all attributes of the judge."""
    marks = [(result, name, mark) for result in results for name, mark in result.classes.items()]
    classes: dict[str, Any] = {}
    for name in dict.fromkeys(name for _, name, _ in marks):
        of_class = [(result, mark) for result, other, mark in marks if other == name]
        entry = asdict(score(mark for _, mark in of_class))
        entry["task"] = of_class[0][0].task
        for split in dict.fromkeys(result.split for result, _ in of_class):
            entry[split] = asdict(score(mark for result, mark in of_class if result.split == split))
        if name in TARGETS:
            entry["target"] = TARGETS[name]
        classes[name] = entry
    every = [mark for _, _, mark in marks]
    attributes = dict.fromkeys(name for result in results for name in result.marks)
    return {
        "overall": asdict(score(every)),
        "splits": {
            split: asdict(score(m for r, _, m in marks if r.split == split)) for split in dict.fromkeys(r.split for r in results)
        },
        "tasks": {
            task: asdict(score(m for r, _, m in marks if r.task == task)) for task in dict.fromkeys(r.task for r in results)
        },
        "classes": classes,
        "attributes": {name: asdict(score(r.marks[name] for r in results if name in r.marks)) for name in attributes},
    }
