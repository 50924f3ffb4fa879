"""How long a run lasts: a budget in steps, in seconds or both, and Ctrl-C; all ranks agree, so that all stop together.

with Clock(max_steps=1000, max_seconds=600, ranks=ranks) as clock:
    while (progress := clock.progress(step)) < 1 and not clock.interrupted: ...
"""

import math
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from lumos.ranks import Ranks, agree

Timer = Callable[[], float]
AGREE_EVERY = 10  # steps between two agreements of several ranks: each one waits for the device


class Clock:
    """Progress of a run, and whether it was asked to stop (Ctrl-C or SIGTERM; a second Ctrl-C raises KeyboardInterrupt).

    It ends after `max_steps` steps or `max_seconds` seconds, whichever comes first; earlier parts of the run took `seconds`.
    With one rank nothing ever waits for the device.
    """

    def __init__(
        self, max_steps: int | None, max_seconds: float | None, ranks: Ranks, seconds: float = 0.0, now: Timer = time.monotonic
    ) -> None:
        if max_steps is max_seconds is None:
            raise ValueError("a run needs an end, got neither max_steps nor max_seconds; give one or both")
        self.steps, self.limit, self.ranks = max_steps or math.inf, max_seconds or math.inf, ranks
        self.interrupted = self._asked = False
        self._now, self._start = now, now() - seconds
        self._agreed: float | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier parts included."""
        return self._now() - self._start

    def progress(self, step: int) -> float:
        """Share of the budget used before `step`, the same on every rank; 1 or more means the end. Updates `interrupted`."""
        if self._agreed is None or self.ranks.world == 1 or step % AGREE_EVERY == 0:
            self._agreed, asked = agree((self.seconds, float(self._asked)), self.ranks)
            self.interrupted = asked > 0
        return max(step / self.steps, self._agreed / self.limit)

    def __enter__(self) -> "Clock":
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not in the main thread: then the caller's handlers stay
                self._handlers[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
