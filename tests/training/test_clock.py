"""Budgets and Ctrl-C, with a clock that the test moves."""

import os
import signal
import threading

import pytest
import torch

from lumos.training.clock import Budget, Clock
from lumos.training.parallel import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


def test_progress_is_whichever_part_of_the_budget_is_used_more() -> None:
    budget = Budget(max_steps=100, max_seconds=50.0)
    assert budget.progress(20, 5.0) == 0.2
    assert budget.progress(20, 25.0) == 0.5
    assert Budget(max_steps=10).progress(10, 1e9) == 1.0
    assert Budget(max_seconds=10.0).progress(10**9, 5.0) == 0.5


def test_bad_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="needs an end"):
        Budget()


def test_the_clock_goes_on_from_earlier_seconds() -> None:
    now = [1000.0]
    clock = Clock(Budget(max_seconds=100.0), ALONE, seconds=20.0, now=lambda: now[0])
    assert clock.progress(0) == 0.2
    now[0] += 30
    assert clock.seconds == 50 and clock.progress(1) == 0.5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_loop_and_the_old_handler_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    step = 0
    with Clock(Budget(max_steps=5), ALONE) as clock:
        while clock.progress(step) < 1 and not clock.interrupted:
            step += 1
            if step == 2:
                os.kill(os.getpid(), number)
    assert step == 2 and clock.interrupted
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Clock(Budget(max_steps=5), ALONE):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen: list[float] = []

    def work() -> None:
        with Clock(Budget(max_steps=4), ALONE) as clock:
            seen.append(clock.progress(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0.25]
