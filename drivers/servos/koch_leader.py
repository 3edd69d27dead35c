"""The leader of a Koch arm: six Dynamixel XL330-M077, moved by hand and read. Its gripper may spring open
like a trigger."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import setting
from .dynamixel import DynamixelBus
from .dynamixel_registers import CURRENT_BASED_POSITION
from .group import DYNAMIXEL, Servo, ServoGroup
from .koch import JOINTS, QUICK
from .servo_arm import ServoArm

XL330_M077 = 1190
GRIPPER = 5
DRIVE_MODES = {"elbow_flex": 1}  # its elbow is mounted the other way round than the follower's


@dataclass(frozen=True)
class Config:
    """The fields of `[leaders.NAME]` with `driver = "koch-leader"`."""

    port: str
    """Its serial port, by a name that stays: `/dev/serial/by-id/…` (`ulna devices` lists them)."""
    calibration: str
    """File in LeRobot's form; `ulna calibrate` makes one."""
    baud: int = setting(1_000_000, 9_600, 4_000_000, "bit/s")
    """Speed of the bus; the default is the servos' usual one."""
    bus_hz: float = setting(100.0, 10, 250, "Hz")
    """Readings of every joint a second."""
    stale_s: float = setting(0.5, 0.05, 5, "s")
    """A joint that is silent for longer counts as lost in `health`."""
    spring_current: int = setting(150, 0, 400, "mA")
    """Current of the gripper's spring; at 0 there is none, and `enable` is refused."""


class KochLeader(ServoArm):
    """sprung: its gripper has a spring; `enable` switches that on, and no other torque."""

    sprung = False


def make(name: str, config: Config) -> KochLeader:
    spring = {"operating_mode": CURRENT_BASED_POSITION, "goal_current": config.spring_current}
    servos = [Servo(i, XL330_M077, 1470, QUICK) for i in range(1, 6)]
    servos.append(Servo(6, XL330_M077, 1470, QUICK | (spring if config.spring_current else {})))
    group = ServoGroup(
        DynamixelBus(config.port, config.baud), DYNAMIXEL, JOINTS, servos, config.calibration, ("gripper",)
    )
    arm = KochLeader(
        name,
        group,
        bus_hz=config.bus_hz,
        stale_s=config.stale_s,
        commanded=False,
        sprung=(GRIPPER,) if config.spring_current else (),
        spring_to=np.asarray(JOINTS.upper),
    )
    arm.sprung = config.spring_current > 0
    return arm
