"""Moving a robot to a pose by itself: slowly, in a straight line in joint space."""

from __future__ import annotations

import numpy as np

from .robot import Robot

HOMING_SPEED = 1.0  # rad/s (m/s) of the joint that has furthest to go
SETTLE_S, LONGEST_S = 0.3, 3.0  # it has come when it rests for the one; nobody waits for the other to pass
RESTS = 0.01  # rad (m) that a resting joint may tremble by


def go_to(robot: Robot, pose: np.ndarray, speed: float = HOMING_SPEED) -> None:
    """From where the joints are to `pose` `(A,)`, on the robot's clock; returns when they have come to rest,
    there or, against a load or a thing in the way, as near as they get. DeviceError as `command`; the arms
    hold then."""
    start, _ = _joints(robot)
    furthest = float(np.max(np.abs(pose - start)))
    steps = max(1, round(furthest / speed * robot.control_hz))
    began = robot.clock.now_ns()
    try:
        for i in range(steps):
            # slow at both ends: a start with full speed is a jerk
            w = 0.5 - 0.5 * np.cos(np.pi * (i + 1) / steps)
            robot.command(start + w * (pose - start))
            robot.clock.sleep_until(began + (i + 1) * robot.period_ns)
        _rest(robot, pose)
    except BaseException:
        robot.hold()
        raise


def _rest(robot: Robot, pose: np.ndarray) -> None:
    """Commanded all the while: a joint that lags behind would stay where the arm's watchdog finds it."""
    now = since = began = robot.clock.now_ns()
    rested, _ = _joints(robot)
    while now - since < SETTLE_S * 1e9 and now - began < LONGEST_S * 1e9:
        robot.command(pose)
        robot.clock.sleep_until(now + robot.period_ns)
        now, (q, known) = robot.clock.now_ns(), _joints(robot)
        if not known or np.max(np.abs(q - rested)) > RESTS:
            rested, since = q, now


def _joints(robot: Robot) -> tuple[np.ndarray, bool]:
    """Where they are, and whether that is known of all of them just now."""
    read = [arm.read() for arm in robot.arms.values()]
    return np.concatenate([sample.data for sample in read]), all(np.all(sample.valid) for sample in read)
