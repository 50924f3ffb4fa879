import pytest

from lumos.evaluation.report import Result, summary, wilson


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (1, 1, 0.2065, 1.0)],
)
def test_wilson_interval_is_the_published_one(right: int, of: int, low: float, high: float) -> None:
    assert wilson(right, of) == pytest.approx((low, high), abs=5e-4)


def result(name: str, split: str, **classes: bool | None) -> Result:
    return Result(name, "text to image", split, "a red circle", dict(classes), {"count": True}, {}, "videos/x.png")


def test_summary_counts_every_class_in_every_split() -> None:
    results = [
        result("a", "seen", colour=True),
        result("b", "held-out", colour=False),
        result("c", "seen", colour=None, shape=True),
    ]
    told = summary(results)
    assert told["overall"]["right"] == 2 and told["overall"]["wrong"] == 1 and told["overall"]["unclear"] == 1
    assert told["classes"]["colour"]["seen"]["score"] == 0.5 and told["classes"]["colour"]["held-out"]["score"] == 0
    assert told["splits"]["seen"]["right"] == 2 and told["attributes"]["count"]["score"] == 1


def test_worst_come_first() -> None:
    bad, unclear, good = (result(name, "seen", colour=mark) for name, mark in (("a", False), ("b", None), ("c", True)))
    assert bad.faults > unclear.faults > good.faults
