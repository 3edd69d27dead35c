"""Moving a robot to a pose by itself: slowly, in a straight line in joint space."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .robot import Robot

HOMING_SPEED = 1.0  # rad/s (m/s) of the joint that has furthest to go
SETTLE_S = 0.3  # a robot that rests for this long has arrived
LONGEST_S = 3.0  # one that does not rest is not waited for any longer
RESTS = 0.01  # rad (m) that a resting joint may tremble by


def go_to(
    robot: Robot, pose: np.ndarray, speed: float = HOMING_SPEED, look: Callable[[], object] = lambda: None
) -> None:
    """From where the joints are to `pose` `(A,)`, on the robot's clock; returns when they have come to rest,
    there or, against a load or a thing in the way, as near as they get. look: called after each command.
    DeviceError as `command`; the arms hold then."""
    start, _ = _joints(robot)
    furthest = float(np.max(np.abs(pose - start)))
    steps = max(1, round(furthest / speed * robot.control_hz))
    began = robot.clock.now_ns()
    try:
        for i in range(steps):
            # slow at both ends: a start with full speed is a jerk
            w = 0.5 - 0.5 * np.cos(np.pi * (i + 1) / steps)
            robot.command(start + w * (pose - start))
            look()
            robot.clock.sleep_until(began + (i + 1) * robot.period_ns)
        _rest(robot, pose, look)
    except BaseException:
        robot.hold()
        raise


def _rest(robot: Robot, pose: np.ndarray, look: Callable[[], object]) -> None:
    """Wait until the joints rest. `pose` is commanded all the while: else the arm's watchdog would hold a
    joint that lags behind where it is."""
    now = since = began = robot.clock.now_ns()
    resting_at, _ = _joints(robot)
    while now - since < SETTLE_S * 1e9 and now - began < LONGEST_S * 1e9:
        robot.command(pose)
        look()
        robot.clock.sleep_until(now + robot.period_ns)
        now, (q, valid) = robot.clock.now_ns(), _joints(robot)
        if not valid or np.max(np.abs(q - resting_at)) > RESTS:
            resting_at, since = q, now


def _joints(robot: Robot) -> tuple[np.ndarray, bool]:
    """Positions `(A,)` of the joints of all arms, and whether all of them are valid."""
    samples = [arm.read() for arm in robot.arms.values()]
    return np.concatenate([s.data for s in samples]), all(np.all(s.valid) for s in samples)
