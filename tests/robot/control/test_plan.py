"""Where an arm is to be when."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ulna.robot.control.plan import Plan

MS = 1_000_000
POSES = st.lists(st.floats(-2, 2), min_size=1, max_size=6)


def plan() -> Plan:
    return Plan(np.zeros(1), 0, 500 * MS)


def test_a_command_is_reached_at_its_time_on_a_straight_line_and_then_what_follows_it() -> None:
    it = plan()
    it.command(np.zeros(1), 0, np.array([1.0]), 50 * MS, np.array([[2.0], [4.0]]), 50 * MS, 0)
    times = (0, 25, 50, 75, 100, 125, 150, 900)
    assert [it.at(t * MS)[0] for t in times] == [0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 4.0]


def test_a_command_that_no_other_follows_is_over_in_time() -> None:
    it = plan()
    it.command(np.zeros(1), 0, np.ones(1), 10_000 * MS, np.zeros((0, 1)), 50 * MS, 7 * MS)
    assert not it.is_over(507 * MS)
    assert it.is_over(508 * MS)
    it.hold(it.at(508 * MS), 508 * MS)
    it.lapsed_ns = 508 * MS
    assert it.at(5000 * MS)[0] == it.at(508 * MS)[0]
    assert not it.is_over(9000 * MS), "it holds"
    assert it.silence_ns(2508 * MS) == 2000 * MS
    it.command(it.at(0), 2508 * MS, np.ones(1), 2558 * MS, np.zeros((0, 1)), 50 * MS, 2508 * MS)
    assert it.silence_ns(2600 * MS) == 0


@given(POSES, POSES, st.integers(-100, 100), st.integers(0, 60))
def test_it_never_leaves_the_hull_of_its_poses_and_never_jumps(
    first: list[float], ahead: list[float], due_ms: int, step_ms: int
) -> None:
    it = plan()
    follow = np.array(ahead)[:, None]
    it.command(np.zeros(1), 0, np.array(first[:1]), due_ms * MS, follow, 50 * MS, 0)
    poses = [0.0, first[0], *ahead]
    seen = [float(it.at(t * MS)[0]) for t in range(0, 600, max(step_ms, 1))]
    assert min(poses) - 1e-9 <= min(seen)
    assert max(seen) <= max(poses) + 1e-9
    assert seen[-1] == seen[-1]
