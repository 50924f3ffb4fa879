"""How long a run lasts: a budget in steps, in seconds or both, and Ctrl-C; all ranks agree, so that all stop together.

with Clock(Budget(max_steps=1000, max_seconds=600), ranks) as clock:
    while (progress := clock.progress(step)) < 1 and not clock.interrupted: ...
"""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from lumos.training.parallel import Ranks, agree

AGREE_EVERY = 10  # steps between two agreements of several ranks: each one waits for the device


@dataclass(frozen=True)
class Budget:
    """A run ends after `max_steps` steps or `max_seconds` seconds of training, whichever comes first."""

    max_steps: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_seconds is None:
            raise ValueError("a run needs an end, got neither max_steps nor max_seconds; give one or both")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is used, from 0; 1 or more means the end. The learning rate follows it."""
        by_steps = step / self.max_steps if self.max_steps else 0.0
        by_seconds = seconds / self.max_seconds if self.max_seconds else 0.0
        return max(by_steps, by_seconds)


class Clock:
    """Progress of a run, and whether it was asked to stop (Ctrl-C or SIGTERM; a second Ctrl-C raises KeyboardInterrupt).

    `seconds` is what earlier parts of a resumed run took. With one rank nothing ever waits for the device.
    """

    def __init__(self, budget: Budget, ranks: Ranks, seconds: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        self.budget, self.ranks = budget, ranks
        self.interrupted = False
        self._asked = False
        self._now, self._start = now, now() - seconds
        self._agreed: float | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier parts included."""
        return self._now() - self._start

    def progress(self, step: int) -> float:
        """Share of the budget used before `step`, the same number on every rank. Also updates `interrupted`."""
        if self._agreed is None or self.ranks.world == 1 or step % AGREE_EVERY == 0:
            self._agreed, asked = agree((self.seconds, float(self._asked)), self.ranks)
            self.interrupted = asked > 0
        return self.budget.progress(step, self._agreed)

    def __enter__(self) -> "Clock":
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not in the main thread: then the caller's handlers stay
                self._handlers[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
