"""Budgets and Ctrl-C, with a clock that the test moves."""

import os
import signal
import threading
from typing import Any

import pytest

from lumos.ranks import ALONE
from lumos.training.clock import Clock


def clock(max_steps: int | None = None, max_seconds: float | None = None, **settings: Any) -> Clock:
    return Clock(max_steps, max_seconds, ALONE, **settings)


def test_progress_is_whichever_part_of_the_budget_is_used_more_and_goes_on_from_earlier_seconds() -> None:
    now = [1000.0]
    both, by_time = clock(100, 50.0, now=lambda: now[0]), clock(None, 100.0, seconds=20.0, now=lambda: now[0])
    by_steps = clock(10, now=lambda: now[0])
    now[0] += 5
    assert (both.progress(20), by_time.progress(10**9), by_steps.progress(10)) == (0.2, 0.25, 1.0)
    now[0] += 20
    assert (both.progress(20), by_time.seconds) == (0.5, 45.0)
    with pytest.raises(ValueError, match="needs an end"):
        clock()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_loop_and_the_old_handler_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    step = 0
    with clock(5) as running:
        while running.progress(step) < 1 and not running.interrupted:
            step += 1
            if step == 2:
                os.kill(os.getpid(), number)
    assert step == 2 and running.interrupted
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), clock(5):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen: list[float] = []

    def work() -> None:
        with clock(4) as running:
            seen.append(running.progress(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0.25]
