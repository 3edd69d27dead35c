"""Motors that get hot, or push in vain."""

from __future__ import annotations

import numpy as np

from ulna.drivers.arm import Strain
from ulna.robot.control.guard import LONGEST_PUSH_S, Guard

LIMIT = np.full(2, 70.0)


def strain(heat: float, load: float = 0.0) -> Strain:
    return Strain(np.array([0.0, load]), np.array([30.0, heat]), LIMIT)


def test_a_warm_joint_slows_the_arm_and_a_hot_one_stops_it() -> None:
    guard, states = Guard(("lift", "elbow")), []
    for t, heat in enumerate((59.0, 61.0, 67.0, 64.0, 62.0, 58.0, 56.0)):
        guard.step(strain(heat), float(t))
        states.append((guard.slow, bool(guard.refusal)))
    assert states == [
        (False, False),
        (True, False),
        (True, True),
        (True, True),  # it has to cool by more than the last digit
        (True, False),
        (True, False),
        (False, False),
    ]
    guard.step(strain(67.0), 9.0)
    assert "elbow is at 67 °C" in guard.note
    assert "70" in guard.note


def test_a_joint_that_pushes_for_long_is_stopped_and_a_pause_counts() -> None:
    guard = Guard(("lift", "elbow"))
    for t in np.arange(0, LONGEST_PUSH_S, 0.1):
        guard.step(strain(30, -1.0), float(t))
        assert not guard.refusal
    guard.step(strain(30, 0.5), LONGEST_PUSH_S)
    guard.step(strain(30, -1.0), LONGEST_PUSH_S + 0.1)
    assert not guard.refusal
    guard.step(strain(30, -0.9), 2.2 * LONGEST_PUSH_S)
    assert "elbow has pushed with 90 %" in guard.refusal


def test_an_arm_that_does_not_tell_its_heat_is_not_hot() -> None:
    guard = Guard(("lift", "elbow"))
    guard.step(Strain(np.zeros(2), np.full(2, np.nan), np.full(2, np.nan)), 0.0)
    assert (guard.slow, guard.refusal, guard.note) == (False, "", "")


def test_an_arm_that_is_elsewhere_than_it_was_sent_is_stopped_but_not_for_a_moment_of_it() -> None:
    guard = Guard(("lift", "elbow"))
    away = np.array([0.0, 0.7])
    for t, lag in ((0.0, 0 * away), (0.5, away), (0.9, away), (0.95, 0 * away), (1.5, away)):
        assert not guard.follows(lag, 0.5, t)
        assert not guard.refusal
    assert guard.follows(away, 0.5, 2.1)
    assert "elbow was 0.70 from where it was sent (at most 0.5)" in guard.refusal
    guard.step(strain(61.0), 2.7)
    assert "elbow was 0.70" in guard.note, "what stops it is told first"
    assert not guard.follows(0 * away, 0.5, 3.0), "it is told once"
    assert guard.refusal, "and stays until the arm is enabled again"
