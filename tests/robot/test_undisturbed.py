"""A Ctrl-C waits for the end of what it must not cut in two."""

from __future__ import annotations

import signal
import threading

import pytest

from ulna.robot.undisturbed import undisturbed


def interrupted(steps: list[str]) -> None:
    with undisturbed():
        steps.append("begun")
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        steps.append("ended")
    steps.append("after it")


def test_a_ctrl_c_takes_effect_at_the_end() -> None:
    before, steps = signal.getsignal(signal.SIGINT), list[str]()
    with pytest.raises(KeyboardInterrupt):
        interrupted(steps)
    assert steps == ["begun", "ended"]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_one_nothing_happens_also_in_another_thread() -> None:
    steps: list[str] = []

    def work() -> None:
        with undisturbed():
            steps.append("done")

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert steps == ["done", "done"]
