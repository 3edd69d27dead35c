"""Going to a pose: an arm that lags is waited for, one that cannot get there is not."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from contracts.servo_arm import HOME, bench, home_with, running

from ulna.drivers.arm import DeviceError
from ulna.drivers.clock import MonotonicClock
from ulna.robot.motion import LONGEST_S, go_to
from ulna.robot.robot import Robot

pytestmark = pytest.mark.realtime


def test_an_arm_that_lags_arrives_though_its_watchdog_is_short(tmp_path: Path) -> None:
    with bench("so101", tmp_path) as b, running(b.arm(watchdog_s=0.25)) as arm:
        robot = Robot("r", {"arm": arm}, {}, {}, MonotonicClock(), 20.0)
        pose = home_with(0, 1.2)
        go_to(robot, pose, speed=6.0)  # commanded within 0.2 s; the motors need 0.6
        assert arm.read().data == pytest.approx(pose, abs=0.03)
        assert b.plant.position == pytest.approx(pose, abs=0.03)


def test_an_arm_that_cannot_get_there_is_left_as_near_as_it_gets(tmp_path: Path) -> None:
    with bench("so101", tmp_path) as b, running(b.arm()) as arm:
        robot = Robot("r", {"arm": arm}, {}, {}, MonotonicClock(), 20.0)
        b.twin.faults.stuck = (0,)
        began = time.monotonic()
        go_to(robot, home_with(0, 0.4) + home_with(1, 0.3) - HOME)
        assert time.monotonic() - began < 0.5 + LONGEST_S + 1.0
        q = arm.read().data
        assert abs(q[0] - HOME[0]) < 0.03
        assert q[1] == pytest.approx(HOME[1] + 0.3, abs=0.03)


def test_an_arm_that_takes_no_command_is_not_moved(tmp_path: Path) -> None:
    with bench("so101", tmp_path) as b, running(b.arm(), enable=False) as arm:
        robot = Robot("r", {"arm": arm}, {}, {}, MonotonicClock(), 20.0)
        with pytest.raises(DeviceError, match="torque off"):
            go_to(robot, home_with(0, 0.4))
        assert np.abs(b.plant.position - HOME).max() < 0.01
