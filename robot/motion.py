"""Moving a robot to a pose by itself: slowly, in a straight line in joint space."""

from __future__ import annotations

import numpy as np

from .robot import Robot

HOMING_SPEED = 1.0  # rad/s (m/s) of the joint that has furthest to go
SETTLE_S = 0.3


def go_to(robot: Robot, pose: np.ndarray, speed: float = HOMING_SPEED) -> None:
    """From where the joints are to `pose` `(A,)`, on the robot's clock; returns when the last command had time to be done.
    DeviceError as `command`; the arms hold then."""
    start = np.concatenate([arm.read().data for arm in robot.arms.values()])
    furthest = float(np.max(np.abs(pose - start)))
    steps = max(1, round(furthest / speed * robot.control_hz))
    began = robot.clock.now_ns()
    try:
        for i in range(steps):
            # slow at both ends: a start with full speed is a jerk
            w = 0.5 - 0.5 * np.cos(np.pi * (i + 1) / steps)
            robot.command(start + w * (pose - start))
            robot.clock.sleep_until(began + (i + 1) * robot.period_ns)
        robot.clock.sleep_until(robot.clock.now_ns() + round(SETTLE_S * 1e9))
    except BaseException:
        robot.hold()
        raise
